"""PyTorch operators ``torch.ops.flash_mla.*``, which torch.compile and torch.export can trace.

One for each operation, made from the declared fields: it takes all tensors and all scalars by position,
writes its outputs and returns nothing. Two more, for multi-head attention with a gradient, return new
tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flash_mla._library import Operation, ScalarField, TensorField, operations

_library = torch.library.Library("flash_mla", "DEF")

_SCALAR_TYPES = {"float": "float?", "int": "SymInt", "bool": "bool"}


def _schema_of(field: TensorField | ScalarField, number: int) -> str:
    if isinstance(field, ScalarField):
        return f"{_SCALAR_TYPES[field.type]} {field.name}"
    written = f"({chr(ord('a') + number)}!)" if field.is_written else ""
    if field.is_list:
        return f"Tensor{written}[] {field.name}"
    return f"Tensor{written}{'?' if field.role == 'optional' else ''} {field.name}"


def _eager(operation: Operation) -> Callable[..., None]:
    run = operation.run

    def call(*arguments: object) -> None:
        run(*arguments, None, torch.get_num_threads(), False)

    return call


def _define(operation: Operation) -> None:
    fields = (*operation.tensors, *operation.scalars)
    arguments = ", ".join(_schema_of(field, number) for number, field in enumerate(fields))
    _library.define(f"{operation.name}({arguments}) -> ()", tags=torch.Tag.pt2_compliant_tag)
    for key in ("CPU", "CUDA"):
        _library.impl(operation.name, _eager(operation), key)
    torch.library.register_fake(f"flash_mla::{operation.name}", lambda *_: None, lib=_library)


for _operation in operations.values():
    _define(_operation)


# --- attention with a gradient ---

_COMMON = "Tensor cu_seqlens_q, Tensor cu_seqlens_k, float? softmax_scale, bool causal, bool deterministic"
_library.define(
    f"varlen_attention(Tensor q, Tensor k, Tensor v, {_COMMON}) -> (Tensor out, Tensor lse)",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    f"varlen_attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor d_out, "
    f"{_COMMON}) -> (Tensor d_q, Tensor d_k, Tensor d_v)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _new_outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    total, heads, _ = q.shape
    return q.new_empty(total, heads, v.shape[-1]), q.new_empty(total, heads, dtype=torch.float32)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    softmax_scale: float | None,
    causal: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    out, lse = _new_outputs(q, v)
    torch.ops.flash_mla.mha_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, out, lse, softmax_scale, causal)
    return out, lse


def _new_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    softmax_scale: float | None,
    causal: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _new_gradients(q, k, v)
    torch.ops.flash_mla.mha_backward(
        q, k, v, out, lse, d_out, cu_seqlens_q, cu_seqlens_k, *gradients, softmax_scale, causal, deterministic
    )
    return gradients


for _key in ("CPU", "CUDA"):
    _library.impl("varlen_attention", _forward, _key)
    _library.impl("varlen_attention_backward", _backward, _key)


@torch.library.register_fake("flash_mla::varlen_attention", lib=_library)
def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _new_outputs(q, v)


@torch.library.register_fake("flash_mla::varlen_attention_backward", lib=_library)
def _fake_backward(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _new_gradients(q, k, v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)


def _differentiate(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
    # A gradient may be any view: that of a sum repeats one number.
    gradients = torch.ops.flash_mla.varlen_attention_backward(
        q, k, v, out, lse, d_out.contiguous(), cu_seqlens_q, cu_seqlens_k, *ctx.options
    )
    return (*gradients, None, None, None, None, None)


torch.library.register_autograd(
    "flash_mla::varlen_attention", _differentiate, setup_context=_save, lib=_library
)
