"""The functions of DeepSeek's ``flash_mla`` package and of vLLM's fork of it, on the kernels of this library.

Names, arguments, their order, defaults and return values are those that callers of these packages use. Tensors live on
a CPU or a CUDA device; work is launched on PyTorch's current stream, and nothing waits for it. On the CPU,
``torch.get_num_threads()`` threads work. Strides are free but for the last dimension, which is contiguous: slices and
caches with padded rows are read where they are.

All raise ``ValueError`` or ``TypeError`` for bad arguments and ``NotImplementedError`` for what no backend computes on
that device, before any output is written.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from flash_mla import _torch_ops  # noqa: F401 (defines torch.ops.flash_mla)
from flash_mla._library import decode_schedule_parts, kernels

__all__ = [
    "FlashMLASchedMeta",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "flash_mla_with_kvcache_fp8",
    "get_mla_metadata",
    "get_mla_metadata_dense_fp8",
    "is_flashmla_dense_supported",
    "is_flashmla_sparse_supported",
]

_DEVICE_TYPES = {"cpu": 1, "cuda": 2}
_LARGEST_LENGTH = 2**31 - 1
_LOG2_E = math.log2(math.e)


# --- schedules ---


@dataclasses.dataclass
class FlashMLASchedMeta:
    """A schedule of decode steps that the first call of :func:`flash_mla_with_kvcache` fills.

    Every later call with it, in other layers of the same step, must have the same shapes and lengths.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """What a schedule was made for."""

        batch: int
        s_q: int
        h_q: int
        h_kv: int
        page: int
        causal: bool
        is_fp8_kvcache: bool
        topk: int | None
        extra_page: int | None
        extra_topk: int | None
        has_topk_length: bool
        has_extra_topk_length: bool

    have_initialized: bool = False
    config: Config | None = None
    tile_scheduler_metadata: Tensor | None = None
    """i32 ``[parts, 8]``."""
    num_splits: Tensor | None = None
    """i32 ``[batch + 1]``."""


@torch.compiler.assume_constant_result
def _schedule_parts(device_type: str, index: int | None, rows: int, heads_kv: int, topk: int | None) -> int:
    """Rows of a schedule for so many query rows of each kv head."""
    number = _DEVICE_TYPES.get(device_type, 1)
    return decode_schedule_parts(number, index or 0, 1, rows, heads_kv, -1 if topk is None else topk)


