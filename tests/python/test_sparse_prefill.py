"""flash_mla_sparse_fwd against float64."""

import math

import pytest
import torch
from flash_mla import flash_mla_sparse_fwd
from prefill_problem import SparsePrefill
from problems import Tensors, embed, on_device

from reference import assert_matches


def check(problem: SparsePrefill, device: torch.device, x: Tensors | None = None) -> None:
    """Compare one call with float64."""
    x = problem.build() if x is None else x
    out, max_logits, lse = problem.run(x, device)
    assert out.dtype == torch.bfloat16 and max_logits.dtype == lse.dtype == torch.float32
    expected_out, expected_max_logits, expected_lse = problem.expected(x)
    assert_matches("sparse_prefill.out", out, expected_out)
    assert_matches("sparse_prefill.lse", max_logits, expected_max_logits)
    assert_matches("sparse_prefill.lse", lse, expected_lse)


@pytest.mark.parametrize("d_qk", [576, 512])
@pytest.mark.parametrize("h_q", [1, 3, 17, 64, 128])
def test_any_number_of_heads(device, h_q, d_qk):
    check(SparsePrefill(h_q=h_q, d_qk=d_qk), device)


@pytest.mark.parametrize(("h_q", "h_kv"), [(6, 2), (3, 3)])
@pytest.mark.parametrize("strided", [False, True])
def test_kv_heads_have_indices_of_their_own(device, strided, h_q, h_kv):
    check(SparsePrefill(h_q=h_q, h_kv=h_kv, strided=strided, lengths=True), device)


@pytest.mark.parametrize("topk", [1, 7, 500, 2048])
@pytest.mark.parametrize("s_q", [1, 33])
def test_any_number_of_indices_and_queries(device, s_q, topk):
    check(SparsePrefill(s_q=s_q, h_q=2, topk=topk), device)


@pytest.mark.parametrize("d_v", [512, 256, 64])
def test_width_of_values(device, d_v):
    check(SparsePrefill(d_v=d_v, h_q=3), device)


@pytest.mark.parametrize("sink", [None, "finite", "infinite"])
@pytest.mark.parametrize("lengths", [False, True])
def test_lengths_and_sinks(device, lengths, sink):
    problem = SparsePrefill(lengths=lengths, sink=sink, s_q=9)
    x = problem.build()
    check(problem, device, x)
    with_sink = problem.run(x, device)
    x.attn_sink = None
    without = problem.run(x, device)
    assert torch.equal(with_sink[1], without[1]) and torch.equal(with_sink[2], without[2])


@pytest.mark.parametrize("sink", [None, "infinite"])
def test_lonely_queries(device, sink):
    problem = SparsePrefill(h_q=3, sink=sink)
    x = problem.build()
    x.indices[1] = -1
    x.indices[3] = problem.s_kv
    check(problem, device, x)
    out, max_logits, lse = problem.run(x, device)
    for row in (1, 3):
        assert (
            (out[row] == 0).all() and (lse[row] == torch.inf).all() and (max_logits[row] == -torch.inf).all()
        )


@pytest.mark.parametrize("sink", [None, "finite"])
def test_base_2_scales_max_logits_and_lse_alone(device, sink):
    problem = SparsePrefill(h_q=4, sink=sink, lengths=True)
    x = problem.build()
    natural = problem.run(x, device)
    base2 = problem.run(x, device, base2=True)
    assert torch.equal(natural[0], base2[0])
    expected = problem.expected(x)
    assert_matches("sparse_prefill.lse", base2[1], expected[1] / math.log(2))
    assert_matches("sparse_prefill.lse", base2[2], expected[2] / math.log(2))


@pytest.mark.parametrize("strided", [False, True])
def test_out_is_written_in_place_and_returned(device, strided):
    problem = SparsePrefill(h_q=3)
    x = problem.build()
    target = torch.full((5, 3, 512), 7.0).bfloat16()
    target = on_device(embed(target) if strided else target, device)
    out, _, _ = problem.run(x, device, out=target)
    assert out.data_ptr() == target.data_ptr() and out.stride() == target.stride()
    assert_matches("sparse_prefill.out", target, problem.expected(x)[0])


@pytest.mark.parametrize("scale", [-0.05, 0.0, 5.0])
def test_any_scale(device, scale):
    check(SparsePrefill(scale=scale, h_q=3), device)


def test_queries_or_rows_of_zero(device):
    x = SparsePrefill(s_q=1).build()
    nothing = Tensors(q=x.q[:0], kv=x.kv, indices=x.indices[:0])
    out, max_logits, lse = SparsePrefill().run(nothing, device)
    assert out.shape == (0, 16, 512) and max_logits.shape == lse.shape == (0, 16)


def test_arguments_in_their_order(device):
    problem = SparsePrefill(sink="finite", lengths=True)
    x = problem.build().to(device)
    out = torch.empty(5, 16, 512, dtype=torch.bfloat16, device=device)
    result = flash_mla_sparse_fwd(
        x["q"], x["kv"], x["indices"], 0.05, 512, x["attn_sink"], x["topk_length"], out
    )
    assert result[0].data_ptr() == out.data_ptr()
    assert all(
        torch.equal(a, b) for a, b in zip(result, flash_mla_sparse_fwd(**x, sm_scale=0.05), strict=True)
    )
