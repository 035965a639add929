"""Gradients of flash_attn_varlen_func.

torch.autograd.gradcheck needs float64, which no kernel takes. The check here is against autograd through the
same formulas in float64, from the same inputs of the backward operation: q, k, v, the incoming gradient, and
``out`` as forward has rounded it.
"""

from dataclasses import replace

import pytest
import torch
from flash_mla import flash_attn_varlen_kvpacked_func, flash_attn_varlen_qkvpacked_func
from problems import embed, on_device
from varlen_problem import VarlenAttention

from reference import assert_matches


def gradients(problem: VarlenAttention, x, device: torch.device, d_out: torch.Tensor | None, **more: object):
    """``out`` and gradients of leaves that have the strides of ``x``; without ``d_out`` of ``out.sum()``."""
    args = x.to(device)
    leaves = [args[name].requires_grad_() for name in ("q", "k", "v")]
    out, lse = problem.call(*leaves, args["cu_q"], args["cu_k"], **more)
    assert out.requires_grad and not lse.requires_grad
    if d_out is None:
        return out, torch.autograd.grad(out.sum(), leaves)
    return out, torch.autograd.grad(out, leaves, on_device(d_out, device))


def check(problem: VarlenAttention, device: torch.device, **more: object) -> None:
    """Compare gradients with float64."""
    x = problem.build()
    d_out = torch.randn(sum(problem.len_q), problem.h_q, problem.d_v).to(problem.dtype)
    d_out = embed(d_out) if problem.strided else d_out
    out, actual = gradients(problem, x, device, d_out, **more)
    expected = problem.expected_gradients(x, d_out, out)
    for leaf, a, r in zip((x.q, x.k, x.v), actual, expected, strict=True):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape
        assert_matches("mha", a, r)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d_qk", [192, 128])
def test_widths_and_types(device, d_qk, causal, dtype):
    check(VarlenAttention(d_qk=d_qk, causal=causal, dtype=dtype), device)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("h_q", "h_kv"), [(1, 1), (6, 2), (5, 5), (16, 1)])
def test_grouped_heads(device, h_q, h_kv, causal, deterministic):
    check(VarlenAttention(h_q=h_q, h_kv=h_kv, causal=causal), device, deterministic=deterministic)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "lens",
    [
        ((5,), (9,)),
        ((9,), (5,)),
        ((3, 0, 7), (3, 4, 7)),
        ((3, 2), (0, 2)),
        ((1, 200), (300, 200)),
        ((4,), (0,)),
    ],
    ids=str,
)
def test_queries_and_keys_of_different_number(device, lens, causal):
    check(VarlenAttention(len_q=lens[0], len_k=lens[1], causal=causal, h_q=4, h_kv=2), device)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("softmax_scale", [0.3, -0.02])
def test_given_scale_and_strides(device, strided, softmax_scale):
    check(VarlenAttention(softmax_scale=softmax_scale, causal=True, strided=strided, h_q=4, h_kv=2), device)


def test_lonely_queries_have_no_gradient(device):
    problem = VarlenAttention(len_q=(7, 2), len_k=(3, 0), causal=True)
    x = problem.build()
    _, (d_q, d_k, d_v) = gradients(problem, x, device, None)
    assert (d_q[[0, 1, 2, 3, 7, 8]] == 0).all()
    assert d_q.isfinite().all() and d_k.isfinite().all() and d_v.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_gradient_of_a_sum_has_strides_of_zero(device, causal):
    """``out.sum().backward()`` hands in one expanded number."""
    problem = VarlenAttention(causal=causal, h_q=6, h_kv=3)
    x = problem.build()
    out, actual = gradients(problem, x, device, None)
    for a, r in zip(actual, problem.expected_gradients(x, torch.ones_like(out), out), strict=True):
        assert_matches("mha", a, r)


def test_incoming_gradient_with_transposed_strides(device):
    problem = VarlenAttention()
    x = problem.build()
    d_out = torch.randn(sum(problem.len_q), problem.d_v, problem.h_q).bfloat16().transpose(1, 2)
    out, actual = gradients(problem, x, device, d_out)
    for a, r in zip(actual, problem.expected_gradients(x, d_out, out), strict=True):
        assert_matches("mha", a, r)


