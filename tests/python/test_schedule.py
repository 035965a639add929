"""get_mla_metadata: both styles, use in many layers, and the errors of a schedule used for other shapes."""

from dataclasses import replace

import pytest
import torch
from flash_mla import FlashMLASchedMeta, flash_mla_with_kvcache, get_mla_metadata
from problems import DenseDecode, Selection, SparseDecode

from reference import assert_matches

DENSE = DenseDecode(seqlens=(700, 3, 0, 130), s_q=2, h_q=6, h_kv=2, causal=True)
SPARSE = SparseDecode(s_q=2, h_q=4, main=Selection("fp8_v32", topk=300, topk_length=(300, 9)))
SPARSE_WITH_EXTRA = replace(SPARSE, extra=Selection("fp8_v32", page=16, topk=20, topk_length=(3, 20)))


def call(problem, args: dict, meta: object, num_splits: object = None, **more: object):
    """One layer."""
    options = problem.options | more
    return flash_mla_with_kvcache(**(args | options), tile_scheduler_metadata=meta, num_splits=num_splits)


def old_style(problem: DenseDecode | SparseDecode, cache_seqlens: torch.Tensor) -> tuple:
    """The pair as callers of the older interface ask for it."""
    if isinstance(problem, DenseDecode):
        return get_mla_metadata(cache_seqlens, problem.s_q * problem.h_q // problem.h_kv, problem.h_kv)
    return get_mla_metadata(cache_seqlens, problem.s_q * problem.h_q, 1, problem.h_q, True, problem.main.topk)


def lengths_of(problem: DenseDecode | SparseDecode, device: torch.device) -> torch.Tensor:
    """``cache_seqlens`` of the older style."""
    seqlens = problem.seqlens if isinstance(problem, DenseDecode) else (256,) * problem.batch
    return torch.tensor(seqlens, dtype=torch.int32, device=device)


def test_new_style_is_filled_at_first_use(device):
    meta, nothing = get_mla_metadata()
    assert isinstance(meta, FlashMLASchedMeta) and nothing is None
    assert not meta.have_initialized and meta.tile_scheduler_metadata is None
    call(DENSE, DENSE.build().to(device), meta)
    assert meta.have_initialized
    assert meta.tile_scheduler_metadata.dtype == torch.int32 and meta.tile_scheduler_metadata.shape[1:] == (
        8,
    )
    assert meta.num_splits.dtype == torch.int32 and meta.num_splits.shape == (5,)


def test_two_new_schedules_are_independent():
    assert get_mla_metadata()[0] is not get_mla_metadata()[0]


def test_old_style_gives_i32_tensors_on_the_device_of_the_lengths(device):
    cache_seqlens = lengths_of(DENSE, device)
    schedule, num_splits = old_style(DENSE, cache_seqlens)
    for tensor in (schedule, num_splits):
        assert (
            tensor.dtype == torch.int32 and tensor.device == cache_seqlens.device and tensor.is_contiguous()
        )
    assert schedule.ndim == 2 and schedule.shape[1] == 8 and num_splits.shape == (5,)
    assert num_splits[0] == 0 and (num_splits.diff() >= 1).all()


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_q_tokens_per_head_k": 6, "num_heads_k": 2},
        {
            "num_q_tokens_per_head_k": 6,
            "num_heads_k": 2,
            "num_heads_q": 6,
            "is_fp8_kvcache": False,
            "topk": None,
        },
    ],
)
def test_old_style_by_keyword_is_the_same(device, keywords):
    cache_seqlens = lengths_of(DENSE, device)
    by_position = old_style(DENSE, cache_seqlens)
    by_keyword = get_mla_metadata(cache_seqlens=cache_seqlens, **keywords)
    assert all(torch.equal(a, b) for a, b in zip(by_position, by_keyword, strict=True))


