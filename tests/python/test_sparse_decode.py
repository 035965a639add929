"""flash_mla_with_kvcache over chosen tokens of FP8 and bf16 caches."""

import pytest
import torch
from flash_mla import flash_mla_with_kvcache, get_mla_metadata
from problems import Selection, SparseDecode, Tensors, embed, on_device

import reference
from reference import assert_matches

FORMATS = ["fp8_v32", "fp8_model1", "bf16"]


def run(problem: SparseDecode, x: Tensors, device: torch.device, **more: object):
    """``out`` and ``lse`` of one call on ``device``."""
    meta, num_splits = get_mla_metadata()
    args = x.to(device) | {"tile_scheduler_metadata": meta, "num_splits": num_splits}
    return flash_mla_with_kvcache(**(args | problem.options | more))


def check(problem: SparseDecode, device: torch.device, x: Tensors | None = None) -> None:
    """Compare one call with float64."""
    x = problem.build() if x is None else x
    out, lse = run(problem, x, device)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32 and out.device.type == device.type
    expected_out, expected_lse = problem.expected(x)
    assert_matches("sparse_decode.out", out, expected_out)
    assert_matches("decode.lse", lse, expected_lse)


@pytest.mark.parametrize("h_q", [1, 3, 17, 64, 128])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_any_number_of_heads(device, kv_format, h_q):
    check(SparseDecode(h_q=h_q, main=Selection(kv_format)), device)


@pytest.mark.parametrize("s_q", [1, 2, 3])
@pytest.mark.parametrize("topk", [1, 7, 500, 2048])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_any_number_of_indices_and_queries(device, kv_format, topk, s_q):
    check(SparseDecode(s_q=s_q, h_q=4, main=Selection(kv_format, topk=topk)), device)


@pytest.mark.parametrize("spare", [0, 1, 3])
@pytest.mark.parametrize("page", [1, 7, 61, 64])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_any_page_size_and_padding_between_blocks(device, kv_format, page, spare):
    check(SparseDecode(h_q=3, main=Selection(kv_format, page=page, blocks=9, spare=spare)), device)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("lengths", [(0, 64), (1, 0), (63, 33)])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_indices_behind_topk_length_do_not_count(device, kv_format, lengths, strided):
    main = Selection(kv_format, topk_length=lengths)
    check(SparseDecode(s_q=2, h_q=3, main=main, strided=strided), device)


@pytest.mark.parametrize("sink", ["finite", "infinite"])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_attention_sink_scales_out_and_leaves_lse(device, kv_format, sink):
    problem = SparseDecode(s_q=2, h_q=17, main=Selection(kv_format, topk_length=(0, 50)), sink=sink)
    x = problem.build()
    check(problem, device, x)
    out, lse = run(problem, x, device)
    plain_out, plain_lse = run(problem, x, device, attn_sink=None)
    assert torch.equal(lse, plain_lse)
    assert (out[0] == 0).all(), "a lonely query stays 0"
    if sink == "infinite":
        assert (out[:, :, 0] == 0).all() and torch.equal(out[:, :, -1], plain_out[:, :, -1])


@pytest.mark.parametrize("extra_length", [None, (0, 5)])
@pytest.mark.parametrize("length", [None, (64, 0)])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_extra_cache_with_another_page_size(device, kv_format, length, extra_length):
    main = Selection(kv_format, topk_length=length)
    extra = Selection(kv_format, page=2, blocks=30, topk=40, topk_length=extra_length, spare=1)
    check(SparseDecode(s_q=2, h_q=5, main=main, extra=extra, sink="finite"), device)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_lonely_queries_have_zero_and_infinity(device, kv_format):
    problem = SparseDecode(s_q=2, h_q=3, main=Selection(kv_format))
    x = problem.build()
    x.indices[0, 1] = -1
    x.indices[1] = torch.where(torch.rand(x.indices[1].shape) < 0.5, 4 * 64, 2**31 - 1)
    check(problem, device, x)
    out, lse = run(problem, x, device)
    assert (out[0, 1] == 0).all() and (out[1] == 0).all()
    assert (lse[0, :, 1] == torch.inf).all() and (lse[1] == torch.inf).all() and lse[0, :, 0].isfinite().all()


@pytest.mark.parametrize("kv_format", FORMATS)
def test_duplicates_count_as_often_as_they_appear(device, kv_format):
    problem = SparseDecode(h_q=2, main=Selection(kv_format))
    x = problem.build()
    token = x.indices[0, 0][(x.indices[0, 0] >= 0) & (x.indices[0, 0] < 256)][0]
    x.indices[:] = token
    x.indices[1, 0, 1:] = -1
    check(problem, device, x)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.int8])
