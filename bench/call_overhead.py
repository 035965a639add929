"""Measures what flash_mla_with_kvcache costs beyond the call of the binding, on the smallest CPU case.

    python bench/call_overhead.py

Both compute the same: one token, one head, one key, on one thread. Blocks of calls of either kind take
turns; of all blocks of a kind the quickest counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from flash_mla import flash_mla_with_kvcache, get_mla_metadata
from flash_mla._library import operations

CALLS = 200


def microseconds(call: Callable[[], object]) -> float:
    """The mean over a block of calls."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begin) / CALLS * 1e6


def main() -> int:
    """Prints the times; returns 1 if the overhead exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--limit", type=float, default=15.0, help="exit 1 if the call costs so many us more")
    options = parser.parse_args()
    torch.set_num_threads(1)

    q = torch.randn(1, 1, 1, 576).bfloat16()
    cache = torch.randn(1, 1, 1, 576).bfloat16()
    block_table = torch.zeros(1, 1, dtype=torch.int32)
    lengths = torch.ones(1, dtype=torch.int32)
    metadata, _ = get_mla_metadata()
    out, lse = flash_mla_with_kvcache(q, cache, block_table, lengths, 512, metadata)
    schedule, splits = metadata.tile_scheduler_metadata, metadata.num_splits
    run = operations["dense_decode"].run

    calls = {
        "binding": lambda: run(
            q,
            cache,
            block_table,
            lengths,
            schedule,
            splits,
            None,
            None,
            out,
            lse,
            None,
            False,
            0,
            None,
            1,
            False,
        ),
        "flash_mla_with_kvcache": lambda: flash_mla_with_kvcache(
            q, cache, block_table, lengths, 512, metadata
        ),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(options.rounds):
        for name, call in calls.items():
            best[name] = min(best[name], microseconds(call))
    for name, time_of_call in best.items():
        print(f"{name:24} {time_of_call:6.2f} us")
    overhead = best["flash_mla_with_kvcache"] - best["binding"]
    print(f"{'overhead':24} {overhead:6.2f} us, limit {options.limit} us")
    return overhead > options.limit


if __name__ == "__main__":
    sys.exit(main())
