"""Random inputs of the operations, with NaN in all memory that must not be read."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from flash_mla import ops
from fp8_formats import FP8_FORMATS, bytes_of_blocks, empty_cache
from torch import Tensor

import reference

INT32 = torch.iinfo(torch.int32)


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """A copy of all memory below ``x``, with its strides and what lies between its elements."""
    memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return memory.clone().to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def embed(x: Tensor) -> Tensor:
    """The same values as a slice of a larger tensor of NaN, with every stride padded; 16-byte aligned."""
    edge = 16 // x.element_size()
    shape = [*(n + 2 for n in x.shape[:-1]), x.shape[-1] + 2 * edge]
    larger = torch.full(shape, torch.nan) if x.is_floating_point() else garbage(*shape)
    slices = (*(slice(1, n + 1) for n in x.shape[:-1]), slice(edge, x.shape[-1] + edge))
    return larger.to(x.dtype)[slices].copy_(x)


def garbage(*shape: int) -> Tensor:
    """Any i32 at all."""
    return torch.randint(INT32.min, INT32.max, shape, dtype=torch.int64).to(torch.int32)


class Tensors(SimpleNamespace):
    """Named tensors on the CPU; ``to`` copies them to a device for a call."""

    def to(self, device: torch.device) -> dict[str, Tensor]:
        """Copies on ``device`` of those that are there."""
        return {name: on_device(x, device) for name, x in vars(self).items() if x is not None}


@dataclass(frozen=True)
class DenseDecode:
    """New queries over a paged cache; unused pages, page tails, the tail of the block table hold rubbish."""

    seqlens: tuple[int, ...] = (70, 3, 130)
    s_q: int = 1
    h_q: int = 16
    h_kv: int = 1
    d_qk: int = 576
    d_v: int = 512
    page: int = 64
    dtype: torch.dtype = torch.bfloat16
    causal: bool = False
    softmax_scale: float | None = None
    strided: bool = False

    def build(self) -> Tensors:
        """``q``, ``k_cache``, ``block_table``, ``cache_seqlens``."""
        used = [-(-n // self.page) for n in self.seqlens]
        blocks = sum(used) + 2
        order = torch.randperm(blocks).int()
        k_cache = torch.full((blocks, self.page, self.h_kv, self.d_qk), torch.nan).to(self.dtype)
        block_table = garbage(len(self.seqlens), max(used, default=0) + 2)
        for b, n in enumerate(self.seqlens):
            block_table[b, : used[b]], order = order[: used[b]], order[used[b] :]
            for i, block in enumerate(block_table[b, : used[b]].tolist()):
                rows = min(self.page, n - i * self.page)
                k_cache[block, :rows] = torch.randn(rows, self.h_kv, self.d_qk).to(self.dtype)
        q = torch.randn(len(self.seqlens), self.s_q, self.h_q, self.d_qk).to(self.dtype)
        tensors = {"q": q, "k_cache": k_cache, "block_table": block_table}
        if self.strided:
            tensors = {name: embed(x) for name, x in tensors.items()}
        return Tensors(**tensors, cache_seqlens=torch.tensor(self.seqlens, dtype=torch.int32))

    @property
    def scale(self) -> float:
        """The scale in effect."""
        return self.d_qk**-0.5 if self.softmax_scale is None else self.softmax_scale

    @property
    def options(self) -> dict[str, object]:
        """Arguments of ``flash_mla_with_kvcache`` that are not tensors."""
        return {"head_dim_v": self.d_v, "softmax_scale": self.softmax_scale, "causal": self.causal}

    def expected(self, x: Tensors) -> tuple[Tensor, Tensor]:
        """``out`` and ``lse`` in float64."""
        return reference.dense_decode(
            x.q, x.k_cache, x.block_table, x.cache_seqlens, self.d_v, self.scale, self.causal
        )


@dataclass(frozen=True)
class Selection:
    """A cache and indices into it: half of its tokens are never chosen and hold NaN.

    Chosen are tokens at random, the first one twice; one index in five lies outside of the cache.
    """

    kv_format: str = "fp8_v32"
    page: int = 64
    blocks: int = 4
    topk: int = 64
    topk_length: tuple[int, ...] | None = None
    spare: int = 0

    @property
    def d_qk(self) -> int:
        """Width of a row."""
        return 576 if self.kv_format == "bf16" else FP8_FORMATS[self.kv_format].d_qk

    def build(self, batch: int, s_q: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cache, indices and lengths."""
        tokens = self.blocks * self.page
        alive = torch.randperm(tokens)[: (tokens + 1) // 2]
        rows = torch.full((tokens, self.d_qk), torch.nan).bfloat16()
        rows[alive] = (torch.randn(len(alive), self.d_qk) * torch.rand(len(alive), 1) * 2).bfloat16()
        indices = alive[torch.randint(len(alive), (batch, s_q, self.topk))].int()
        indices[..., -1] = indices[..., 0]
        outside = torch.tensor([-1, tokens, INT32.max, INT32.min], dtype=torch.int32)
        outside = outside[torch.randint(len(outside), indices.shape)]
        indices = torch.where(torch.rand(indices.shape) < 0.2, outside, indices)
        length = None
        if self.topk_length is not None:
            length = torch.tensor(self.topk_length, dtype=torch.int32)
            behind = torch.arange(self.topk) >= length.view(-1, 1, 1)
            indices = torch.where(behind, torch.randint(-5, tokens + 5, indices.shape).int(), indices)
        return self._cache(rows.view(self.blocks, self.page, 1, self.d_qk)), indices, length

    def _cache(self, rows: Tensor) -> Tensor:
        if self.kv_format == "bf16":
            return embed(rows) if self.spare else rows
        cache = empty_cache(self.kv_format, self.blocks, self.page, self.spare)
        ops.quantize_kv(kv=rows, kv_cache=cache)
        return cache

    def values(self, cache: Tensor) -> Tensor:
        """The rows that kernels attend over, ``[tokens d_qk]``."""
        if self.kv_format == "bf16":
            return cache.reshape(-1, self.d_qk)
        return FP8_FORMATS[self.kv_format].dequantize(bytes_of_blocks(cache), self.page).flatten(0, 1)


@dataclass(frozen=True)
class SparseDecode:
    """New queries over chosen tokens of one or two caches."""

    batch: int = 2
    s_q: int = 1
    h_q: int = 16
    main: Selection = field(default_factory=Selection)
    extra: Selection | None = None
    sink: str | None = None
    softmax_scale: float | None = None
    d_v: int = 512
    strided: bool = False

    def build(self) -> Tensors:
        """Tensors under the argument names of ``flash_mla_with_kvcache``."""
        q = torch.randn(self.batch, self.s_q, self.h_q, self.main.d_qk).bfloat16()
        names = [("k_cache", "indices", "topk_length")]
        names += [("extra_k_cache", "extra_indices_in_kvcache", "extra_topk_length")]
        tensors: dict[str, Tensor | None] = {"q": q, "attn_sink": attn_sink(self.sink, self.h_q)}
        for selection, name in zip((self.main, self.extra), names, strict=True):
            built = (None, None, None) if selection is None else selection.build(self.batch, self.s_q)
            tensors |= dict(zip(name, built, strict=True))
        if self.strided:
            strided = {name: embed(x) for name, x in tensors.items() if x is not None and "indices" in name}
            tensors |= strided | {"q": embed(q)}
        return Tensors(**tensors)

    @property
    def options(self) -> dict[str, object]:
        """Arguments of ``flash_mla_with_kvcache`` that are not tensors of :meth:`build`."""
        return {
            "head_dim_v": self.d_v,
            "softmax_scale": self.softmax_scale,
            "is_fp8_kvcache": self.main.kv_format != "bf16",
            "block_table": None,
            "cache_seqlens": None,
        }

    def expected(self, x: Tensors) -> tuple[Tensor, Tensor]:
        """``out`` and ``lse`` in float64."""
        selections = [(self.main.values(x.k_cache), x.indices, x.topk_length)]
        if self.extra is not None:
            extra_values = self.extra.values(x.extra_k_cache)
            selections.append((extra_values, x.extra_indices_in_kvcache, x.extra_topk_length))
        scale = self.main.d_qk**-0.5 if self.softmax_scale is None else self.softmax_scale
        return reference.sparse_decode(x.q, selections, self.d_v, scale, x.attn_sink)


def attn_sink(kind: str | None, h_q: int) -> Tensor | None:
    """A logit for each head: None, ``"finite"``, or ``"infinite"`` with both infinities among them."""
    if kind is None:
        return None
    sink = torch.randn(h_q) * 3
    if kind == "infinite":
        sink[0], sink[-1] = torch.inf, -torch.inf
    return sink
