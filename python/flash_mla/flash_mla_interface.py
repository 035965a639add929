"""The functions of DeepSeek's ``flash_mla`` package and of vLLM's fork of it, on this library's kernels.

Names, arguments, their order, defaults and return values are those that callers of these packages use.
Tensors live on a CPU or a CUDA device; work is launched on PyTorch's current stream, and nothing waits for
it. On the CPU, ``torch.get_num_threads()`` threads work. Strides are free but for the last dimension, which
is contiguous: slices and caches with padded rows are read where they are.

All raise ``ValueError`` or ``TypeError`` for bad arguments and ``NotImplementedError`` for what no backend
computes on that device, before any output is written.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flash_mla._arguments import require_dims, require_flag, require_scale, require_tensors
from flash_mla._library import kernels
from flash_mla._schedules import (
    FlashMLASchedMeta,
    dense_plan,
    get_mla_metadata,
    get_mla_metadata_dense_fp8,
    sparse_plan,
)
from flash_mla._torch_ops import DEVICE_TYPES

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

_LOG2_E = math.log2(math.e)


_dense_decode = torch.ops.flash_mla.dense_decode.default
_sparse_decode = torch.ops.flash_mla.sparse_decode.default
_sparse_prefill = torch.ops.flash_mla.sparse_prefill.default
_varlen_attention = torch.ops.flash_mla.varlen_attention.default


# --- decode ---


def _bytes(name: str, argument: str, cache: Tensor | None) -> Tensor | None:
    """A cache of FP8 as u8."""
    if cache is None or cache.element_size() != 1 or cache.dtype == torch.uint8:
        return cache
    if cache.dtype not in (torch.float8_e4m3fn, torch.int8):
        raise TypeError(f"{name}: {argument} must be float8_e4m3fn or its bytes, got {cache.dtype}")
    return cache.view(torch.uint8)


def _output(name: str, out: Tensor | None, q: Tensor, argument: str, width: int) -> Tensor:
    """Where to write the result: as wide as asked for."""
    if not isinstance(width, (int, torch.SymInt)):
        raise TypeError(f"{name}: {argument} must be an integer, got {type(width).__name__}")
    require_tensors(name, out=out)
    if not 0 <= width <= q.shape[-1]:
        raise ValueError(f"{name}: {argument} must be 0 to {q.shape[-1]}, the columns of q, got {width}")
    if out is None:
        return q.new_empty(*q.shape[:-1], width)
    if out.shape[-1:] != (width,):
        raise ValueError(f"{name}: out must have {argument}={width} columns, got shape {list(out.shape)}")
    return out


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
    """Attention of a few new query tokens over a paged cache: all of it, or the tokens in ``indices``.

    Args:
        q: bf16 or f16 ``[batch, s_q, h_q, d_qk]``.
        k_cache: dense: type of ``q``, ``[blocks, page, h_kv, d_qk]``. Sparse: bf16 of that shape, or with
            ``is_fp8_kvcache`` one-byte elements ``[blocks, page, 1, 656]`` (V3.2) or
            ``[blocks, page, 1, 584]``.
        block_table: i32 ``[batch, max_blocks]``; dense only.
        cache_seqlens: i32 ``[batch]``, tokens in the cache, new ones included; dense only.
        head_dim_v: width of a value, the first columns of a row.
        tile_scheduler_metadata: from :func:`get_mla_metadata`; None splits the work anew.
        num_splits: the second result of :func:`get_mla_metadata`.
        softmax_scale: factor of the logits; default ``1 / sqrt(d_qk)``. A bool stands for ``causal``: then
            ``is_fp8_kvcache`` and ``indices`` follow, as in the README of DeepSeek's package.
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
        ``out``, type of ``q``, ``[batch, s_q, h_q, head_dim_v]``, and the natural logarithm of the sum of
        exponentials, f32 ``[batch, h_q, s_q]``. A query that sees nothing has 0 and ``+inf``.
    """
    name = "flash_mla_with_kvcache"
    if isinstance(softmax_scale, bool):  # causal, is_fp8_kvcache, indices: the order in DeepSeek's README
        if isinstance(is_fp8_kvcache, Tensor):
            is_fp8_kvcache, indices = False, is_fp8_kvcache
        softmax_scale, causal, is_fp8_kvcache = None, softmax_scale, bool(causal or is_fp8_kvcache)
    require_scale(name, "softmax_scale", softmax_scale)
    require_flag(name, "causal", causal)
    require_flag(name, "is_fp8_kvcache", is_fp8_kvcache)
    require_dims(name, "q", q, 4, "[batch, s_q, h_q, d_qk]")
    require_dims(name, "k_cache", k_cache, 4, "[blocks, page, h_kv, row]")
    out = _output(name, out, q, "head_dim_v", head_dim_v)
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    if indices is None:
        of_sparse = {
            "attn_sink": attn_sink,
            "extra_k_cache": extra_k_cache,
            "extra_indices_in_kvcache": extra_indices_in_kvcache,
            "topk_length": topk_length,
            "extra_topk_length": extra_topk_length,
        }
        _require_dense(name, k_cache, is_fp8_kvcache, of_sparse)
        plan = dense_plan(
            name, tile_scheduler_metadata, num_splits, q, k_cache, block_table, cache_seqlens, causal
        )
        _dense_decode(
            q,
            k_cache,
            block_table,
            cache_seqlens,
            plan.schedule,
            plan.num_splits,
            None,
            None,
            out,
            lse,
            softmax_scale,
            causal,
            0,
        )
    else:
        _require_sparse(
            name, indices, extra_indices_in_kvcache, k_cache, extra_k_cache, causal, is_fp8_kvcache
        )
        require_tensors(
            name, attn_sink=attn_sink, topk_length=topk_length, extra_topk_length=extra_topk_length
        )
        plan = sparse_plan(
            name,
            tile_scheduler_metadata,
            num_splits,
            q,
            k_cache,
            is_fp8_kvcache,
            indices,
            extra_k_cache,
            extra_indices_in_kvcache,
            topk_length,
            extra_topk_length,
        )
        _sparse_decode(
            q,
            _bytes(name, "k_cache", k_cache),
            indices,
            topk_length,
            attn_sink,
            _bytes(name, "extra_k_cache", extra_k_cache),
            extra_indices_in_kvcache,
            extra_topk_length,
            plan.schedule,
            plan.num_splits,
            out,
            lse,
            softmax_scale,
            0,
        )
    plan.keep()
    return out, lse


def _require_dense(
    name: str, k_cache: Tensor, is_fp8_kvcache: bool, of_sparse: dict[str, Tensor | None]
) -> None:
    if is_fp8_kvcache or k_cache.element_size() == 1:
        raise NotImplementedError(
            f"{name}: a cache of FP8 needs indices; over plain e4m3 numbers call flash_mla_with_kvcache_fp8"
        )
    for argument, tensor in of_sparse.items():
        if tensor is not None:
            raise ValueError(f"{name}: {argument} belongs to sparse decode, but indices is None")


def _require_sparse(
    name: str,
    indices: Tensor,
    extra_indices: Tensor | None,
    k_cache: Tensor,
    extra_k_cache: Tensor | None,
    causal: bool,
    is_fp8_kvcache: bool,
) -> None:
    require_dims(name, "indices", indices, 3, "[batch, s_q, topk]")
    if extra_indices is not None:
        require_dims(name, "extra_indices_in_kvcache", extra_indices, 3, "[batch, s_q, extra_topk]")
    if extra_k_cache is not None:
        require_dims(name, "extra_k_cache", extra_k_cache, 4, "[blocks, page, h_kv, row]")
    if causal:
        raise ValueError(f"{name}: causal must be False with indices: they alone say what a query sees")
    if is_fp8_kvcache != (k_cache.element_size() == 1):
        expected = "one-byte elements" if is_fp8_kvcache else "bf16"
        raise TypeError(
            f"{name}: k_cache must have {expected} with is_fp8_kvcache={is_fp8_kvcache}, got {k_cache.dtype}"
        )


def _scale_of_each_sequence(name: str, argument: str, scale: Tensor | None, batch: int) -> Tensor | None:
    """f32 ``[batch]`` of a scale that may be one for all."""
    if scale is None:
        return None
    if not isinstance(scale, Tensor):
        raise TypeError(f"{name}: {argument} must be a tensor [batch] or [1], got {type(scale).__name__}")
    if scale.shape == (batch,):
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
    tile_scheduler_metadata: FlashMLASchedMeta | Tensor | None,
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
        ``out`` ``[batch, s_q, h_q, head_dim_v]``, bf16 if ``q`` is e4m3 and else its type, and the natural
        logarithm of the sum of exponentials, f32 ``[batch, h_q, s_q]``.
    """
    name = "flash_mla_with_kvcache_fp8"
    require_dims(name, "q", q, 4, "[batch, s_q, h_q, d_qk]")
    require_dims(name, "k_cache", k_cache, 4, "[blocks, page, h_kv, d_qk]")
    if k_cache.element_size() != 1:
        raise TypeError(f"{name}: k_cache must be float8_e4m3fn or its bytes, got {k_cache.dtype}")
    require_scale(name, "softmax_scale", softmax_scale)
    require_flag(name, "causal", causal)
    if q.dtype == torch.float8_e4m3fn:
        q = q.to(torch.bfloat16)  # exact
    batch, s_q, h_q, _ = q.shape
    out = _output(name, None, q, "head_dim_v", head_dim_v)
    lse = q.new_empty(batch, h_q, s_q, dtype=torch.float32)
    plan = dense_plan(
        name, tile_scheduler_metadata, num_splits, q, k_cache, block_table, cache_seqlens, causal
    )
    _dense_decode(
        q,
        _bytes(name, "k_cache", k_cache),
        block_table,
        cache_seqlens,
        plan.schedule,
        plan.num_splits,
        _scale_of_each_sequence(name, "descale_q", descale_q, batch),
        _scale_of_each_sequence(name, "descale_k", descale_k, batch),
        out,
        lse,
        softmax_scale,
        causal,
        0,
    )
    plan.keep()
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
        base2: return ``max_logits`` and ``lse`` to the base 2, as early versions of DeepSeek's package did.

    Returns:
        ``out``, bf16 ``[s_q, h_q, d_v]``, the largest logit and the natural logarithm of the sum of
        exponentials, both f32 ``[s_q, h_q]``. A query that sees nothing has 0, ``-inf`` and ``+inf``.
    """
    name = "flash_mla_sparse_fwd"
    require_tensors(name, kv=kv, indices=indices, attn_sink=attn_sink, topk_length=topk_length)
    require_scale(name, "sm_scale", sm_scale)
    require_dims(name, "q", q, 3, "[s_q, h_q, d_qk]")
    s_q, h_q, _ = q.shape
    out = _output(name, out, q, "d_v", d_v)
    max_logits = q.new_empty(s_q, h_q, dtype=torch.float32)
    lse = torch.empty_like(max_logits)
    _sparse_prefill(q, kv, indices, attn_sink, topk_length, out, max_logits, lse, sm_scale)
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
    """Multi-head attention over sequences that stand behind each other; differentiable.

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
    name = "flash_attn_varlen_func"
    require_dims(name, "q", q, 3, "[total_q, h_q, d_qk]")
    require_dims(name, "k", k, 3, "[total_k, h_kv, d_qk]")
    require_dims(name, "v", v, 3, "[total_k, h_kv, d_v]")
    require_dims(name, "cu_seqlens_qo", cu_seqlens_qo, 1, "[batch+1]")
    require_dims(name, "cu_seqlens_kv", cu_seqlens_kv, 1, "[batch+1]")
    require_scale(name, "softmax_scale", softmax_scale)
    require_flag(name, "causal", causal)
    require_flag(name, "deterministic", deterministic)
    if dropout_p != 0:
        raise NotImplementedError(f"{name}: dropout_p must be 0, got {dropout_p}")
    return _varlen_attention(q, k, v, cu_seqlens_qo, cu_seqlens_kv, softmax_scale, causal, deterministic)


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
    require_dims("flash_attn_varlen_qkvpacked_func", "qkv", qkv, 3, "[total, h, 2*head_dim_qk+d_v]")
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
    """:func:`flash_attn_varlen_func` with keys and values side by side: ``kv`` is
    ``[total_k, h_kv, head_dim_qk + d_v]``."""
    require_dims("flash_attn_varlen_kvpacked_func", "kv", kv, 3, "[total_k, h_kv, head_dim_qk+d_v]")
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
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type not in DEVICE_TYPES:
        return False, f"{operation}: no backend for devices of type {device.type}"
    rows = [
        row
        for row in kernels(DEVICE_TYPES[device.type], device.index or 0)
        if row["operation"] == operation and row["backend"] != "reference"
    ]
    if any(row["available"] for row in rows):
        return True, None
    return False, f"{operation}: " + "; ".join(f"{row['name']} {row['reason']}" for row in rows)


def is_flashmla_dense_supported(device: torch.device | str | int | None = None) -> tuple[bool, str | None]:
    """Whether dense decode runs on this device; if not, why.

    None means a CUDA device where there is one, and the CPU otherwise.
    """
    return _is_supported("dense_decode", device)


def is_flashmla_sparse_supported(device: torch.device | str | int | None = None) -> tuple[bool, str | None]:
    """As :func:`is_flashmla_dense_supported`, for sparse decode."""
    return _is_supported("sparse_decode", device)
