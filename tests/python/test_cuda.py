"""What is particular to CUDA tensors: streams, scratch memory, graphs, schedules of another batch."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flash_mla import (
    flash_mla_with_kvcache,
    get_mla_metadata,
    is_flashmla_dense_supported,
    is_flashmla_sparse_supported,
    ops,
)
from problems import DenseDecode, Tensors
from torch import Tensor

from reference import assert_matches

CUDA = torch.device("cuda")
HAS_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)

pytestmark = [
    pytest.mark.skipif(not HAS_GPU, reason="needs a GPU from SM80 on"),
    pytest.mark.skipif(
        "built without CUDA" in str(is_flashmla_dense_supported("cuda")[1]), reason="built without CUDA"
    ),
]

SPLIT = DenseDecode(seqlens=(3000, 1, 0, 1500, 64), s_q=2, h_q=16, causal=True)
"""Sequences that are divided, so that partial results go through scratch memory."""

DELAY = 100_000_000
"""Clock cycles, some 50 ms: far longer than it takes to enqueue a call."""


def call(problem: DenseDecode, args: dict[str, Tensor], meta: object = None, num_splits: object = None):
    """``out`` and ``lse``."""
    return flash_mla_with_kvcache(
        **args, **problem.options, tile_scheduler_metadata=meta, num_splits=num_splits
    )


def metadata(problem: DenseDecode, cache_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """A schedule in the older style."""
    return get_mla_metadata(cache_seqlens, problem.s_q * problem.h_q // problem.h_kv, problem.h_kv)


def assert_result(problem: DenseDecode, x: Tensors, result: tuple[Tensor, Tensor]) -> None:
    """Compares with float64."""
    expected_out, expected_lse = problem.expected(x)
    assert_matches("dense_decode.out", result[0], expected_out)
    assert_matches("decode.lse", result[1], expected_lse)


def same_bits(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    """Of all tensors."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def fresh_memory() -> Iterator[Tensor]:
    """Tensors of 64 MiB in all, full of the number 7: whatever the allocator has free for this stream."""
    for _ in range(32):
        yield torch.full((2 << 18,), 7, dtype=torch.int32, device=CUDA)
    for _ in range(64):
        yield torch.full((1 << 12,), 7, dtype=torch.int32, device=CUDA)


def assert_untouched(memory: list[Tensor]) -> None:
    """Of :func:`fresh_memory`."""
    assert all(bool((tensor == 7).all()) for tensor in memory), "scratch memory was another tensor's"


