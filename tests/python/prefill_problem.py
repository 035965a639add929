"""Random inputs of sparse prefill, with NaN in rows that nobody chooses."""

from dataclasses import dataclass

import torch
from flash_mla import flash_mla_sparse_fwd
from problems import INT32, Tensors, attn_sink, embed
from torch import Tensor

import reference


@dataclass(frozen=True)
class SparsePrefill:
    """Queries over chosen rows; rows that nobody chooses hold NaN."""

    s_q: int = 5
    h_q: int = 16
    s_kv: int = 200
    h_kv: int = 1
    topk: int = 64
    d_qk: int = 576
    d_v: int = 512
    scale: float = 0.05
    sink: str | None = None
    lengths: bool = False
    strided: bool = False

    def build(self) -> Tensors:
        """Tensors under the argument names of the function."""
        alive = torch.randperm(self.s_kv)[: (self.s_kv + 1) // 2]
        kv = torch.full((self.s_kv, self.h_kv, self.d_qk), torch.nan).bfloat16()
        kv[alive] = torch.randn(len(alive), self.h_kv, self.d_qk).bfloat16()
        q = torch.randn(self.s_q, self.h_q, self.d_qk).bfloat16()
        indices = alive[torch.randint(len(alive), (self.s_q, self.h_kv, self.topk))].int()
        outside = torch.tensor([-1, self.s_kv, INT32.max, INT32.min], dtype=torch.int32)
        outside = outside[torch.randint(len(outside), indices.shape)]
        indices = torch.where(torch.rand(indices.shape) < 0.2, outside, indices)
        topk_length = None
        if self.lengths:
            topk_length = torch.randint(0, self.topk + 1, (self.s_q,)).int()
            topk_length[0], topk_length[-1] = 0, self.topk
            behind = torch.arange(self.topk) >= topk_length.view(-1, 1, 1)
            indices = torch.where(behind, torch.randint(-5, self.s_kv + 5, indices.shape).int(), indices)
        if self.strided:
            q, kv, indices = embed(q), embed(kv), embed(indices)
        sink = attn_sink(self.sink, self.h_q)
        return Tensors(q=q, kv=kv, indices=indices, attn_sink=sink, topk_length=topk_length)

    def expected(self, x: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """``out``, ``max_logits`` and ``lse`` in float64."""
        return reference.sparse_prefill(
            x.q, x.kv, x.indices, self.d_v, self.scale, x.attn_sink, x.topk_length
        )

    def run(self, x: Tensors, device: torch.device, **more: object) -> tuple[Tensor, Tensor, Tensor]:
        """One call."""
        return flash_mla_sparse_fwd(**x.to(device), sm_scale=self.scale, d_v=self.d_v, **more)
