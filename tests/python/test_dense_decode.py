"""flash_mla_with_kvcache over a paged cache, without indices."""

import pytest
import torch
from flash_mla import flash_mla_with_kvcache, get_mla_metadata
from problems import DenseDecode, Tensors, embed, on_device

from reference import assert_matches

SCHEDULES = ["none", "new style", "old style"]


def schedule(style: str, problem: DenseDecode, cache_seqlens: torch.Tensor) -> tuple[object, object]:
    """Arguments 6 and 7, as callers of each style make them."""
    if style == "none":
        return None, None
    if style == "new style":
        return get_mla_metadata()
    return get_mla_metadata(cache_seqlens, problem.s_q * problem.h_q // problem.h_kv, problem.h_kv)


def run(problem: DenseDecode, x: Tensors, device: torch.device, style: str = "new style", **more: object):
    """``out`` and ``lse`` of one call on ``device``."""
    args = x.to(device)
    meta, num_splits = schedule(style, problem, args["cache_seqlens"])
    options = problem.options | more
    return flash_mla_with_kvcache(**args, tile_scheduler_metadata=meta, num_splits=num_splits, **options)


def check(problem: DenseDecode, device: torch.device, style: str = "new style") -> None:
    """Compare one call with float64."""
    x = problem.build()
    out, lse = run(problem, x, device, style)
    assert out.dtype == problem.dtype and lse.dtype == torch.float32 and out.device.type == device.type
    expected_out, expected_lse = problem.expected(x)
    assert_matches("dense_decode.out", out, expected_out)
    assert_matches("decode.lse", lse, expected_lse)


@pytest.mark.parametrize("style", SCHEDULES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("s_q", [1, 2, 3])
def test_every_style_of_schedule_gives_the_result(device, s_q, causal, style):
    check(DenseDecode(s_q=s_q, causal=causal), device, style)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("h_q", [1, 3, 16, 17, 128])
def test_any_number_of_heads(device, h_q, dtype):
    check(DenseDecode(h_q=h_q, dtype=dtype, s_q=2, causal=True), device)


@pytest.mark.parametrize(("h_q", "h_kv"), [(6, 2), (3, 3), (128, 128)])
def test_query_heads_share_a_kv_head_in_order(device, h_q, h_kv):
    check(DenseDecode(seqlens=(9, 33), h_q=h_q, h_kv=h_kv, page=16), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("page", [1, 7, 16, 64])
def test_any_page_size(device, page, dtype):
    check(DenseDecode(page=page, dtype=dtype, s_q=3, causal=True), device)


@pytest.mark.parametrize("d_v", [512, 256, 64])
@pytest.mark.parametrize("d_qk", [576, 512])
def test_width_of_rows_and_values(device, d_qk, d_v):
    check(DenseDecode(d_qk=d_qk, d_v=d_v, h_q=5), device)


@pytest.mark.parametrize("softmax_scale", [0.25, 1e-3, 0.0, -0.05])
def test_given_scale(device, softmax_scale):
    check(DenseDecode(softmax_scale=softmax_scale), device)


@pytest.mark.parametrize("style", SCHEDULES)
def test_long_sequences_are_split_and_merged(device, style):
    check(DenseDecode(seqlens=(4097, 1, 0, 2000), h_q=4, s_q=2, causal=True), device, style)


@pytest.mark.parametrize("style", SCHEDULES)
@pytest.mark.parametrize("causal", [False, True])
def test_a_query_that_sees_nothing_has_zero_and_infinity(device, causal, style):
    problem = DenseDecode(seqlens=(0, 1, 2, 0), s_q=3, h_q=2, causal=causal)
    check(problem, device, style)
    x = problem.build()
    out, lse = run(problem, x, device, style)
    assert (out[0] == 0).all() and (lse[0] == torch.inf).all()
    if causal:
        assert (out[1, :2] == 0).all() and (lse[1, :, :2] == torch.inf).all()
        assert lse[1, :, 2].isfinite().all()


@pytest.mark.parametrize("style", SCHEDULES)
@pytest.mark.parametrize("page", [7, 64])
def test_padded_strides(device, page, style):
    check(DenseDecode(strided=True, page=page, h_q=3, h_kv=3, s_q=2, causal=True), device, style)


def test_transposed_heads_and_queries(device):
    problem = DenseDecode(s_q=3, h_q=4)
    x = problem.build()
    q = on_device(x.q.transpose(1, 2).contiguous(), device).transpose(1, 2)
    assert not q.is_contiguous()
    args = x.to(device) | {"q": q}
    out, lse = flash_mla_with_kvcache(**args, tile_scheduler_metadata=None, **problem.options)
    expected_out, expected_lse = problem.expected(x)
    assert_matches("dense_decode.out", out, expected_out)
    assert_matches("decode.lse", lse, expected_lse)


@pytest.mark.parametrize("strided", [False, True])
def test_out_is_written_in_place_and_returned(device, strided):
    problem = DenseDecode(s_q=2, h_q=5)
    x = problem.build()
    target = torch.full((3, 2, 5, 512), 7.0).bfloat16()
    target = on_device(embed(target) if strided else target, device)
    memory = torch.empty(0, dtype=target.dtype, device=device).set_(target.untyped_storage())
    outside = memory.isnan()
    out, _ = run(problem, x, device, out=target)
    assert out.data_ptr() == target.data_ptr() and out.stride() == target.stride()
    assert_matches("dense_decode.out", target, problem.expected(x)[0])
    assert outside.any() == strided and torch.equal(memory.isnan(), outside), "wrote beside out"


def test_block_table_longer_than_the_cache(device):
    problem = DenseDecode(seqlens=(5, 200))
    x = problem.build()
    args = x.to(device)
    more = torch.full((2, 300), -7, dtype=torch.int32, device=device)
    args["block_table"] = torch.cat([args["block_table"], more], 1)
    out, _ = flash_mla_with_kvcache(**args, tile_scheduler_metadata=get_mla_metadata()[0], **problem.options)
    assert_matches("dense_decode.out", out, problem.expected(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pages_shared_by_sequences(device, dtype):
    problem = DenseDecode(seqlens=(130, 130, 130), dtype=dtype)
    x = problem.build()
    x.block_table[1:] = x.block_table[0]
    x.block_table[2, 0] = x.block_table[2, 1]
    out, lse = run(problem, x, device)
    expected_out, expected_lse = problem.expected(x)
    assert_matches("dense_decode.out", out, expected_out)
    assert_matches("decode.lse", lse, expected_lse)


def test_large_logits_do_not_overflow(device):
    problem = DenseDecode(softmax_scale=20.0, h_q=4)
    check(problem, device)


def test_arguments_in_their_old_order(device):
    problem = DenseDecode(causal=True, s_q=2)
    x = problem.build()
    args = x.to(device)
    out, lse = flash_mla_with_kvcache(
        args["q"], args["k_cache"], args["block_table"], args["cache_seqlens"], 512, None, None, 0.07, True
    )
    named = flash_mla_with_kvcache(
        **args, tile_scheduler_metadata=None, head_dim_v=512, softmax_scale=0.07, causal=True
    )
    assert torch.equal(out, named[0]) and torch.equal(lse, named[1])