def _make_schedule(
    lengths: Tensor,
    batch: int,
    rows: int,
    heads_kv: int,
    max_seqlen: int | None,
    topk: int | None,
    extra_topk: int | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Schedule and number of splits. ``lengths``, on the device of the schedule, counts for dense decode."""
    device = lengths.device
    parts = _schedule_parts(device.type, device.index, rows, heads_kv, topk)
    schedule = torch.empty(parts, 8, dtype=torch.int32, device=device)
    num_splits = torch.empty(batch + 1, dtype=torch.int32, device=device)
    if topk is None:
        arguments = (lengths, None, None, schedule, num_splits, max_seqlen, 0, 0)
    else:
        arguments = (None, topk_length, extra_topk_length, schedule, num_splits, -1, topk, extra_topk or 0)
    torch.ops.flash_mla.make_schedule(*arguments, 0)
    return schedule, num_splits


def _metadata_of_lengths(
    cache_seqlens: Tensor,
    num_q_tokens_per_head_k: int,
    num_heads_k: int,
    num_heads_q: int | None = None,
    is_fp8_kvcache: bool = False,
    topk: int | None = None,
) -> tuple[Tensor, Tensor]:
    # The width of the block table, which bounds the lengths, is not known here: any length counts.
    return _make_schedule(
        cache_seqlens, cache_seqlens.shape[0], num_q_tokens_per_head_k, num_heads_k, _LARGEST_LENGTH, topk
    )


def get_mla_metadata(
    *args: object, **kwargs: object
) -> tuple[FlashMLASchedMeta, None] | tuple[Tensor, Tensor]:
    """The schedule that :func:`flash_mla_with_kvcache` takes as its arguments 6 and 7.

    Without arguments: an empty :class:`FlashMLASchedMeta`, filled at its first use, and None.

    With the arguments ``(cache_seqlens, num_q_tokens_per_head_k, num_heads_k, num_heads_q=None,
    is_fp8_kvcache=False, topk=None)``: the schedule itself, i32 ``[parts, 8]``, and the number of splits before each
    sequence, i32 ``[batch + 1]``. ``cache_seqlens`` is i32 ``[batch]``; ``num_q_tokens_per_head_k`` is
    ``s_q * h_q / h_kv``; ``topk`` is given for sparse decode.
    """
    if not args and not kwargs:
        return FlashMLASchedMeta(), None
    return _metadata_of_lengths(*args, **kwargs)


def get_mla_metadata_dense_fp8(
    cache_seqlens: Tensor, num_q_tokens_per_head_k: int, num_heads_k: int
) -> tuple[Tensor, Tensor]:
    """The schedule for :func:`flash_mla_with_kvcache_fp8`: as the older style of :func:`get_mla_metadata`."""
    return _metadata_of_lengths(cache_seqlens, num_q_tokens_per_head_k, num_heads_k)


def _require_same(name: str, made_for: FlashMLASchedMeta.Config, used_for: FlashMLASchedMeta.Config) -> None:
    if made_for == used_for:
        return
    changed = [
        f"{field.name}={getattr(made_for, field.name)}, got {getattr(used_for, field.name)}"
        for field in dataclasses.fields(made_for)
        if getattr(made_for, field.name) != getattr(used_for, field.name)
    ]
    raise ValueError(f"{name}: tile_scheduler_metadata was made for " + "; ".join(changed))


# --- decode ---


def _bytes(cache: Tensor | None) -> Tensor | None:
    """A cache with one-byte elements of any type as u8."""
    if cache is None or cache.element_size() != 1 or cache.dtype == torch.uint8:
        return cache
    return cache.view(torch.uint8)


def _require_dims(name: str, argument: str, tensor: Tensor, dims: str) -> None:
    if tensor.dim() != dims.count(" ") + 1:
        raise ValueError(f"{name}: {argument} must have shape {dims}, got {list(tensor.shape)}")


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta | Tensor | None,
    num_splits: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of a few new query tokens over a paged cache: dense, or over chosen tokens if ``indices`` is given.

    Args:
        q: bf16 or f16 ``[batch, s_q, h_q, d_qk]``.
        k_cache: dense: type of ``q``, ``[blocks, page, h_kv, d_qk]``. Sparse: bf16 of that shape, or with
            ``is_fp8_kvcache`` one-byte elements ``[blocks, page, 1, 656]`` (V3.2) or ``[blocks, page, 1, 584]``.
        block_table: i32 ``[batch, max_blocks]``; dense only.
        cache_seqlens: i32 ``[batch]``, tokens in the cache, new ones included; dense only.
        head_dim_v: width of a value, the first columns of a row.
        tile_scheduler_metadata: from :func:`get_mla_metadata`; None splits the work anew.
        num_splits: the second result of :func:`get_mla_metadata`.
        softmax_scale: factor of the logits; default ``1 / sqrt(d_qk)``.
        causal: query ``i`` of ``s_q`` sees tokens ``t <= cache_seqlens - s_q + i``; dense only.
        is_fp8_kvcache: the caches have an FP8 format; sparse only.
        indices: i32 ``[batch, s_q, topk]``, places in the cache, ``block * page + row``; others are skipped.
        attn_sink: f32 ``[h_q]``; ``out`` is multiplied by ``exp(lse) / (exp(lse) + exp(attn_sink))``.
        extra_k_cache: a second cache of the same format with a page size of its own.
        extra_indices_in_kvcache: i32 ``[batch, s_q, extra_topk]``, places in it.
        topk_length: i32 ``[batch]``: only so many of ``indices`` count, from the left.
        extra_topk_length: i32 ``[batch]``.
        out: where to write; a new tensor if None.

    Returns:
        ``out``, type of ``q``, ``[batch, s_q, h_q, head_dim_v]``, and the natural logarithm of the sum of exponentials,
        f32 ``[batch, h_q, s_q]``. A query that sees nothing has 0 and ``+inf``.
    """
    name = "flash_mla_with_kvcache"
    _require_dims(name, "q", q, "[batch, s_q, h_q, d_qk]")
    _require_dims(name, "k_cache", k_cache, "[blocks, page, h_kv, row]")
    if indices is None:
        _require_dense_arguments(
            name,
            block_table,
            cache_seqlens,
            is_fp8_kvcache=is_fp8_kvcache,
            attn_sink=attn_sink,
            extra_k_cache=extra_k_cache,
            extra_indices_in_kvcache=extra_indices_in_kvcache,
            topk_length=topk_length,
            extra_topk_length=extra_topk_length,
        )
    else:
        _require_sparse_arguments(name, indices, k_cache, causal, is_fp8_kvcache, extra_indices_in_kvcache)
    batch, s_q, h_q, _ = q.shape
    schedule, num_splits = _schedule_tensors(
        name,
        tile_scheduler_metadata,
        num_splits,
        q,
        k_cache,
        block_table,
        cache_seqlens,
        causal,
        is_fp8_kvcache,
        indices,
        extra_k_cache,
        extra_indices_in_kvcache,
        topk_length,
        extra_topk_length,
    )
    if out is None:
        out = q.new_empty(batch, s_q, h_q, head_dim_v)
    elif out.shape[-1] != head_dim_v:
        raise ValueError(f"{name}: out must have head_dim_v={head_dim_v} columns, got {out.shape[-1]}")
    lse = q.new_empty(batch, h_q, s_q, dtype=torch.float32)
    if indices is None:
        torch.ops.flash_mla.dense_decode(
            q,
            k_cache,
            block_table,
            cache_seqlens,
            schedule,
            num_splits,
            None,
            None,
            out,
            lse,
            softmax_scale,
            causal,
            0,
        )
    else:
        torch.ops.flash_mla.sparse_decode(
            q,
            _bytes(k_cache),
            indices,
            topk_length,
            attn_sink,
            _bytes(extra_k_cache),
            extra_indices_in_kvcache,
            extra_topk_length,
            schedule,
            num_splits,
            out,
            lse,
            softmax_scale,
            0,
        )
    return out, lse


def _require_dense_arguments(
    name: str,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    is_fp8_kvcache: bool,
    **of_sparse: Tensor | None,
) -> None:
    if block_table is None or cache_seqlens is None:
        missing = "block_table" if block_table is None else "cache_seqlens"
        raise ValueError(f"{name}: {missing} must be given without indices, got None")
    _require_dims(name, "block_table", block_table, "[batch, max_blocks]")
    if is_fp8_kvcache:
        raise NotImplementedError(
            f"{name}: is_fp8_kvcache needs indices; over a plain e4m3 cache call flash_mla_with_kvcache_fp8"
        )
    for argument, tensor in of_sparse.items():
        if tensor is not None:
            raise ValueError(f"{name}: {argument} belongs to sparse decode, but indices is None")


def _require_sparse_arguments(
    name: str,
    indices: Tensor,
    k_cache: Tensor,
    causal: bool,
    is_fp8_kvcache: bool,
    extra_indices: Tensor | None,
) -> None:
    _require_dims(name, "indices", indices, "[batch, s_q, topk]")
    if extra_indices is not None:
        _require_dims(name, "extra_indices_in_kvcache", extra_indices, "[batch, s_q, extra_topk]")
    if causal:
        raise ValueError(f"{name}: causal must be False with indices: they alone say what a query sees")
    if is_fp8_kvcache != (k_cache.element_size() == 1):
        expected = "one-byte elements" if is_fp8_kvcache else "bf16"
        raise TypeError(
            f"{name}: k_cache must have {expected} with is_fp8_kvcache={is_fp8_kvcache}, got {k_cache.dtype}"
        )


def _schedule_tensors(
    name: str,
    given: FlashMLASchedMeta | Tensor | None,
    num_splits: Tensor | None,
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    causal: bool,
    is_fp8_kvcache: bool,
    indices: Tensor | None,
    extra_k_cache: Tensor | None,
    extra_indices: Tensor | None,
    topk_length: Tensor | None,
    extra_topk_length: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The tensors of a schedule in either style; fills an empty FlashMLASchedMeta."""
    if not isinstance(given, FlashMLASchedMeta):
        return given, num_splits
    batch, s_q, h_q, _ = q.shape
    _, page, h_kv, _ = k_cache.shape
    config = FlashMLASchedMeta.Config(
        batch=batch,
        s_q=s_q,
        h_q=h_q,
        h_kv=h_kv,
        page=page,
        causal=causal,
        is_fp8_kvcache=is_fp8_kvcache,
        topk=None if indices is None else indices.shape[-1],
        extra_page=None if extra_k_cache is None else extra_k_cache.shape[1],
        extra_topk=None if extra_indices is None else extra_indices.shape[-1],
        has_topk_length=topk_length is not None,
        has_extra_topk_length=extra_topk_length is not None,
    )
    if given.have_initialized:
        _require_same(name, given.config, config)
        return given.tile_scheduler_metadata, given.num_splits
    schedule, num_splits = _make_schedule(
        q if indices is not None else cache_seqlens,
        batch,
        s_q * h_q // max(h_kv, 1),
        h_kv,
        None if block_table is None else block_table.shape[1] * page,
        config.topk,
        config.extra_topk,
        topk_length,
        extra_topk_length,
    )
    given.tile_scheduler_metadata, given.num_splits = schedule, num_splits
    given.config = config
    given.have_initialized = True
    return schedule, num_splits


def _scale_of_each_sequence(name: str, argument: str, scale: Tensor | None, batch: int) -> Tensor | None:
    """f32 ``[batch]`` of a scale that may be one for all."""
    if scale is None or scale.shape == (batch,):
        return scale
    if scale.numel() != 1:
        raise ValueError(f"{name}: {argument} must be f32 [batch={batch}] or [1], got {list(scale.shape)}")
    return scale.reshape(1).repeat(batch)


def flash_mla_with_kvcache_fp8(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    head_dim_v: int,
    tile_scheduler_metadata: Tensor | None,
    num_splits: Tensor | None,
    softmax_scale: float | None = None,
    causal: bool = False,
    descale_q: Tensor | None = None,
    descale_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Dense decode over a cache of plain e4m3 numbers with one scale for each sequence.

    Args:
        q: e4m3, bf16 or f16 ``[batch, s_q, h_q, d_qk]``.
        k_cache: e4m3 ``[blocks, page, h_kv, d_qk]``.
        block_table: i32 ``[batch, max_blocks]``.
        cache_seqlens: i32 ``[batch]``, tokens in the cache, new ones included.
        head_dim_v: width of a value, the first columns of a row.
        tile_scheduler_metadata: from :func:`get_mla_metadata_dense_fp8`; None splits the work anew.
        num_splits: the second result of it.
        softmax_scale: factor of the logits; default ``1 / sqrt(d_qk)``.
        causal: query ``i`` of ``s_q`` sees tokens ``t <= cache_seqlens - s_q + i``.
        descale_q: f32 ``[batch]`` or ``[1]``, what queries are multiplied by; default 1.
        descale_k: the same of keys and values.

    Returns:
        ``out`` ``[batch, s_q, h_q, head_dim_v]``, bf16 if ``q`` is e4m3 and else its type, and the natural logarithm of
        the sum of exponentials, f32 ``[batch, h_q, s_q]``.
    """
    name = "flash_mla_with_kvcache_fp8"
    _require_dims(name, "q", q, "[batch, s_q, h_q, d_qk]")
    if k_cache.dtype not in (torch.float8_e4m3fn, torch.uint8):
        raise TypeError(f"{name}: k_cache must be float8_e4m3fn (or its bytes, uint8), got {k_cache.dtype}")
    if q.dtype == torch.float8_e4m3fn:
        q = q.to(torch.bfloat16)  # exact
    batch, s_q, h_q, _ = q.shape
    out = q.new_empty(batch, s_q, h_q, head_dim_v)
    lse = q.new_empty(batch, h_q, s_q, dtype=torch.float32)
    torch.ops.flash_mla.dense_decode(
        q,
        _bytes(k_cache),
        block_table,
        cache_seqlens,
        tile_scheduler_metadata,
        num_splits,
        _scale_of_each_sequence(name, "descale_q", descale_q, batch),
        _scale_of_each_sequence(name, "descale_k", descale_k, batch),
        out,
        lse,
        softmax_scale,
        causal,
        0,
    )
    return out, lse


# --- prefill ---


def flash_mla_sparse_fwd(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    out: Tensor | None = None,
    *,
    base2: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of many query tokens over the tokens that each has chosen.

    Args:
        q: bf16 ``[s_q, h_q, d_qk]``.
        kv: bf16 ``[s_kv, h_kv, d_qk]``; a value is the first ``d_v`` columns.
        indices: i32 ``[s_q, h_kv, topk]``; those outside ``[0, s_kv)`` are skipped.
        sm_scale: factor of the logits.
        d_v: width of a value.
        attn_sink: f32 ``[h_q]``; ``out`` is multiplied by ``exp(lse) / (exp(lse) + exp(attn_sink))``.
        topk_length: i32 ``[s_q]``: only so many of ``indices`` count, from the left.
        out: where to write; a new tensor if None.
        base2: return ``max_logits`` and ``lse`` to the base 2, as the first versions of DeepSeek's package did.

    Returns:
        ``out``, bf16 ``[s_q, h_q, d_v]``, the largest logit and the natural logarithm of the sum of exponentials, both
        f32 ``[s_q, h_q]``. A query that sees nothing has 0, ``-inf`` and ``+inf``.
    """
    name = "flash_mla_sparse_fwd"
    _require_dims(name, "q", q, "[s_q, h_q, d_qk]")
    s_q, h_q, _ = q.shape
    if out is None:
        out = q.new_empty(s_q, h_q, d_v)
    elif out.shape[-1] != d_v:
        raise ValueError(f"{name}: out must have d_v={d_v} columns, got {out.shape[-1]}")
    max_logits = q.new_empty(s_q, h_q, dtype=torch.float32)
    lse = torch.empty_like(max_logits)
    torch.ops.flash_mla.sparse_prefill(q, kv, indices, attn_sink, topk_length, out, max_logits, lse, sm_scale)
    if base2:
        return out, max_logits * _LOG2_E, lse * _LOG2_E
    return out, max_logits, lse


# --- multi-head attention ---


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_qo: Tensor,
    cu_seqlens_kv: Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[Tensor, Tensor]:
    """Multi-head attention over sequences that stand behind each other; gradients reach ``q``, ``k`` and ``v``.

    Args:
        q: bf16 or f16 ``[total_q, h_q, d_qk]``.
        k: ``[total_k, h_kv, d_qk]``; query head ``j`` reads head ``j / (h_q / h_kv)``.
        v: ``[total_k, h_kv, d_v]``.
        cu_seqlens_qo: i32 ``[batch + 1]``, where the queries of each sequence begin, and their end.
        cu_seqlens_kv: the same of keys.
        max_seqlen_qo: not used; no limit here depends on it.
        max_seqlen_kv: not used.
        dropout_p: must be 0.
        softmax_scale: factor of the logits; default ``1 / sqrt(d_qk)``.
        causal: query ``i`` sees keys ``t <= len_k - len_q + i``.
        deterministic: the same bits of the gradient of ``q`` in every run too.
        is_varlen: not used; equal lengths need no other treatment.

    Returns:
        ``out``, type of ``q``, ``[total_q, h_q, d_v]``, and the natural logarithm of the sum of exponentials,
        f32 ``[total_q, h_q]``, through which no gradient flows.
    """
    if dropout_p != 0:
        raise NotImplementedError(f"flash_attn_varlen_func: dropout_p must be 0, got {dropout_p}")
    return torch.ops.flash_mla.varlen_attention(
        q, k, v, cu_seqlens_qo, cu_seqlens_kv, softmax_scale, causal, deterministic
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`flash_attn_varlen_func` with queries, keys and values side by side: ``qkv`` is
    ``[total, h, 2 * head_dim_qk + d_v]``."""
    _require_dims("flash_attn_varlen_qkvpacked_func", "qkv", qkv, "[total, h, 2*head_dim_qk+d_v]")
    q, k, v = qkv.tensor_split((head_dim_qk, 2 * head_dim_qk), dim=-1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        deterministic,
        is_varlen,
    )


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_qo: Tensor,
    cu_seqlens_kv: Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
    is_varlen: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`flash_attn_varlen_func` with keys and values side by side: ``kv`` is ``[total_k, h_kv, head_dim_qk +
    d_v]``."""
    _require_dims("flash_attn_varlen_kvpacked_func", "kv", kv, "[total_k, h_kv, head_dim_qk+d_v]")
    k, v = kv.tensor_split((head_dim_qk,), dim=-1)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_qo,
        cu_seqlens_kv,
        max_seqlen_qo,
        max_seqlen_kv,
        dropout_p,
        softmax_scale,
        causal,
        deterministic,
        is_varlen,
    )


# --- what runs here ---


def _is_supported(operation: str, device: torch.device | str | int | None) -> tuple[bool, str | None]:
    """Whether a backend other than the slow reference has the operation on this device, and if not, why."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type not in _DEVICE_TYPES:
        return False, f"{operation}: no backend for devices of type {device.type}"
    rows = [
        row
        for row in kernels(_DEVICE_TYPES[device.type], device.index or 0)
        if row["operation"] == operation and row["backend"] != "reference"
    ]
    if any(row["available"] for row in rows):
        return True, None
    return False, f"{operation}: " + "; ".join(f"{row['name']} {row['reason']}" for row in rows)


def is_flashmla_dense_supported(device: torch.device | str | int | None = None) -> tuple[bool, str | None]:
    """Whether dense decode runs on this device; if not, the reason. None: CUDA where there is one, else the CPU."""
    return _is_supported("dense_decode", device)


def is_flashmla_sparse_supported(device: torch.device | str | int | None = None) -> tuple[bool, str | None]:
    """As :func:`is_flashmla_dense_supported`, for sparse decode."""
    return _is_supported("sparse_decode", device)
