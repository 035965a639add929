"""Prints a table of benchmark results and draws them against the ceilings of the machine.

Reads files that `flashmla bench --json` wrote; each holds the ceilings that were measured beside it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Row:
    """One measured case: rates in GFLOP/s and GB/s, fractions of the ceilings measured with it."""

    operation: str
    shape: str
    milliseconds: float
    gflops: float
    gbs: float
    of_peak: float
    of_read_rate: float
    of_roof: float

    @property
    def unit(self) -> str:
        """What the rate counts: operations that only move bytes have no FLOPs."""
        return "GFLOP/s" if self.gflops else "GB/s"

    @property
    def rate(self) -> float:
        """In `unit`."""
        return self.gflops or self.gbs

    @property
    def roof(self) -> float:
        """The most that this machine could reach, by arithmetic or by reading the bytes; in `unit`."""
        return self.rate / self.of_roof


def changing_keys(shapes: list[dict]) -> list[str]:
    """Names of the shape's entries that differ between the cases of a sweep, or all if none does."""
    changing = [key for key in shapes[0] if len({str(shape.get(key)) for shape in shapes}) > 1]
    return changing or list(shapes[0])


def read_rows(path: Path) -> list[Row]:
    """The cases of one file, named by what the sweep changes."""
    results = json.loads(path.read_text())["results"]
    keys = changing_keys([result["shape"] for result in results])
    return [
        Row(
            operation=result["operation"],
            shape=", ".join(f"{key} {result['shape'][key]}" for key in keys),
            milliseconds=1e3 * result["seconds"]["median"],
            gflops=result["gflops"],
            gbs=result["gbs"],
            of_peak=result["fraction_of_peak"],
            of_read_rate=result["fraction_of_read_rate"],
            of_roof=result["fraction_of_roof"],
        )
        for result in results
    ]


def print_table(rows: list[Row]) -> None:
    """One line a case."""
    width = max(len(row.shape) for row in rows)
    print(
        f"{'operation':16} {'shape':{width}} {'ms':>9} {'GFLOP/s':>9} {'of peak':>8} "
        f"{'GB/s':>7} {'of read':>8} {'of roof':>8}"
    )
    for row in rows:
        print(
            f"{row.operation:16} {row.shape:{width}} {row.milliseconds:9.2f} {row.gflops:9.1f} "
            f"{row.of_peak:8.1%} {row.gbs:7.2f} {row.of_read_rate:8.1%} {row.of_roof:8.1%}"
        )


def draw(rows: list[Row], path: Path) -> None:
    """A bar a case, one panel an operation; the line above a bar is the roof of that case."""
    operations = list(dict.fromkeys(row.operation for row in rows))
    figure, panels = plt.subplots(
        1, len(operations), figsize=(1 + 4.5 * len(operations), 4.5), squeeze=False, layout="constrained"
    )
    for panel, operation in zip(panels[0], operations, strict=True):
        draw_panel(panel, operation, [row for row in rows if row.operation == operation])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_panel(panel: plt.Axes, operation: str, rows: list[Row]) -> None:
    """The cases of one operation."""
    places = range(len(rows))
    bars = panel.bar(places, [row.rate for row in rows], width=0.6, label="measured")
    panel.bar_label(bars, labels=[f"{row.of_roof:.0%}" for row in rows])
    panel.hlines(
        [row.roof for row in rows],
        [place - 0.3 for place in places],
        [place + 0.3 for place in places],
        color="black",
        label="roof of this machine",
    )
    panel.set_xticks(places, [row.shape.replace(", ", "\n") for row in rows])
    panel.set_ylim(0, 1.25 * max(row.roof for row in rows))
    panel.set_title(operation)
    panel.set_ylabel(rows[0].unit)
    panel.legend(loc="upper left", ncols=2)


def main() -> None:
    """Reads the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of `flashmla bench`")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write, for example rates.png")
    arguments = parser.parse_args()
    rows = [row for path in arguments.results for row in read_rows(path)]
    print_table(rows)
    draw(rows, arguments.out)


if __name__ == "__main__":
    main()
