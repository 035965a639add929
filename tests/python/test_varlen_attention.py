"""flash_attn_varlen_func and its packed variants, forward."""

import pytest
import torch
from flash_mla import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from problems import on_device
from varlen_problem import VarlenAttention

from reference import assert_matches


def check(problem: VarlenAttention, device: torch.device) -> None:
    """Compare one call with float64."""
    x = problem.build()
    out, lse = problem.run(x, device)
    assert out.dtype == problem.dtype and lse.dtype == torch.float32 and out.device.type == device.type
    expected_out, expected_lse = problem.expected(x)
    assert_matches("mha", out, expected_out)
    assert_matches("mha.lse", lse, expected_lse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d_qk", [192, 128])
def test_widths_and_types(device, d_qk, causal, dtype):
    check(VarlenAttention(d_qk=d_qk, causal=causal, dtype=dtype), device)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("h_q", "h_kv"), [(1, 1), (6, 2), (17, 17), (128, 1)])
def test_grouped_heads(device, h_q, h_kv, causal):
    check(VarlenAttention(h_q=h_q, h_kv=h_kv, causal=causal), device)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "lens",
    [
        ((5,), (9,)),
        ((9,), (5,)),
        ((3, 0, 7), (3, 4, 7)),
        ((3, 2), (0, 2)),
        ((1, 300), (513, 300)),
        ((0, 0), (0, 3)),
    ],
    ids=str,
)
def test_queries_and_keys_of_different_number(device, lens, causal):
    """Causal is aligned bottom right; queries before the first key, and those without keys, see nothing."""
    check(VarlenAttention(len_q=lens[0], len_k=lens[1], causal=causal), device)


def test_lonely_queries_have_zero_and_infinity(device):
    problem = VarlenAttention(len_q=(7, 2), len_k=(3, 0), causal=True)
    out, lse = problem.run(problem.build(), device)
    lonely = [0, 1, 2, 3, 7, 8]
    assert (out[lonely] == 0).all() and (lse[lonely] == torch.inf).all() and lse[4:7].isfinite().all()


@pytest.mark.parametrize("softmax_scale", [0.3, -0.02, 0.0])
def test_given_scale(device, softmax_scale):
    check(VarlenAttention(softmax_scale=softmax_scale, causal=True), device)


@pytest.mark.parametrize("causal", [False, True])
def test_padded_strides(device, causal):
    check(VarlenAttention(strided=True, h_q=6, h_kv=2, causal=causal), device)


def test_rows_behind_the_last_sequence_do_not_count(device):
    problem = VarlenAttention()
    x = problem.build()
    expected_out, expected_lse = problem.expected(x)
    for name in ("k", "v"):
        tensor = getattr(x, name)
        setattr(x, name, torch.cat([tensor, torch.full_like(tensor[:9], torch.nan)]))
    out, lse = problem.run(x, device)
    assert_matches("mha", out, expected_out)
    assert_matches("mha.lse", lse, expected_lse)


def test_values_of_another_width(device):
    check(VarlenAttention(d_qk=192, d_v=64), device)


@pytest.mark.parametrize("causal", [False, True])
def test_qkv_in_one_tensor(device, causal):
    problem = VarlenAttention(len_q=(40, 0, 23), len_k=(40, 0, 23), causal=causal)
    x = problem.build()
    qkv = on_device(torch.cat([x.q, x.k, x.v], -1), device)
    out, lse = flash_attn_varlen_qkvpacked_func(qkv, x.cu_q.to(device), 40, problem.d_qk, causal=causal)
    assert_matches("mha", out, problem.expected(x)[0])
    assert_matches("mha.lse", lse, problem.expected(x)[1])


@pytest.mark.parametrize("causal", [False, True])
def test_kv_in_one_tensor(device, causal):
    problem = VarlenAttention(h_q=6, h_kv=2, causal=causal, softmax_scale=0.1)
    x = problem.build()
    kv = on_device(torch.cat([x.k, x.v], -1), device)
    cu = x.cu_q.to(device), x.cu_k.to(device)
    out, lse = flash_attn_varlen_kvpacked_func(
        x.q.to(device), kv, *cu, *problem.longest, problem.d_qk, 0.0, 0.1, causal
    )
    assert_matches("mha", out, problem.expected(x)[0])
    assert_matches("mha.lse", lse, problem.expected(x)[1])


def test_no_sequence_at_all(device):
    problem = VarlenAttention(len_q=(), len_k=())
    out, lse = problem.run(problem.build(), device)
    assert out.shape == (0, 4, 128) and lse.shape == (0, 4)


def test_dropout_is_refused(device):
    problem = VarlenAttention()
    x = problem.build()
    with pytest.raises((ValueError, NotImplementedError), match="dropout_p"):
        problem.run(x, device, dropout_p=0.1)
    packed = torch.cat([x.q, x.k[: len(x.q)], x.v[: len(x.q)]], -1).to(device)
    with pytest.raises((ValueError, NotImplementedError), match="dropout_p"):
        flash_attn_varlen_qkvpacked_func(packed, x.cu_q.to(device), 50, problem.d_qk, 0.5)


def test_longest_lengths_may_be_bounds_or_tensors(device):
    """Callers hand in the true maximum, an upper bound, or a tensor with it."""
    problem = VarlenAttention(causal=True)
    x = problem.build()
    out, lse = problem.run(x, device)
    args = x.to(device)
    for bound in [(4096, 8192), tuple(torch.tensor(n) for n in problem.longest)]:
        again = flash_attn_varlen_func(
            args["q"], args["k"], args["v"], args["cu_q"], args["cu_k"], *bound, causal=True, is_varlen=False
        )
        assert torch.equal(out, again[0]) and torch.equal(lse, again[1])