def test_incoming_gradient_at_any_address(device):
    """Behind one other number, a gradient begins two bytes later."""
    problem = VarlenAttention(len_q=(7,), len_k=(9,), h_q=2)
    args = problem.build().to(device)
    leaves = [args[name].requires_grad_() for name in ("q", "k", "v")]
    out, _ = problem.call(*leaves, args["cu_q"], args["cu_k"])
    numbers = torch.randn(out.numel() + 1, device=device).to(out.dtype)
    moved = numbers[1:].view(out.shape)
    assert moved.data_ptr() % 16 != 0
    got = torch.autograd.grad(out, leaves, moved, retain_graph=True)
    for one, other in zip(got, torch.autograd.grad(out, leaves, moved.clone()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_bits_again(device, deterministic):
    """On a GPU the gradient of q may differ unless ``deterministic`` is asked for."""
    problem = VarlenAttention(causal=True, h_q=6, h_kv=2, len_q=(150, 9), len_k=(300, 9))
    x = problem.build()
    out, first = gradients(problem, x, device, None, deterministic=deterministic)
    again, second = gradients(problem, x, device, None, deterministic=deterministic)
    assert torch.equal(out, again)
    for name, a, b in zip(("d_q", "d_k", "d_v"), first, second, strict=True):
        assert torch.equal(a, b) or (name == "d_q" and device.type != "cpu" and not deterministic)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_gradient_of_one_input_alone(device, name):
    problem = VarlenAttention(causal=True)
    x = problem.build()
    args = x.to(device)
    args[name].requires_grad_()
    out, _ = problem.call(**args)
    d_out = torch.randn(out.shape, device=device).bfloat16()
    (actual,) = torch.autograd.grad(out, args[name], d_out)
    expected = dict(zip("qkv", problem.expected_gradients(x, d_out, out), strict=True))
    assert_matches("mha", actual, expected[name])


def test_no_gradient_flows_through_lse(device):
    problem = VarlenAttention()
    args = problem.build().to(device)
    args["q"].requires_grad_()
    out, lse = problem.call(**args)
    assert lse.grad_fn is None and not lse.requires_grad
    (gradient,) = torch.autograd.grad(out.float().sum() + 1000 * lse.sum(), args["q"], retain_graph=True)
    (without,) = torch.autograd.grad(out.float().sum(), args["q"])
    assert torch.equal(gradient, without)


def test_no_graph_without_need(device):
    problem = VarlenAttention()
    args = problem.build().to(device)
    assert not problem.call(**args)[0].requires_grad
    args["q"].requires_grad_()
    with torch.no_grad():
        assert not problem.call(**args)[0].requires_grad


def test_second_derivatives_are_an_error_and_not_zero(device):
    problem = VarlenAttention(len_q=(3,), len_k=(5,))
    args = problem.build().to(device)
    args["q"].requires_grad_()
    out, _ = problem.call(**args)
    (gradient,) = torch.autograd.grad(out.float().square().sum(), args["q"], create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.autograd.grad(gradient.float().square().sum(), args["q"])


def test_an_input_changed_before_backward_is_an_error(device):
    problem = VarlenAttention()
    args = problem.build().to(device)
    args["q"].requires_grad_()
    out, _ = problem.call(**args)
    args["k"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.float().sum().backward()


@pytest.mark.parametrize("causal", [False, True])
def test_packed_variants_gather_the_gradients(device, causal):
    problem = VarlenAttention(len_q=(40, 0, 23), len_k=(40, 0, 23), causal=causal)
    x = problem.build()
    d_out = torch.randn(63, 4, 128).bfloat16()
    cu = x.cu_q.to(device)
    qkv = on_device(torch.cat([x.q, x.k, x.v], -1), device).requires_grad_()
    out, _ = flash_attn_varlen_qkvpacked_func(qkv, cu, 40, 192, causal=causal)
    out.backward(d_out.to(device))
    expected = problem.expected_gradients(x, d_out, out)
    for a, r in zip(qkv.grad.split([192, 192, 128], -1), expected, strict=True):
        assert_matches("mha", a, r)
    kv = on_device(torch.cat([x.k, x.v], -1), device).requires_grad_()
    out, _ = flash_attn_varlen_kvpacked_func(x.q.to(device), kv, cu, cu, 40, 40, 192, causal=causal)
    out.backward(d_out.to(device))
    for a, r in zip(kv.grad.split([192, 128], -1), expected[1:], strict=True):
        assert_matches("mha", a, r)


def test_a_descent_step_goes_down(device):
    """The whole way through an optimizer: projections in float32, attention in bf16."""
    problem = replace(VarlenAttention(), len_q=(30,), len_k=(30,), causal=True)
    args = problem.build().to(device)
    layer = torch.nn.Linear(192, 192, device=device)
    target = torch.randn(30, 4, 128, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    losses = []
    for _ in range(3):
        out, _ = problem.call(**(args | {"q": layer(args["q"].float()).bfloat16()}))
        loss = (out.float() - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