def run_in_new_process(code: str) -> None:
    """Runs a program that may import the modules of this folder."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what is supported ---


def test_dense_decode_is_supported_and_sparse_decode_is_not_yet():
    for device in (None, 0, "cuda", "cuda:0", CUDA):
        assert is_flashmla_dense_supported(device) == (True, None)
        supported, reason = is_flashmla_sparse_supported(device)
        assert supported or "needs tensors in CPU memory" in reason


def test_a_number_that_no_gpu_has():
    supported, reason = is_flashmla_dense_supported("cuda:99")
    assert not supported and "no such device" in reason


# --- results ---


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("h_q", [16, 128])
def test_divided_sequences(h_q, dtype, causal):
    problem = DenseDecode(seqlens=(4097, 0, 1, 700), s_q=2, h_q=h_q, dtype=dtype, causal=causal, strided=True)
    x = problem.build()
    assert_result(problem, x, call(problem, x.to(CUDA)))


@pytest.mark.parametrize("batch", [1, 3, 70, 200])
def test_schedule_alone_and_in_the_call_are_the_same(batch):
    """With two heads in the cache, too: the number of parts depends on them."""
    seqlens = tuple(torch.randint(0, 400, (batch,)).tolist())
    for problem in (DenseDecode(seqlens, h_q=2), DenseDecode(seqlens[:70], s_q=2, h_q=6, h_kv=2)):
        args = problem.build().to(CUDA)
        alone = call(problem, args)
        assert same_bits(call(problem, args, *metadata(problem, args["cache_seqlens"])), alone)
        assert same_bits(call(problem, args, *get_mla_metadata()), alone)


@pytest.mark.parametrize("rows", [1, 16, 17, 64, 128, 1000])
def test_schedules_of_every_batch_have_the_same_shape(rows):
    """Callers that capture graphs copy them into one buffer."""
    shapes = {
        get_mla_metadata(torch.ones(batch, dtype=torch.int32, device=CUDA), rows, 1)[0].shape
        for batch in range(0, 300, 7)
    }
    assert len(shapes) == 1


def test_a_schedule_made_on_a_gpu_is_valid_on_a_cpu():
    """There, kernels look whether each key is in exactly one part."""
    for batch in (1, 2, 5, 37, 100):
        problem = DenseDecode(seqlens=tuple(torch.randint(0, 500, (batch,)).tolist()), h_q=2)
        x = problem.build()
        meta, num_splits = metadata(problem, x.cache_seqlens.to(CUDA))
        assert_result(problem, x, call(problem, vars(x), meta.cpu(), num_splits.cpu()))


def test_a_schedule_of_fewer_or_more_parts():
    problem = SPLIT
    x = problem.build()
    args = x.to(CUDA)
    most = metadata(problem, args["cache_seqlens"])[0].shape[0]
    for parts in (1, 3, most + 50):
        schedule = torch.empty(parts, 8, dtype=torch.int32, device=CUDA)
        num_splits = torch.empty(len(problem.seqlens) + 1, dtype=torch.int32, device=CUDA)
        lengths = {"cache_seqlens": args["cache_seqlens"], "max_seqlen": 1 << 20}
        ops.make_schedule(**lengths, schedule=schedule, num_splits=num_splits)
        assert_result(problem, x, call(problem, args, schedule, num_splits))


# --- streams ---


def delayed(args: dict[str, Tensor], stream: torch.cuda.Stream) -> dict[str, Tensor]:
    """The same tensors, but the queries, NaN at first, get their values on ``stream`` after a while."""
    late = torch.full_like(args["q"], torch.nan)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY)
        late.copy_(args["q"])
    return args | {"q": late}


def test_work_goes_to_the_current_stream_and_nothing_waits():
    x = SPLIT.build()
    args = x.to(CUDA)
    call(SPLIT, args, *metadata(SPLIT, args["cache_seqlens"]))  # loads the kernels
    stream = torch.cuda.Stream()
    late = delayed(args, stream)
    with torch.cuda.stream(stream):
        by_itself = call(SPLIT, late)
        scheduled = call(SPLIT, late, *metadata(SPLIT, late["cache_seqlens"]))
    assert not stream.query(), "a call waited for the GPU"
    stream.synchronize()
    assert_result(SPLIT, x, by_itself)
    assert same_bits(by_itself, scheduled)


def test_scratch_memory_belongs_to_the_stream():
    """A call returns, and its scratch memory with it, long before its kernels run."""
    x = SPLIT.build()
    args = x.to(CUDA)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    with torch.cuda.stream(stream):
        call(SPLIT, args)  # the allocator keeps its memory for this stream,
    assert_untouched(list(fresh_memory()))  # and this for the default one: no allocation waits
    late = delayed(args, stream)
    with torch.cuda.stream(stream):
        result = call(SPLIT, late)
    others = list(fresh_memory())
    torch.cuda.current_stream().synchronize()
    assert not stream.query(), "the kernels ran too early for this test"
    stream.synchronize()
    assert_untouched(others)
    assert_result(SPLIT, x, result)


def test_two_streams_at_once():
    problems = [SPLIT, replace(SPLIT, seqlens=(2500, 900, 64, 2))]
    args = [problem.build().to(CUDA) for problem in problems]
    alone = [call(problem, each) for problem, each in zip(problems, args, strict=True)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(DELAY)
    for _ in range(50):
        for which, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[which].append(call(problems[which], args[which]))
    torch.cuda.synchronize()
    for which in range(2):
        assert all(same_bits(result, alone[which]) for result in results[which])


def test_threads_with_a_stream_each():
    problems = [replace(SPLIT, seqlens=(2000 + 100 * thread, 700)) for thread in range(4)]
    args = [problem.build().to(CUDA) for problem in problems]
    alone = [call(problem, each) for problem, each in zip(problems, args, strict=True)]
    torch.cuda.synchronize()

    def work(which: int) -> bool:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            results = [call(problems[which], args[which]) for _ in range(30)]
        stream.synchronize()
        return all(same_bits(result, alone[which]) for result in results)

    with ThreadPoolExecutor(len(problems)) as threads:
        assert all(threads.map(work, range(len(problems))))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_gpu_that_is_not_the_current_one():
    x = SPLIT.build()
    other = torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    out, lse = call(SPLIT, x.to(other))
    assert out.device == other and lse.device == other and torch.cuda.current_device() == 0
    assert_result(SPLIT, x, (out, lse))


# --- graphs ---


@pytest.mark.parametrize("style", ["none", "new", "old", "copied"])
def test_replay_with_other_lengths(style):
    """``copied``: the schedule is no part of the graph but copied into its buffers before each replay."""
    x = SPLIT.build()
    args = x.to(CUDA)
    buffers = metadata(SPLIT, args["cache_seqlens"])
    call(SPLIT, args)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        if style == "none":
            result = call(SPLIT, args)
        elif style == "new":
            meta = get_mla_metadata()
            call(SPLIT, args, *meta)
            result = call(SPLIT, args, *meta)
        else:
            pair = buffers if style == "copied" else metadata(SPLIT, args["cache_seqlens"])
            result = call(SPLIT, args, *pair)
    for seqlens in [SPLIT.seqlens, (5, 1, 0, 1400, 3), (3000, 0, 0, 0, 0), (129, 1, 0, 7, 64)]:
        x.cache_seqlens = torch.tensor(seqlens, dtype=torch.int32)
        args["cache_seqlens"].copy_(x.cache_seqlens)
        if style == "copied":
            for buffer, made in zip(buffers, metadata(SPLIT, args["cache_seqlens"]), strict=True):
                buffer.copy_(made)
        for tensor in result:
            tensor.fill_(torch.nan)
        graph.replay()
        assert_result(SPLIT, x, result)
        assert same_bits(result, call(SPLIT, args))


def test_scratch_memory_of_a_graph_stays_its_own():
    x = SPLIT.build()
    args = x.to(CUDA)
    call(SPLIT, args)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(SPLIT, args)
    others = list(fresh_memory())
    graph.replay()
    torch.cuda.synchronize()
    assert_untouched(others)
    assert_result(SPLIT, x, result)


FIRST_CALL = """
import torch
from test_cuda import CUDA, SPLIT, assert_result, call
x = SPLIT.build()
args = x.to(CUDA)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    result = call(SPLIT, args)
graph.replay()
assert_result(SPLIT, x, result)
"""


def test_the_first_call_of_a_process_may_be_captured():
    """The kernels are loaded while the graph is captured."""
    run_in_new_process(FIRST_CALL)


# --- errors ---


def only_dlpack(tensor: Tensor) -> object:
    """The tensor as one of a framework that has no allocator for others."""
    methods = {
        "__dlpack__": lambda self, **_: tensor.__dlpack__(),
        "__dlpack_device__": lambda self: tensor.__dlpack_device__(),
    }
    return type("OnlyDlpack", (), methods)()


def test_without_an_allocator_there_is_no_scratch_memory():
    lengths = torch.ones(3, dtype=torch.int32, device=CUDA)
    schedule, num_splits = metadata(SPLIT, lengths)
    tensors = {"cache_seqlens": lengths, "schedule": schedule, "num_splits": num_splits}
    ops.make_schedule(**tensors, max_seqlen=64)
    with pytest.raises(RuntimeError, match="scratch memory"):
        ops.make_schedule(**{name: only_dlpack(tensor) for name, tensor in tensors.items()}, max_seqlen=64)


def test_more_scratch_memory_than_the_gpu_has():
    x = SPLIT.build()
    args = x.to(CUDA)
    tensors = {"kv_cache" if name == "k_cache" else name: tensor for name, tensor in args.items()}
    tensors["block_table"] = torch.zeros(5, 1 << 20, dtype=torch.int32, device=CUDA)
    out, lse = call(SPLIT, args)
    with pytest.raises((MemoryError, RuntimeError)):
        ops.dense_decode(**tensors, out=out, lse=lse, split_size=1)
    assert_result(SPLIT, x, call(SPLIT, args))


CALL_AND_FORK = """
import os, torch
from problems import DenseDecode
from flash_mla import flash_mla_with_kvcache
problem = DenseDecode(h_q=1)
tensors = vars(problem.build())
flash_mla_with_kvcache(**tensors, **problem.options, tile_scheduler_metadata=None)
child = os.fork()
if child == 0:
    os._exit(0 if int(torch.ones(1, device="cuda").item()) == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_calls_on_a_cpu_leave_the_driver_alone():
    """A process that has started the driver has none in the processes that it forks."""
    run_in_new_process(CALL_AND_FORK)
