"""A decode loop: the work of a step is scheduled once, and all layers use the schedule.

How decode work is shared out depends on the lengths of the sequences, and all layers of a step have the same.
`get_mla_metadata()` gives an empty schedule, the first layer fills it, the others take it. Each layer has a
cache of its own, to which each step appends a token of each sequence. Queries attend to all tokens of a bf16
cache, or with `--topk` to some of an fp8_v32 cache.

Prints the time of attention for each layer, with one schedule for all layers and with one for each, and what
the first means in bytes read from caches and in arithmetic. Ends with 1 if the two ways differ in a bit.

    python examples/decode_loop.py
    python examples/decode_loop.py --batch 2 --heads 128 --length 8192 --topk 2048
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

import torch
from flash_mla import flash_mla_with_kvcache, get_mla_metadata, ops
from torch import Tensor

LATENT, ROPE = 512, 64
WIDTH = LATENT + ROPE
PAGE = 64
BYTES_PER_TOKEN = {"bf16": 2 * WIDTH, "fp8_v32": 656}


@dataclasses.dataclass
class Batch:
    """Sequences, whose blocks lie in random order, and the caches of all layers."""

    lengths: Tensor
    """i32 ``[batch]``."""
    block_table: Tensor
    """i32 ``[batch, max_blocks]``."""
    caches: list[Tensor]
    cache_format: str

    def slots(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """Where in the caches the tokens at these positions of these sequences are."""
        return (self.block_table[sequences, positions // PAGE] * PAGE + positions % PAGE).int()

    def append(self, sequences: Tensor, positions: Tensor) -> None:
        """Write random tokens to all caches."""
        slots = self.slots(sequences, positions)
        for cache in self.caches:
            row = torch.randn(len(slots), WIDTH, device=slots.device).bfloat16()
            ops.append_kv(latent=row[:, :LATENT], rope=row[:, LATENT:], slot_mapping=slots, kv_cache=cache)

    def grow(self) -> None:
        """Append a token to each sequence."""
        self.append(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)
        self.lengths = self.lengths + 1

    def random_indices(self, topk: int) -> Tensor:
        """Places of ``topk`` tokens of each sequence, i32 ``[batch, 1, topk]``; -1 where it has fewer."""
        indices = self.lengths.new_full((len(self.lengths), 1, topk), -1)
        for sequence, length in enumerate(self.lengths.tolist()):
            chosen = torch.randperm(length, device=indices.device)[:topk]
            indices[sequence, 0, : len(chosen)] = self.slots(torch.full_like(chosen, sequence), chosen)
        return indices


def make_batch(options: argparse.Namespace) -> Batch:
    """A batch of sequences from ``options.length`` tokens down, with room for all steps."""
    device = options.device
    lengths = [options.length * (options.batch - at) // options.batch for at in range(options.batch)]
    max_blocks = -(-(options.length + options.steps) // PAGE)
    blocks = options.batch * max_blocks
    if options.topk:
        cache_format, row, dtype = "fp8_v32", BYTES_PER_TOKEN["fp8_v32"], torch.uint8
    else:
        cache_format, row, dtype = "bf16", WIDTH, torch.bfloat16
    batch = Batch(
        lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_table=torch.randperm(blocks).int().view(options.batch, max_blocks).to(device),
        caches=[torch.empty(blocks, PAGE, 1, row, dtype=dtype, device=device) for _ in range(options.layers)],
        cache_format=cache_format,
    )
    for sequence, length in enumerate(lengths):
        positions = torch.arange(length, device=device)
        batch.append(torch.full_like(positions, sequence), positions)
    return batch


def run_layers(batch: Batch, queries: Tensor, indices: Tensor | None, share: bool) -> list[Tensor]:
    """Attention of all layers: ``[batch, 1, heads, 512]`` of each."""
    schedule, num_splits = get_mla_metadata()
    outputs = []
    for q, cache in zip(queries, batch.caches, strict=True):
        if not share:
            schedule, num_splits = get_mla_metadata()
        out, _ = flash_mla_with_kvcache(
            q,
            cache,
            batch.block_table if indices is None else None,
            batch.lengths if indices is None else None,
            LATENT,
            schedule,
            num_splits,
            is_fp8_kvcache=indices is not None,
            indices=indices,
        )
        outputs.append(out)
    return outputs


def shortest_time(repeats: int, *work: object) -> tuple[float, list[Tensor]]:
    """Seconds of the fastest of a few runs of :func:`run_layers`, and what the last one computed."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        outputs = run_layers(*work)
        if outputs[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times), outputs


def main() -> int:
    """Time a few steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048, help="tokens of the longest sequence at first")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--topk", type=int, help="tokens that a query sees; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the fastest counts")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    batch = make_batch(options)
    size = f"{options.layers} layers, {options.batch} sequences, {options.heads} heads"
    print(f"{size}, {batch.cache_format} cache")
    print("       longest     us per layer, schedule      shared schedule")
    print(" step   tokens      shared     of its own      GB/s    GFLOP/s")
    same = True
    for step in range(1, options.steps + 1):
        batch.grow()
        queries = torch.randn(options.layers, options.batch, 1, options.heads, WIDTH, device=options.device)
        indices = batch.random_indices(options.topk) if options.topk else None
        work = (batch, queries.bfloat16(), indices)
        run_layers(*work, True)
        shared, outputs = shortest_time(options.repeats, *work, True)
        own, outputs_of_own = shortest_time(options.repeats, *work, False)
        same &= all(map(torch.equal, outputs, outputs_of_own))
        seen = int(batch.lengths.sum() if indices is None else (indices >= 0).sum())
        layer = shared / options.layers
        gigabytes = seen * BYTES_PER_TOKEN[batch.cache_format] / layer / 1e9
        gigaflops = 2 * options.heads * seen * (WIDTH + LATENT) / layer / 1e9
        print(
            f"{step:5}{int(batch.lengths.max()):9}{layer * 1e6:12.1f}{own / options.layers * 1e6:15.1f}"
            f"{gigabytes:10.2f}{gigaflops:11.1f}"
        )
    print(f"same bits with both schedules: {'yes' if same else 'NO'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