@pytest.mark.parametrize(
    ("problem", "style"),
    [(DENSE, "new"), (DENSE, "old"), (SPARSE, "new"), (SPARSE_WITH_EXTRA, "new")],
    ids=["dense, new", "dense, old", "sparse", "sparse with extra cache"],
)
def test_a_schedule_serves_every_layer(device, problem, style):
    layers = [problem.build() for _ in range(3)]
    meta, num_splits = (
        get_mla_metadata() if style == "new" else old_style(problem, lengths_of(problem, device))
    )
    for x in layers:
        out, lse = call(problem, x.to(device), meta, num_splits)
        alone = call(problem, x.to(device), None)
        assert torch.equal(out, alone[0]) and torch.equal(lse, alone[1])
        kind = "dense_decode.out" if problem is DENSE else "sparse_decode.out"
        assert_matches(kind, out, problem.expected(x)[0])


def test_old_style_sparse(device):
    problem = replace(SPARSE, main=Selection("fp8_v32", topk=300))
    x = problem.build()
    meta, num_splits = old_style(problem, lengths_of(problem, device))
    out, lse = call(problem, x.to(device), meta, num_splits)
    assert_matches("sparse_decode.out", out, problem.expected(x)[0])
    assert_matches("decode.lse", lse, problem.expected(x)[1])


def test_parts_without_work_change_nothing(device):
    args = DENSE.build().to(device)
    schedule, num_splits = old_style(DENSE, args["cache_seqlens"])
    idle = torch.tensor([[0, 0, -1, 0, 0, 0, 0, 0]] * 3, dtype=torch.int32, device=device)
    more = call(DENSE, args, torch.cat([schedule, idle]), num_splits)
    alone = call(DENSE, args, schedule, num_splits)
    assert all(torch.equal(a, b) for a, b in zip(more, alone, strict=True))


@pytest.mark.parametrize("rows_more", [0, 5])
def test_tensors_copied_into_larger_buffers(device, rows_more):
    """Callers that capture CUDA graphs keep buffers for the largest batch and hand in slices of them."""
    x = DENSE.build()
    schedule, num_splits = old_style(DENSE, lengths_of(DENSE, device))
    schedule_buffer = torch.full((schedule.shape[0] + rows_more, 8), -9, dtype=torch.int32, device=device)
    splits_buffer = torch.full((65,), -9, dtype=torch.int32, device=device)
    schedule_buffer[: schedule.shape[0]].copy_(schedule)
    splits_buffer[:5].copy_(num_splits)
    splits_buffer[5:].fill_(num_splits[-1])
    out, _ = call(DENSE, x.to(device), schedule_buffer[: schedule.shape[0]], splits_buffer[:5])
    assert_matches("dense_decode.out", out, DENSE.expected(x)[0])


def test_buffers_are_refreshed_between_steps(device):
    """The same two buffers, new lengths in each step."""
    buffers = None
    for seqlens in [(700, 3, 0, 130), (701, 4, 1, 131), (64, 2000, 9, 1)]:
        problem = replace(DENSE, seqlens=seqlens)
        x = problem.build()
        fresh = old_style(problem, lengths_of(problem, device))
        buffers = [tensor.clone() for tensor in fresh] if buffers is None else buffers
        for buffer, tensor in zip(buffers, fresh, strict=True):
            buffer.copy_(tensor)
        out, _ = call(problem, x.to(device), *buffers)
        assert_matches("dense_decode.out", out, problem.expected(x)[0])


OTHER_DENSE = [
    ("batch", replace(DENSE, seqlens=(700, 3, 0))),
    ("s_q", replace(DENSE, s_q=1)),
    ("h_q", replace(DENSE, h_q=8)),
    ("h_kv", replace(DENSE, h_kv=1)),
    ("page", replace(DENSE, page=32)),
    ("causal", replace(DENSE, causal=False)),
]


@pytest.mark.parametrize(("changed", "other"), OTHER_DENSE, ids=[name for name, _ in OTHER_DENSE])
def test_misuse_names_what_changed(device, changed, other):
    meta, _ = get_mla_metadata()
    call(DENSE, DENSE.build().to(device), meta)
    with pytest.raises(ValueError, match=rf"flash_mla_with_kvcache: .*\b{changed}\b"):
        call(other, other.build().to(device), meta)
    call(DENSE, DENSE.build().to(device), meta)


OTHER_SPARSE = [
    ("topk", replace(SPARSE, main=replace(SPARSE.main, topk=64, topk_length=(3, 4)))),
    ("topk_length", replace(SPARSE, main=replace(SPARSE.main, topk_length=None))),
    ("extra", SPARSE_WITH_EXTRA),
    ("is_fp8_kvcache", replace(SPARSE, main=replace(SPARSE.main, kv_format="bf16"))),
]


