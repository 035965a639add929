"""How decode work is split: schedules in both styles of the metadata functions."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from flash_mla import _torch_ops  # noqa: F401 (defines torch.ops.flash_mla)
from flash_mla._arguments import LARGEST_COUNT, require_count, require_dims, require_tensors

_decode_schedule = torch.ops.flash_mla.decode_schedule.default


class MadeFor(NamedTuple):
    """What a schedule was made for."""

    batch: int
    s_q: int
    h_q: int
    h_kv: int
    page: int
    causal: bool
    is_fp8_kvcache: bool
    topk: int | None = None
    extra_page: int | None = None
    extra_topk: int | None = None
    topk_length: bool = False
    extra_topk_length: bool = False


@dataclasses.dataclass
class FlashMLASchedMeta:
    """A schedule of decode steps that the first call of :func:`flash_mla_with_kvcache` fills.

    Every later call with it, in other layers of the same step, must have the same shapes and lengths.
    """

    have_initialized: bool = False
    config: MadeFor | None = None
    tile_scheduler_metadata: Tensor | None = None
    """i32 ``[parts, 8]``."""
    num_splits: Tensor | None = None
    """i32 ``[batch + 1]``."""

    def fill(self, config: MadeFor, schedule: Tensor, num_splits: Tensor) -> None:
        """Takes a schedule that was made for ``config``."""
        self.tile_scheduler_metadata, self.num_splits = schedule, num_splits
        self.config = config
        self.have_initialized = True

    def require_same(self, name: str, config: MadeFor) -> None:
        """Raises ``ValueError`` that says what changed unless the schedule was made for ``config``."""
        if config == self.config:
            return
        changed = [
            f"{field}={made_for}, got {given}"
            for field, made_for, given in zip(config._fields, self.config, config, strict=True)
            if made_for != given
        ]
        raise ValueError(f"{name}: tile_scheduler_metadata was made for {'; '.join(changed)}")


def _dense_schedule(lengths: Tensor, rows: int, heads_kv: int, longest: int) -> tuple[Tensor, Tensor]:
    return _decode_schedule(lengths, lengths, None, None, lengths.shape[0], rows, heads_kv, longest, 0, 0)


def _sparse_schedule(
    like: Tensor,
    batch: int,
    rows: int,
    heads_kv: int,
    topk: int,
    extra_topk: int = 0,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    lengths = (None, topk_length, extra_topk_length)
    return _decode_schedule(like, *lengths, batch, rows, heads_kv, -1, topk, extra_topk)


def _metadata_of_lengths(
    cache_seqlens: Tensor,
    num_q_tokens_per_head_k: int,
    num_heads_k: int,
    num_heads_q: int | None = None,
    is_fp8_kvcache: bool = False,
    topk: int | None = None,
) -> tuple[Tensor, Tensor]:
    name = "get_mla_metadata"
    require_dims(name, "cache_seqlens", cache_seqlens, 1, "[batch]")
    require_count(name, "num_q_tokens_per_head_k", num_q_tokens_per_head_k)
    require_count(name, "num_heads_k", num_heads_k)
    if topk is not None:
        require_count(name, "topk", topk)
        batch = cache_seqlens.shape[0]
        return _sparse_schedule(cache_seqlens, batch, num_q_tokens_per_head_k, num_heads_k, topk)
    # The width of the block table, which bounds the lengths, is not known here: any length counts.
    return _dense_schedule(cache_seqlens, num_q_tokens_per_head_k, num_heads_k, LARGEST_COUNT)


_metadata_of_lengths.__qualname__ = "get_mla_metadata"  # as Python's own errors call it


def get_mla_metadata(
    *args: object, **kwargs: object
) -> tuple[FlashMLASchedMeta, None] | tuple[Tensor, Tensor]:
    """The schedule that :func:`flash_mla_with_kvcache` takes as its arguments 6 and 7.

    Without arguments: an empty :class:`FlashMLASchedMeta`, filled at its first use, and None.

    With the arguments ``(cache_seqlens, num_q_tokens_per_head_k, num_heads_k, num_heads_q=None,
    is_fp8_kvcache=False, topk=None)``: the schedule itself, i32 ``[parts, 8]``, and the number of splits
    before each sequence, i32 ``[batch + 1]``. ``cache_seqlens`` is i32 ``[batch]``;
    ``num_q_tokens_per_head_k`` is ``s_q * h_q / h_kv``; ``topk`` is given for sparse decode.
    """
    if not args and not kwargs:
        return FlashMLASchedMeta(), None
    return _metadata_of_lengths(*args, **kwargs)


def get_mla_metadata_dense_fp8(
    cache_seqlens: Tensor, num_q_tokens_per_head_k: int, num_heads_k: int
) -> tuple[Tensor, Tensor]:
    """The schedule for :func:`flash_mla_with_kvcache_fp8`: as the older style of :func:`get_mla_metadata`."""
    return _metadata_of_lengths(cache_seqlens, num_q_tokens_per_head_k, num_heads_k)


class Plan(NamedTuple):
    """What a decode call runs with, and where it stays for the next calls."""

    schedule: Tensor | None
    num_splits: Tensor | None
    config: MadeFor | None = None
    filled: FlashMLASchedMeta | None = None

    def keep(self) -> None:
        """After the first call has succeeded, others may use its schedule."""
        if self.filled is not None:
            self.filled.fill(self.config, self.schedule, self.num_splits)


def _given_plan(name: str, given: object, num_splits: Tensor | None) -> Plan:
    """The older style. A schedule without its number of splits, as vLLM passes it, is made anew."""
    require_tensors(name, tile_scheduler_metadata=given, num_splits=num_splits)
    return Plan(None, None) if num_splits is None else Plan(given, num_splits)


def dense_plan(
    name: str,
    given: FlashMLASchedMeta | Tensor | None,
    num_splits: Tensor | None,
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    causal: bool,
) -> Plan:
    """The schedule of dense decode in either style."""
    require_dims(name, "block_table", block_table, 2, "[batch, max_blocks]")
    require_dims(name, "cache_seqlens", cache_seqlens, 1, "[batch]")
    if not isinstance(given, FlashMLASchedMeta):
        return _given_plan(name, given, num_splits)
    batch, s_q, h_q, _ = q.shape
    _, page, h_kv, _ = k_cache.shape
    config = MadeFor(batch, s_q, h_q, h_kv, page, causal, k_cache.element_size() == 1)
    if given.have_initialized:
        given.require_same(name, config)
        return Plan(given.tile_scheduler_metadata, given.num_splits)
    rows = s_q * h_q // max(h_kv, 1)
    made = _dense_schedule(cache_seqlens, rows, h_kv, block_table.shape[1] * page)
    return Plan(*made, config, given)


def sparse_plan(
    name: str,
    given: FlashMLASchedMeta | Tensor | None,
    num_splits: Tensor | None,
    q: Tensor,
    k_cache: Tensor,
    is_fp8_kvcache: bool,
    indices: Tensor,
    extra_k_cache: Tensor | None,
    extra_indices: Tensor | None,
    topk_length: Tensor | None,
    extra_topk_length: Tensor | None,
) -> Plan:
    """The schedule of sparse decode in either style."""
    if not isinstance(given, FlashMLASchedMeta):
        return _given_plan(name, given, num_splits)
    batch, s_q, h_q, _ = q.shape
    _, page, h_kv, _ = k_cache.shape
    topk = indices.shape[2]
    extra_topk = None if extra_indices is None else extra_indices.shape[2]
    config = MadeFor(
        batch,
        s_q,
        h_q,
        h_kv,
        page,
        False,
        is_fp8_kvcache,
        topk,
        None if extra_k_cache is None else extra_k_cache.shape[1],
        extra_topk,
        topk_length is not None,
        extra_topk_length is not None,
    )
    if given.have_initialized:
        given.require_same(name, config)
        return Plan(given.tile_scheduler_metadata, given.num_splits)
    rows = s_q * h_q // max(h_kv, 1)
    made = _sparse_schedule(q, batch, rows, h_kv, topk, extra_topk or 0, topk_length, extra_topk_length)
    return Plan(*made, config, given)
