"""Checks of arguments before an operator sees them: errors that name function and argument."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_COUNT = 2**31 - 1


def require_dims(name: str, argument: str, tensor: object, ndim: int, shape: str) -> None:
    """Raises an error that names operation and argument unless it is a tensor of so many dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {argument} must be a tensor {shape}, got {type(tensor).__name__}")
    if tensor.dim() != ndim:
        raise ValueError(f"{name}: {argument} must have shape {shape}, got {list(tensor.shape)}")


def require_tensors(name: str, **tensors: object) -> None:
    """Raises ``TypeError`` for what is neither a tensor nor None."""
    for argument, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a tensor, got {type(tensor).__name__}")


def require_flag(name: str, argument: str, flag: object) -> None:
    """Raises ``TypeError`` for what is not a bool."""
    if not isinstance(flag, bool):
        raise TypeError(f"{name}: {argument} must be a bool, got {type(flag).__name__}")


def require_scale(name: str, argument: str, scale: object) -> None:
    """Raises ``TypeError`` for what is neither a number nor None."""
    if scale is not None and not isinstance(scale, (float, int, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name}: {argument} must be a number, got {type(scale).__name__}")


def require_count(name: str, argument: str, count: object) -> None:
    """Raises an error for what is not an integer from 1 to the largest i32."""
    if not isinstance(count, (int, torch.SymInt)):
        raise TypeError(f"{name}: {argument} must be an integer, got {type(count).__name__}")
    if not 1 <= count <= LARGEST_COUNT:
        raise ValueError(f"{name}: {argument} must be 1 to {LARGEST_COUNT}, got {count}")