@pytest.mark.parametrize(("changed", "other"), OTHER_SPARSE, ids=[name for name, _ in OTHER_SPARSE])
def test_misuse_of_a_sparse_schedule_names_what_changed(device, changed, other):
    meta, _ = get_mla_metadata()
    call(SPARSE, SPARSE.build().to(device), meta)
    with pytest.raises(ValueError, match=rf"flash_mla_with_kvcache: .*{changed}"):
        call(other, other.build().to(device), meta)


@pytest.mark.parametrize(("first", "second"), [(DENSE, SPARSE), (SPARSE, DENSE)], ids=["dense", "sparse"])
def test_a_dense_schedule_is_no_sparse_one(device, first, second):
    meta, _ = get_mla_metadata()
    call(first, first.build().to(device), meta)
    with pytest.raises(ValueError, match="flash_mla_with_kvcache"):
        call(second, second.build().to(device), meta)


@pytest.mark.parametrize("style", ["new", "old"])
def test_lengths_other_than_the_schedule_was_made_for_are_an_error(style):
    """On a CPU, where lengths can be seen without waiting for a device."""
    cpu = torch.device("cpu")
    problem = DenseDecode(seqlens=(64, 100))
    args = problem.build().to(cpu)
    meta = get_mla_metadata() if style == "new" else old_style(problem, args["cache_seqlens"])
    call(problem, args, *meta)
    args["cache_seqlens"] = args["cache_seqlens"] - 40
    with pytest.raises(ValueError, match="schedule"):
        call(problem, args, *meta)


@pytest.mark.parametrize("misuse", ["num_splits alone", "other batch", "other type", "columns"])
def test_wrong_pairs_are_errors(device, misuse):
    schedule, num_splits = old_style(DENSE, lengths_of(DENSE, device))
    pairs = {
        "num_splits alone": (None, num_splits),
        "other batch": (schedule, num_splits[:-1]),
        "other type": (schedule.long(), num_splits),
        "columns": (schedule[:, :4], num_splits),
    }
    with pytest.raises((ValueError, TypeError), match=r"schedule|num_splits|tile_scheduler_metadata"):
        call(DENSE, DENSE.build().to(device), *pairs[misuse])


def test_a_schedule_whose_first_use_failed_stays_empty(device):
    args = DENSE.build().to(device)
    meta, _ = get_mla_metadata()
    with pytest.raises(TypeError):
        call(DENSE, args | {"k_cache": args["k_cache"].half()}, meta, None)
    assert not meta.have_initialized and meta.tile_scheduler_metadata is None
    call(DENSE, args, meta, None)
    assert meta.have_initialized


@pytest.mark.parametrize("rubbish", [-1, 0, 7, 2**31 - 1, -(2**31)])
def test_rubbish_in_a_schedule_is_an_error_or_harmless(rubbish):
    args = DENSE.build().to(torch.device("cpu"))
    schedule, num_splits = old_style(DENSE, args["cache_seqlens"])
    for broken in [
        (torch.full_like(schedule, rubbish), num_splits),
        (schedule, torch.full_like(num_splits, rubbish)),
    ]:
        with pytest.raises(ValueError, match="schedule"):
            call(DENSE, args, *broken)


@pytest.mark.parametrize(
    "arguments", [(1,), (None, 1, 1), ("x", 1, 1), (torch.zeros(2), 1, 1), (torch.ones(2, 2).int(), 1, 1)]
)
def test_wrong_arguments_of_the_old_style(arguments):
    with pytest.raises((TypeError, ValueError)):
        get_mla_metadata(*arguments)


@pytest.mark.parametrize("style", ["new", "old", "none"])
def test_batch_of_zero(device, style):
    problem = replace(DENSE, seqlens=())
    args = problem.build().to(device)
    metas = {"new": get_mla_metadata, "none": lambda: (None, None)}
    metas["old"] = lambda: old_style(problem, args["cache_seqlens"])
    out, lse = call(problem, args, *metas[style]())
    assert out.shape == (0, 2, 6, 512) and lse.shape == (0, 6, 2)
