"""Random inputs of multi-head attention over sequences that stand behind each other."""

import itertools
from dataclasses import dataclass

import torch
from flash_mla import flash_attn_varlen_func
from problems import Tensors, embed
from torch import Tensor

import reference


@dataclass(frozen=True)
class VarlenAttention:
    """Sequences of ``len_q`` queries and ``len_k`` keys."""

    len_q: tuple[int, ...] = (17, 50, 1)
    len_k: tuple[int, ...] = (40, 50, 70)
    h_q: int = 4
    h_kv: int | None = None
    d_qk: int = 192
    d_v: int = 128
    dtype: torch.dtype = torch.bfloat16
    causal: bool = False
    softmax_scale: float | None = None
    strided: bool = False

    def build(self) -> Tensors:
        """``q``, ``k``, ``v``, ``cu_q``, ``cu_k``."""
        h_kv = self.h_q if self.h_kv is None else self.h_kv
        shapes = {
            "q": (sum(self.len_q), self.h_q, self.d_qk),
            "k": (sum(self.len_k), h_kv, self.d_qk),
            "v": (sum(self.len_k), h_kv, self.d_v),
        }
        tensors = {name: torch.randn(shape).to(self.dtype) for name, shape in shapes.items()}
        if self.strided:
            tensors = {name: embed(x) for name, x in tensors.items()}
        starts = {"cu_q": self.len_q, "cu_k": self.len_k}
        tensors |= {
            name: torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32)
            for name, lens in starts.items()
        }
        return Tensors(**tensors)

    @property
    def longest(self) -> tuple[int, int]:
        """Largest number of queries, and of keys."""
        return max(self.len_q, default=0), max(self.len_k, default=0)

    def call(self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, **more: object):
        """``out`` and ``lse`` of tensors that are on a device already."""
        options = {"softmax_scale": self.softmax_scale, "causal": self.causal} | more
        return flash_attn_varlen_func(q, k, v, cu_q, cu_k, *self.longest, **options)

    def run(self, x: Tensors, device: torch.device, **more: object) -> tuple[Tensor, Tensor]:
        """``out`` and ``lse`` of one call on ``device``."""
        return self.call(**x.to(device), **more)

    def expected(self, x: Tensors) -> tuple[Tensor, Tensor]:
        """``out`` and ``lse`` in float64."""
        return self._expected(x.q.double(), x.k.double(), x.v.double(), x)

    def _expected(self, q: Tensor, k: Tensor, v: Tensor, x: Tensors) -> tuple[Tensor, Tensor]:
        scale = self.d_qk**-0.5 if self.softmax_scale is None else self.softmax_scale
        if not self.len_q:
            return q.new_zeros(0, self.h_q, self.d_v), q.new_zeros(0, self.h_q)
        return reference.mha_forward(q, k, v, x.cu_q.tolist(), x.cu_k.tolist(), scale, self.causal)

    def expected_gradients(self, x: Tensors, d_out: Tensor, out: Tensor | None = None) -> tuple[Tensor, ...]:
        """``d_q``, ``d_k``, ``d_v`` by autograd in float64.

        ``out`` is what forward returned, rounded. It is an input of the backward operation, which takes
        ``delta = <out, d_out>`` from it. Its rounding acts as a gradient of ``lse`` would.
        """
        leaves = [tensor.double().requires_grad_() for tensor in (x.q, x.k, x.v)]
        exact_out, lse = self._expected(*leaves, x)
        d_out = d_out.detach().cpu().double()
        loss = (exact_out * d_out).sum() + sum(0 * leaf.sum() for leaf in leaves)
        if out is not None:
            d_lse = ((exact_out - out.detach().cpu().double()) * d_out).sum(-1).detach()
            loss = loss + (d_lse * lse.where(lse.isfinite(), 0)).sum()
        return torch.autograd.grad(loss, leaves)
