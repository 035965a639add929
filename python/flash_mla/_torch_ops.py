"""PyTorch operators ``torch.ops.flash_mla.*``, which torch.compile and torch.export can trace.

One for each operation, made from the declared fields: it takes all tensors and all scalars by position,
writes its outputs and returns nothing. Further ones return new tensors: a schedule, and multi-head
attention with its gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from flash_mla._library import Operation, ScalarField, TensorField, decode_schedule_parts, operations

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
    written = [(number, field.name) for number, field in enumerate(operation.tensors) if field.is_written]

    def call(*arguments: object) -> None:
        for number, name in written:
            if arguments[number].requires_grad:
                raise ValueError(f"{operation.name}: {name} is written and must not require grad")
        run(*arguments, None, torch.get_num_threads(), False)
        for number, _ in written:
            if not arguments[number].is_inference():
                torch.autograd.graph.increment_version(arguments[number])

    return call


def _require_one_device(name: str, arguments: tuple[object, ...]) -> None:
    """Raises ``ValueError`` unless all tensors share a device: nothing traces that kernels refuse."""
    lists = (each if isinstance(each, (list, tuple)) else [each] for each in arguments)
    devices = {str(each.device) for each in itertools.chain(*lists) if isinstance(each, Tensor)}
    if len(devices) > 1:
        raise ValueError(f"{name}: all tensors must be on one device, got {', '.join(sorted(devices))}")


def _define(operation: Operation) -> None:
    fields = (*operation.tensors, *operation.scalars)
    arguments = ", ".join(_schema_of(field, number) for number, field in enumerate(fields))
    _library.define(f"{operation.name}({arguments}) -> ()", tags=torch.Tag.pt2_compliant_tag)
    for key in ("CPU", "CUDA"):
        _library.impl(operation.name, _eager(operation), key)
    torch.library.register_fake(
        f"flash_mla::{operation.name}",
        lambda *arguments: _require_one_device(operation.name, arguments),
        lib=_library,
    )


for _operation in operations.values():
    _define(_operation)


# --- schedules ---

DEVICE_TYPES = {"cpu": 1, "cuda": 2}
"""PyTorch's names of devices and DLPack's numbers."""

_library.define(
    "decode_schedule(Tensor like, Tensor? cache_seqlens, Tensor? topk_length, Tensor? extra_topk_length, "
    "SymInt batch, SymInt rows, SymInt heads_kv, SymInt max_seqlen, SymInt topk, SymInt extra_topk) "
    "-> (Tensor schedule, Tensor num_splits)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _new_schedule(like: Tensor, batch: int, parts: int) -> tuple[Tensor, Tensor]:
    return like.new_empty(parts, 8, dtype=torch.int32), like.new_empty(batch + 1, dtype=torch.int32)


def _parts(like: Tensor, batch: int, rows: int, heads_kv: int, is_sparse: bool, topk: int) -> int:
    device = like.device
    number = DEVICE_TYPES.get(device.type, DEVICE_TYPES["cpu"])
    return decode_schedule_parts(number, device.index or 0, batch, rows, heads_kv, topk if is_sparse else -1)


def _most_parts(like: Tensor, rows: int, heads_kv: int, is_sparse: bool, topk: int) -> int:
    """Rows of a schedule tensor. The same for every batch: callers copy schedules into one buffer."""
    return _parts(like, 0, rows, heads_kv, is_sparse, topk)


def _leave_without_work(parts: Tensor) -> None:
    """Fills rows of a schedule whose first sequence is behind their last."""
    parts.zero_()
    parts[:, 2].fill_(-1)


def _decode_schedule(
    like: Tensor,
    cache_seqlens: Tensor | None,
    topk_length: Tensor | None,
    extra_topk_length: Tensor | None,
    batch: int,
    rows: int,
    heads_kv: int,
    max_seqlen: int,
    topk: int,
    extra_topk: int,
) -> tuple[Tensor, Tensor]:
    sizes = (rows, heads_kv, cache_seqlens is None, topk)
    schedule, num_splits = _new_schedule(like, batch, _most_parts(like, *sizes))
    used, unused = schedule.tensor_split((_parts(like, batch, *sizes),))
    if len(unused) > 0:
        _leave_without_work(unused)
    lengths = (cache_seqlens, topk_length, extra_topk_length)
    torch.ops.flash_mla.make_schedule(*lengths, used, num_splits, max_seqlen, topk, extra_topk, 0)
    return schedule, num_splits


for _key in ("CPU", "CUDA"):
    _library.impl("decode_schedule", _decode_schedule, _key)


@torch.library.register_fake("flash_mla::decode_schedule", lib=_library)
def _fake_decode_schedule(
    like: Tensor,
    cache_seqlens: Tensor | None,
    topk_length: Tensor | None,
    extra_topk_length: Tensor | None,
    batch: int,
    rows: int,
    heads_kv: int,
    max_seqlen: int,
    topk: int,
    extra_topk: int,
) -> tuple[Tensor, Tensor]:
    if all(isinstance(number, int) for number in (rows, heads_kv, topk)):
        parts = _most_parts(like, rows, heads_kv, cache_seqlens is None, topk)
    else:
        parts = torch.library.get_ctx().new_dynamic_size()
    return _new_schedule(like, batch, parts)


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
    # A gradient may be any view: that of a sum repeats one number, others begin anywhere.
    d_out = d_out.contiguous()
    if d_out.data_ptr() % 16 != 0:
        d_out = d_out.clone()
    torch.ops.flash_mla.mha_backward(
        q, k, v, out, lse, d_out, cu_seqlens_q, cu_seqlens_k, *gradients, softmax_scale, causal, deterministic
    )
    return gradients


for _key in ("CPU", "CUDA"):
    _library.impl("varlen_attention", _forward, _key)
    _library.impl("varlen_attention_backward", _backward, _key)


@torch.library.register_fake("flash_mla::varlen_attention", lib=_library)
def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    _require_one_device("mha_forward", (q, k, v, *others))
    return _new_outputs(q, v)


@torch.library.register_fake("flash_mla::varlen_attention_backward", lib=_library)
def _fake_backward(q: Tensor, k: Tensor, v: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:
    _require_one_device("mha_backward", (q, k, v, *others))
    return _new_gradients(q, k, v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)


def _differentiate(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
    gradients = torch.ops.flash_mla.varlen_attention_backward(
        q, k, v, out, lse, d_out, cu_seqlens_q, cu_seqlens_k, *ctx.options
    )
    return (*gradients, None, None, None, None, None)


def _differentiate_twice(ctx: Any, *_: Tensor) -> NoReturn:
    raise NotImplementedError("flash_attn_varlen_func: gradients of its gradients are not available")


torch.library.register_autograd("flash_mla::varlen_attention_backward", _differentiate_twice, lib=_library)
torch.library.register_autograd(
    "flash_mla::varlen_attention", _differentiate, setup_context=_save, lib=_library
)
