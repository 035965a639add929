"""The shared library: its operations with their declared fields, and what it says about itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm_ffi

__version__ = importlib.metadata.version("flash_mla")


def _shared_library() -> str:
    """Its path. An editable installation has it in another folder of the package than this file."""
    paths = [Path(folder, "libflash_mla.so") for folder in sys.modules["flash_mla"].__path__]
    return str(next((path for path in paths if path.exists()), paths[0]))


_module = tvm_ffi.load_module(_shared_library())

tvm_ffi.error.register_error("NotImplementedError", NotImplementedError)


@dataclasses.dataclass(frozen=True)
class TensorField:
    """A tensor of an operation, or a list of tensors."""

    name: str
    role: str
    """``input``, ``optional``, ``output`` or ``update`` (partly overwritten)."""
    types: str
    shape: str
    is_list: bool
    meaning: str

    @property
    def is_written(self) -> bool:
        return self.role in ("output", "update")


@dataclasses.dataclass(frozen=True)
class ScalarField:
    """A number or a switch of an operation."""

    name: str
    type: str
    """``float``, ``int`` or ``bool``; a ``float`` may be None, its default."""
    default: int | bool | None
    meaning: str


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of the library.

    ``run`` takes all tensors, all scalars, and then ``backend`` (a name or None), ``threads`` and
    ``check_indices``, by position.
    """

    name: str
    summary: str
    tensors: tuple[TensorField, ...]
    scalars: tuple[ScalarField, ...]
    run: Callable[..., None]


def _read_operation(record: Any) -> Operation:
    return Operation(
        name=record["name"],
        summary=record["summary"],
        tensors=tuple(TensorField(**dict(field.items())) for field in record["tensors"]),
        scalars=tuple(ScalarField(**dict(field.items())) for field in record["scalars"]),
        run=record["run"],
    )


operations: dict[str, Operation] = {
    operation.name: operation for operation in map(_read_operation, _module.operations())
}


def kernels(device_type: int, device_index: int = 0) -> list[dict[str, Any]]:
    """The kernels in the order in which they are tried, for tensors on this device (DLPack's numbers)."""
    return [dict(record.items()) for record in _module.kernels(device_type, device_index)]


decode_schedule_parts: Callable[[int, int, int, int, int, int], int] = _module.decode_schedule_parts
as_bf16: Callable[[Any], Any] = _module.as_bf16
