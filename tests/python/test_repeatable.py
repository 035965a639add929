"""The same bits from every run, on any number of threads, in any process; inputs stay as they are."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from flash_mla import flash_mla_sparse_fwd, flash_mla_with_kvcache, get_mla_metadata, ops
from prefill_problem import SparsePrefill
from problems import DenseDecode, Selection, SparseDecode, Tensors
from torch import Tensor
from varlen_problem import VarlenAttention

DENSE = DenseDecode(seqlens=(900, 3, 0, 130), h_q=5, s_q=2, causal=True, strided=True)
SPARSE = SparseDecode(h_q=5, main=Selection("fp8_v32", topk=700, spare=1), sink="finite", strided=True)
PREFILL = SparsePrefill(s_q=20, h_q=5, sink="finite", lengths=True, strided=True)
VARLEN = VarlenAttention(len_q=(150, 9), len_k=(300, 9), h_q=4, h_kv=2, causal=True, strided=True)


def decode(problem: DenseDecode | SparseDecode, args: dict[str, Tensor]) -> tuple[Tensor, ...]:
    meta, num_splits = get_mla_metadata()
    options = problem.options | {"tile_scheduler_metadata": meta, "num_splits": num_splits}
    return flash_mla_with_kvcache(**args, **options)


def prefill(args: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return flash_mla_sparse_fwd(**args, sm_scale=PREFILL.scale)


def train(args: dict[str, Tensor]) -> tuple[Tensor, ...]:
    leaves = [args[name].detach().requires_grad_() for name in ("q", "k", "v")]
    out, lse = VARLEN.call(*leaves, args["cu_q"], args["cu_k"], deterministic=True)
    return out.detach(), lse, *torch.autograd.grad(out.float().square().sum(), leaves)


FUNCTIONS: dict[str, tuple[Callable[[], Tensors], Callable[[dict[str, Tensor]], tuple[Tensor, ...]]]] = {
    "dense": (DENSE.build, lambda args: decode(DENSE, args)),
    "sparse": (SPARSE.build, lambda args: decode(SPARSE, args)),
    "prefill": (PREFILL.build, prefill),
    "training": (VARLEN.build, train),
}


@pytest.fixture(params=FUNCTIONS)
def name(request: pytest.FixtureRequest) -> str:
    """Every kind of function."""
    return request.param


@pytest.fixture
def any_number_of_threads() -> Iterator[None]:
    """Set the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """All the same bits."""
    return all(torch.equal(a, r) for a, r in zip(actual, expected, strict=True))


def memory(x: Tensor) -> Tensor:
    """All bytes below ``x``."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def test_same_bits_in_every_run(device, name):
    build, function = FUNCTIONS[name]
    args = build().to(device)
    first = function(args)
    for _ in range(4):
        assert same(function(args), first)


def test_same_bits_on_any_number_of_threads(name, any_number_of_threads):
    build, function = FUNCTIONS[name]
    args = build().to(torch.device("cpu"))
    torch.set_num_threads(1)
    first = function(args)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert same(function(args), first)


def test_inputs_and_what_lies_between_them_stay_as_they_are(device, name):
    build, function = FUNCTIONS[name]
    args = build().to(device)
    before = {key: memory(x).clone() for key, x in args.items()}
    function(args)
    for key, x in args.items():
        assert torch.equal(memory(x), before[key]), key


def test_results_do_not_share_memory(device, name):
    build, function = FUNCTIONS[name]
    args = build().to(device)
    results = [*function(args), *function(args)]
    assert len({memory(x).data_ptr() for x in (*args.values(), *results)}) == len(args) + len(results)


def test_threads_calling_at_once(device, name):
    build, function = FUNCTIONS[name]
    problems = [build().to(device) for _ in range(4)]
    expected = [function(args) for args in problems]
    failures: list[str] = []
    start = threading.Barrier(len(problems))

    def work(number: int) -> None:
        start.wait()
        for _ in range(5):
            try:
                if not same(function(problems[number]), expected[number]):
                    failures.append(f"thread {number} has other bits")
            except Exception as error:
                failures.append(f"thread {number}: {error}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(problems))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive(), "a call does not return"
    assert not failures


def test_one_schedule_shared_by_threads(device):
    """The layers of pipelines that run beside each other, after the first has filled the schedule."""
    args = DENSE.build().to(device)
    meta, _ = get_mla_metadata()
    options = DENSE.options | {"tile_scheduler_metadata": meta}
    first = flash_mla_with_kvcache(**args, **options)
    results: list[bool] = []
    workers = [
        threading.Thread(
            target=lambda: results.append(same(flash_mla_with_kvcache(**args, **options), first))
        )
        for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert results == [True] * 6


def plain_bytes(tensors: tuple[Tensor, ...]) -> list[bytes]:
    """What a child of fork can compare: PyTorch's own threads do not survive a fork."""
    return [x.contiguous().view(torch.uint8).numpy().tobytes() for x in tensors]


def wait_for(child: int, seconds: float) -> int | None:
    """Exit code of a child, or None, and then it is dead."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("name", ["dense", "sparse", "prefill"])
def test_a_child_of_fork_computes_after_its_parent_has(name):
    """The threads of the parent do not live on in the child, where PyTorch's autograd refuses to run."""
    build, function = FUNCTIONS[name]
    args = build().to(torch.device("cpu"))
    expected = plain_bytes(function(args))
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if plain_bytes(function(args)) == expected else 3)
        except BaseException:
            os._exit(4)
    assert wait_for(child, 60) == 0
    assert plain_bytes(function(args)) == expected, "the parent goes on"


def compute_in_child(args: dict[str, Tensor], queue: multiprocessing.SimpleQueue) -> None:
    """Put bytes of the result into the queue."""
    queue.put(plain_bytes(decode(DENSE, args)))


@pytest.mark.filterwarnings("ignore:.*fork")
def test_workers_of_multiprocessing():
    context = multiprocessing.get_context("fork")
    args = DENSE.build().to(torch.device("cpu"))
    expected = plain_bytes(decode(DENSE, args))
    queue = context.SimpleQueue()
    workers = [context.Process(target=compute_in_child, args=(args, queue), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    results = []
    while len(results) < 2:
        assert time.monotonic() < deadline, "a child does not return"
        if queue.empty():
            time.sleep(0.01)
        else:
            results.append(queue.get())
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0
    assert results == [expected, expected]


@pytest.mark.parametrize("split_size", [64, 100])
def test_bits_of_a_row_do_not_depend_on_the_batch_with_a_fixed_split_size(device, split_size):
    x = replace(DENSE, seqlens=(900, 3, 130, 500)).build().to(device)

    def run(rows: list[int]) -> tuple[Tensor, Tensor]:
        out = torch.empty(len(rows), 2, 5, 512, dtype=torch.bfloat16, device=device)
        lse = torch.empty(len(rows), 5, 2, device=device)
        chosen = {name: x[name][rows] for name in ("q", "block_table", "cache_seqlens")}
        ops.dense_decode(
            **chosen, kv_cache=x["k_cache"], out=out, lse=lse, causal=True, split_size=split_size
        )
        return out, lse

    together = run([0, 1, 2, 3])
    for row in range(4):
        assert same(run([row]), tuple(part[row : row + 1] for part in together))
