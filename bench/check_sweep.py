"""Says where the rate of a sweep falls from one shape to the next larger one by more than a fifth.

Reads files that `flashmla bench --json` wrote. A rate may rise with a shape as steeply as it likes; it must
not fall. The rate is that of the quickest run: other programs slow down some runs, a slow kernel all of them.
Exits with 1 if a rate falls.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

LARGEST_FALL = 0.2


def quickest_rate(result: dict) -> float:
    """GFLOP/s, or GB/s of an operation that only moves bytes, of the quickest run."""
    rate = result["gflops"] or result["gbs"]
    return rate * result["seconds"]["median"] / result["seconds"]["min"]


def sweeps(results: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Value and rate of every case of each sweep over one whole number, smallest value first."""
    found = defaultdict(list)
    for result in results:
        if len(result["swept"]) != 1 or not isinstance(result["shape"][result["swept"][0]], int):
            continue
        key = result["swept"][0]
        title = " ".join(filter(None, [result["operation"], result["name"], f"over {key}"]))
        found[title].append((result["shape"][key], quickest_rate(result)))
    return {title: sorted(points) for title, points in found.items()}


def falls(points: list[tuple[int, float]]) -> list[str]:
    """A text for each neighbour that is too slow."""
    return [
        f"{before} -> {value}: {rate / rate_before - 1:.0%}, from {rate_before:.1f} to {rate:.1f}"
        for (before, rate_before), (value, rate) in pairwise(points)
        if rate < (1 - LARGEST_FALL) * rate_before
    ]


def main() -> None:
    """Checks the files of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of `flashmla bench`")
    arguments = parser.parse_args()
    failed = False
    for path in arguments.results:
        found = sweeps(json.loads(path.read_text())["results"])
        for title, points in found.items():
            for text in falls(points):
                failed = True
                print(f"{path.name}: {title}: {text}")
        print(f"{path.name}: {len(found)} sweeps, {sum(map(len, found.values()))} cases")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
