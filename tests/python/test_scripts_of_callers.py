"""Code as DeepSeek's README, vLLM and SGLang have it, run as it stands there."""

import pytest
import torch
from flash_mla import flash_mla_with_kvcache, get_mla_metadata
from problems import DenseDecode, Selection, SparseDecode

from reference import assert_matches


@pytest.mark.parametrize("h_q", [16, 128])
def test_dense_layer_loop_in_the_old_style(device, h_q):
    """Schedule once, many layers: cache_seqlens, s_q * h_q // h_kv, h_kv."""
    problem = DenseDecode(seqlens=(300, 64, 1), s_q=2, h_q=h_q, causal=True)
    layers = [problem.build() for _ in range(3)]
    for layer in layers[1:]:
        layer.block_table, layer.cache_seqlens = layers[0].block_table, layers[0].cache_seqlens
        layer.k_cache = torch.where(layers[0].k_cache.isnan(), torch.nan, torch.randn_like(layers[0].k_cache))
    num_layers, s_q, h_kv, dv = len(layers), problem.s_q, problem.h_kv, 512
    block_table, cache_seqlens = layers[0].block_table.to(device), layers[0].cache_seqlens.to(device)
    q = [layer.q.to(device) for layer in layers]
    kvcache = [layer.k_cache.to(device) for layer in layers]
    outputs = []

    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    tile_scheduler_metadata, num_splits = get_mla_metadata(cache_seqlens, s_q * h_q // h_kv, h_kv)

    for i in range(num_layers):
        o_i, lse_i = flash_mla_with_kvcache(
            q[i],
            kvcache[i],
            block_table,
            cache_seqlens,
            dv,
            tile_scheduler_metadata,
            num_splits,
            causal=True,
        )
        outputs.append((o_i, lse_i))

    for layer, (out, lse) in zip(layers, outputs, strict=True):
        expected_out, expected_lse = problem.expected(layer)
        assert_matches("dense_decode.out", out, expected_out)
        assert_matches("decode.lse", lse, expected_lse)


@pytest.mark.parametrize("is_causal", [True, False])
def test_dense_call_by_position_as_in_the_readme(device, is_causal):
    """Causal, FP8 and indices stand right behind num_splits there, without the scale."""
    problem = DenseDecode(seqlens=(300, 64, 1), s_q=2, h_q=16, causal=is_causal)
    built = problem.build()
    q, k_cache, block_table, cache_seqlens = (
        each.to(device) for each in (built.q, built.k_cache, built.block_table, built.cache_seqlens)
    )
    schedule, num_splits = get_mla_metadata(cache_seqlens, 32, 1, 16, False, None)
    out, lse = flash_mla_with_kvcache(
        q, k_cache, block_table, cache_seqlens, 512, schedule, num_splits, is_causal, False, None
    )
    expected_out, expected_lse = problem.expected(built)
    assert_matches("dense_decode.out", out, expected_out)
    assert_matches("decode.lse", lse, expected_lse)


def test_sparse_call_by_position_as_in_the_readme(device):
    problem = SparseDecode(batch=3, s_q=2, h_q=16, main=Selection("fp8_v32", topk=128))
    args = problem.build().to(device)
    q, cache, indices = args["q"], args["k_cache"], args["indices"]
    lengths = torch.zeros(3, dtype=torch.int32, device=device)
    schedule, num_splits = get_mla_metadata(lengths, 32, 1, 16, True, 128)
    by_position = flash_mla_with_kvcache(
        q, cache, None, lengths, 512, schedule, num_splits, False, True, indices
    )
    by_name = flash_mla_with_kvcache(q, cache, None, None, 512, None, is_fp8_kvcache=True, indices=indices)
    for one, other in zip(by_position, by_name, strict=True):
        assert torch.equal(one, other)


def test_indices_by_name_behind_a_bool(device):
    problem = SparseDecode(batch=3, s_q=2, h_q=16, main=Selection("fp8_v32", topk=128))
    args = problem.build().to(device)
    q, cache, indices = args["q"], args["k_cache"], args["indices"]
    by_name = flash_mla_with_kvcache(q, cache, None, None, 512, None, is_fp8_kvcache=True, indices=indices)
    mixed = flash_mla_with_kvcache(q, cache, None, None, 512, None, None, False, True, indices=indices)
    assert torch.equal(mixed[0], by_name[0])


def test_a_schedule_without_its_number_of_splits(device):
    """vLLM keeps the first result of get_mla_metadata alone."""
    problem = DenseDecode(seqlens=(1500, 64, 1), s_q=2, h_q=16, causal=True)
    built = problem.build()
    args = built.to(device)
    scheduler_metadata, _ = get_mla_metadata(args["cache_seqlens"], 2 * 16, 1, is_fp8_kvcache=False)
    out, lse = flash_mla_with_kvcache(
        q=args["q"],
        k_cache=args["k_cache"],
        block_table=args["block_table"],
        cache_seqlens=args["cache_seqlens"],
        head_dim_v=512,
        tile_scheduler_metadata=scheduler_metadata,
        softmax_scale=576**-0.5,
        causal=True,
        is_fp8_kvcache=False,
    )
    expected_out, expected_lse = problem.expected(built)
    assert_matches("dense_decode.out", out, expected_out)
    assert_matches("decode.lse", lse, expected_lse)


@pytest.mark.parametrize("is_fp8", [True, False])
def test_sparse_layer_loop_in_the_old_style(device, is_fp8):
    """With h_q, is_fp8 and topk; block_table and cache_seqlens are handed in too."""
    main = Selection("fp8_v32" if is_fp8 else "bf16", topk=128)
    problem = SparseDecode(batch=3, s_q=2, h_q=128, main=main)
    layers = [problem.build() for _ in range(2)]
    s_q, h_q, h_kv, topk, dv = problem.s_q, problem.h_q, 1, main.topk, 512
    block_table = torch.arange(12, dtype=torch.int32, device=device).view(3, 4) % main.blocks
    cache_seqlens = torch.tensor([256, 100, 30], dtype=torch.int32, device=device)

    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    tile_scheduler_metadata, num_splits = get_mla_metadata(
        cache_seqlens,
        s_q * h_q // h_kv,
        h_kv,
        h_q,
        is_fp8,
        topk,
    )

    for layer in layers:
        args = layer.to(device)
        kvcache = args["k_cache"].view(torch.float8_e4m3fn) if is_fp8 else args["k_cache"]
        o, lse = flash_mla_with_kvcache(
            args["q"],
            kvcache,
            block_table,
            cache_seqlens,
            dv,
            tile_scheduler_metadata,
            num_splits,
            is_fp8_kvcache=is_fp8,
            indices=args["indices"],
        )
        expected_out, expected_lse = problem.expected(layer)
        assert_matches("sparse_decode.out", o, expected_out)
        assert_matches("decode.lse", lse, expected_lse)


def test_layer_loop_in_the_new_style(device):
    problem = SparseDecode(batch=2, h_q=64, main=Selection("fp8_model1", topk=64, spare=1))
    layers = [problem.build() for _ in range(3)]

    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    sched_meta, _ = get_mla_metadata()
    for layer in layers:
        args = layer.to(device)
        o, lse = flash_mla_with_kvcache(
            args["q"],
            args["k_cache"],
            None,
            None,
            512,
            sched_meta,
            None,
            192**-0.5,
            False,
            True,
            args["indices"],
        )
        expected_out, expected_lse = SparseDecode(2, 1, 64, problem.main, softmax_scale=192**-0.5).expected(
            layer
        )
        assert_matches("sparse_decode.out", o, expected_out)
        assert_matches("decode.lse", lse, expected_lse)


def test_buffers_of_a_captured_graph(device):
    """As callers with a fixed largest batch do it: fill once, then copy into slices before every replay."""
    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    max_batch, h_q = 8, 16
    full = torch.ones(max_batch, dtype=torch.int32, device=device)
    cuda_graph_mla_metadata, cuda_graph_num_splits = get_mla_metadata(full, h_q, 1)
    for seqlens in [(5, 130), (700, 1, 64, 65, 3), (1,) * 8]:
        bs = len(seqlens)
        problem = DenseDecode(seqlens=seqlens, h_q=h_q)
        x = problem.build()
        args = x.to(device)
        mla_metadata, num_splits = get_mla_metadata(args["cache_seqlens"].to(torch.int32), h_q, 1)
        cuda_graph_mla_metadata.copy_(mla_metadata)
        cuda_graph_num_splits[: bs + 1].copy_(num_splits)
        o, _ = flash_mla_with_kvcache(
            q=args["q"].view(bs, -1, h_q, 576),
            k_cache=args["k_cache"].view(-1, 64, 1, 576),
            block_table=args["block_table"],
            cache_seqlens=args["cache_seqlens"],
            head_dim_v=512,
            tile_scheduler_metadata=cuda_graph_mla_metadata,
            num_splits=cuda_graph_num_splits[: bs + 1],
            softmax_scale=problem.scale,
            causal=True,
        )
        assert_matches("dense_decode.out", o, problem.expected(x)[0])


def test_import_paths_of_callers():
    from flash_mla import flash_mla_interface

    for name in ("flash_mla_with_kvcache", "get_mla_metadata", "flash_mla_sparse_fwd", "FlashMLASchedMeta"):
        assert getattr(flash_mla_interface, name) is getattr(__import__("flash_mla"), name)
