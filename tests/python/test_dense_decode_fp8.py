"""flash_mla_with_kvcache_fp8: dense decode over a cache of plain e4m3 numbers."""

from dataclasses import dataclass

import pytest
import torch
from flash_mla import flash_mla_with_kvcache_fp8, get_mla_metadata_dense_fp8
from problems import DenseDecode, Tensors, embed
from torch import Tensor

import reference
from reference import assert_matches

E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Fp8Decode:
    """A dense problem whose cache, and queries if ``q_dtype`` is e4m3, are rounded to e4m3 with a factor."""

    dense: DenseDecode
    q_dtype: torch.dtype = E4M3
    scales: str = "batch"

    def build(self) -> Tensors:
        """Tensors under the argument names of the function."""
        x = self.dense.build()
        batch = len(self.dense.seqlens)
        count = {"batch": batch, "one": 1, "none": 0}[self.scales]
        x.descale_q, x.descale_k = ((0.5 + torch.rand(count)) if count else None for _ in range(2))
        x.k_cache = x.k_cache.to(E4M3)
        x.q = x.q.to(self.q_dtype)
        if self.dense.strided:
            x.q, x.k_cache = embed(x.q), embed(x.k_cache)
        return x

    def expected(self, x: Tensors) -> tuple[Tensor, Tensor]:
        """Attention over e4m3 times factor, in float64."""
        batch, d = len(self.dense.seqlens), self.dense
        factors = [torch.ones(batch) if f is None else f.expand(batch) for f in (x.descale_q, x.descale_k)]
        parts = []
        for b in range(batch):
            q = x.q[b : b + 1].double() * factors[0][b].double()
            cache = x.k_cache.double() * factors[1][b].double()
            row = slice(b, b + 1)
            parts.append(
                reference.dense_decode(
                    q, cache, x.block_table[row], x.cache_seqlens[row], d.d_v, d.scale, d.causal
                )
            )
        outs, lses = zip(*parts, strict=True)
        return torch.cat(outs), torch.cat(lses)


def run(
    problem: Fp8Decode, x: Tensors, device: torch.device, scheduled: bool = True
) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` of one call."""
    args, d = x.to(device), problem.dense
    meta, num_splits = (None, None)
    if scheduled:
        meta, num_splits = get_mla_metadata_dense_fp8(args["cache_seqlens"], d.s_q * d.h_q // d.h_kv, d.h_kv)
        assert meta.dtype == num_splits.dtype == torch.int32 and num_splits.shape == (len(d.seqlens) + 1,)
    return flash_mla_with_kvcache_fp8(
        **args,
        head_dim_v=d.d_v,
        tile_scheduler_metadata=meta,
        num_splits=num_splits,
        softmax_scale=d.softmax_scale,
        causal=d.causal,
    )


def check(problem: Fp8Decode, device: torch.device, scheduled: bool = True) -> None:
    """Compare one call with float64."""
    x = problem.build()
    out, lse = run(problem, x, device, scheduled)
    assert out.dtype == (torch.bfloat16 if problem.q_dtype == E4M3 else problem.q_dtype)
    expected_out, expected_lse = problem.expected(x)
    assert_matches("dense_decode.out", out, expected_out)
    assert_matches("decode.lse", lse, expected_lse)


@pytest.mark.parametrize("scales", ["batch", "one", "none"])
@pytest.mark.parametrize("q_dtype", [E4M3, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_factors_of_each_sequence_or_of_all(device, causal, q_dtype, scales):
    check(Fp8Decode(DenseDecode(s_q=2, h_q=5, causal=causal), q_dtype, scales), device)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("h_q", [1, 16, 17, 128])
def test_any_number_of_heads(device, h_q, scheduled):
    check(Fp8Decode(DenseDecode(h_q=h_q)), device, scheduled)


@pytest.mark.parametrize("page", [1, 7, 64])
@pytest.mark.parametrize("strided", [False, True])
def test_pages_and_strides(device, page, strided):
    check(Fp8Decode(DenseDecode(page=page, strided=strided, h_q=4, h_kv=2, s_q=3, causal=True)), device)


def test_width_of_rows(device):
    check(Fp8Decode(DenseDecode(d_qk=512, d_v=256, softmax_scale=0.1)), device)


def test_lonely_queries_and_long_sequences(device):
    problem = Fp8Decode(DenseDecode(seqlens=(0, 2, 3000), s_q=3, h_q=2, causal=True))
    check(problem, device)
    out, lse = run(problem, problem.build(), device)
    assert (out[0] == 0).all() and (lse[0] == torch.inf).all() and (lse[1, :, 0] == torch.inf).all()


def test_nan_codes_in_a_visible_row_reach_the_result(device):
    problem = Fp8Decode(DenseDecode(seqlens=(5, 5), h_q=2, page=8))
    x = problem.build()
    x.k_cache.view(torch.uint8)[x.block_table[1, 0], 2, 0, 3] = 0x7F
    out, lse = run(problem, x, device)
    assert out[1].isnan().all() and lse[1].isnan().all() and out[0].isfinite().all()


@pytest.mark.parametrize("name", ["descale_q", "descale_k"])
@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(3, 1), torch.ones(3).double(), 1.0])
def test_wrong_factors_are_errors_that_name_them(device, name, wrong):
    problem = Fp8Decode(DenseDecode())
    x = problem.build()
    args = x.to(device) | {name: wrong.to(device) if isinstance(wrong, Tensor) else wrong}
    with pytest.raises((ValueError, TypeError), match=name):
        flash_mla_with_kvcache_fp8(**args, head_dim_v=512, tile_scheduler_metadata=None, num_splits=None)


def test_batch_of_zero(device):
    problem = Fp8Decode(DenseDecode(seqlens=()))
    out, lse = run(problem, problem.build(), device)
    assert out.shape == (0, 1, 16, 512) and lse.shape == (0, 16, 1)