@pytest.mark.parametrize("kv_format", ["fp8_v32", "fp8_model1"])
def test_cache_of_any_one_byte_type(device, kv_format, dtype):
    problem = SparseDecode(main=Selection(kv_format, spare=1), extra=Selection(kv_format, page=16, spare=1))
    x = problem.build()
    expected = problem.expected(x)
    x.k_cache, x.extra_k_cache = x.k_cache.view(dtype), x.extra_k_cache.view(dtype)
    out, lse = run(problem, x, device)
    assert_matches("sparse_decode.out", out, expected[0])
    assert_matches("decode.lse", lse, expected[1])


@pytest.mark.parametrize("d_v", [512, 128])
@pytest.mark.parametrize("softmax_scale", [0.2, -0.01])
@pytest.mark.parametrize("kv_format", FORMATS)
def test_given_scale_and_width_of_values(device, kv_format, softmax_scale, d_v):
    check(SparseDecode(h_q=5, main=Selection(kv_format), softmax_scale=softmax_scale, d_v=d_v), device)


@pytest.mark.parametrize("d_qk", [576, 512])
def test_bf16_cache_of_either_width(device, d_qk):
    problem = SparseDecode(h_q=5, s_q=2, main=Selection("bf16"))
    x = problem.build()
    x.q, x.k_cache = x.q[..., :d_qk], x.k_cache[..., :d_qk]
    out, lse = run(problem, x, device, softmax_scale=0.03)
    selections = [(x.k_cache.reshape(-1, d_qk), x.indices, None)]
    expected_out, expected_lse = reference.sparse_decode(x.q, selections, 512, 0.03)
    assert_matches("sparse_decode.out", out, expected_out)
    assert_matches("decode.lse", lse, expected_lse)


@pytest.mark.parametrize("factor", [2.0**-20, 0.0123, 3.7, 2.0**9])
def test_scales_of_v32_need_not_be_powers_of_two(device, factor):
    problem = SparseDecode(h_q=3, main=Selection("fp8_v32"), softmax_scale=0.04 / factor)
    x = problem.build()
    scales = x.k_cache[..., 512:528].clone().view(torch.float32)
    factors = factor * (1 + torch.rand(scales.shape) / 3)
    x.k_cache[..., 512:528] = (scales * factors).view(torch.uint8)
    x.q[..., 512:] = 0
    check(problem, device, x)


@pytest.mark.parametrize("strided", [False, True])
def test_out_is_written_in_place_and_returned(device, strided):
    problem = SparseDecode(s_q=2, h_q=5)
    x = problem.build()
    target = torch.full((2, 2, 5, 512), 7.0).bfloat16()
    target = on_device(embed(target) if strided else target, device)
    out, _ = run(problem, x, device, out=target)
    assert out.data_ptr() == target.data_ptr() and out.stride() == target.stride()
    assert_matches("sparse_decode.out", target, problem.expected(x)[0])


@pytest.mark.parametrize("kv_format", FORMATS)
def test_block_table_and_lengths_may_be_given_and_do_not_matter(device, kv_format):
    problem = SparseDecode(main=Selection(kv_format))
    x = problem.build()
    block_table = torch.arange(4, dtype=torch.int32, device=device).view(2, 2)
    cache_seqlens = torch.tensor([3, 100], dtype=torch.int32, device=device)
    out, lse = run(problem, x, device)
    given = run(problem, x, device, block_table=block_table, cache_seqlens=cache_seqlens)
    assert torch.equal(out, given[0]) and torch.equal(lse, given[1])


def test_query_attends_to_what_dense_decode_attends_to(device):
    problem = SparseDecode(batch=1, main=Selection("bf16", topk=128, blocks=2))
    x = problem.build()
    args = {"q": x.q.to(device), "k_cache": torch.randn(2, 64, 1, 576).bfloat16().to(device)}
    indices = torch.arange(128, dtype=torch.int32, device=device).view(1, 1, 128)
    sparse = flash_mla_with_kvcache(**args, **problem.options, tile_scheduler_metadata=None, indices=indices)
    block_table = torch.tensor([[0, 1]], dtype=torch.int32, device=device)
    cache_seqlens = torch.tensor([128], dtype=torch.int32, device=device)
    dense = flash_mla_with_kvcache(
        **args,
        block_table=block_table,
        cache_seqlens=cache_seqlens,
        head_dim_v=512,
        tile_scheduler_metadata=None,
    )
    assert_matches("sparse_decode.out", sparse[0], dense[0].double())
    assert_matches("decode.lse", sparse[1], dense[1].double())
