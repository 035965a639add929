"""Draws what `flashmla bench --cases bench/cpu.json` measured, next to the file with the results.

`NAME.json` gives `NAME-sweeps.png`, rates over the numbers of keys and heads, and `NAME-cases.png`, the
fraction of the roof that each of the main cases reaches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CASES_SECTIONS = ("main cases", "moving data")
COLORS = {"keys": ("tab:blue", "tab:orange"), "heads": ("tab:green",)}


def roof(result: dict) -> float:
    """GFLOP/s that the case could reach at most: by arithmetic, or by reading its bytes."""
    return result["gflops"] / result["fraction_of_roof"]


def title_of(content: dict) -> str:
    """The machine, in words."""
    machine = content["machine"]
    return f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}"


def draw_sweep(panel: plt.Axes, results: list[dict], section: str, label: str) -> None:
    """A line for each series of a section, and a dashed one for its roof."""
    rows = [result for result in results if result["section"] == section]
    names = list(dict.fromkeys(row["name"] for row in rows))
    for place, (name, color) in enumerate(zip(names, COLORS[section], strict=True)):
        series = [row for row in rows if row["name"] == name]
        key = series[0]["swept"][0]
        places = [row["shape"][key] for row in series]
        dashes = (4 * place, (4, 4))  # of two equal roofs both are seen
        panel.plot(places, [roof(row) for row in series], ls=dashes, color=color, label=f"{name}: roof")
        panel.plot(places, [row["gflops"] for row in series], "o-", color=color, label=f"{name}: measured")
    values = sorted({row["shape"][rows[0]["swept"][0]] for row in rows})
    ticks = [value for value in values if value & (value - 1) == 0]
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel(label)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")


def share_limits(panels: list[plt.Axes]) -> None:
    """The same rates on both panels, with plain numbers at round places."""
    low = min(panel.get_ylim()[0] for panel in panels)
    high = max(panel.get_ylim()[1] for panel in panels)
    ticks = [step * 10**power for power in range(6) for step in (1, 2, 5)]
    for panel in panels:
        panel.set_ylim(low, high)
        panel.set_yticks([tick for tick in ticks if low <= tick <= high])
        panel.yaxis.set_major_formatter("{x:,.0f}")


def draw_sweeps(content: dict, path: Path) -> None:
    """Dense decode of one sequence over the numbers of keys and of heads."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    draw_sweep(panels[0], content["results"], "keys", "keys of the sequence")
    draw_sweep(panels[1], content["results"], "heads", "query heads")
    share_limits(list(panels))
    panels[0].set_ylabel("GFLOP/s")
    panels[0].set_title("over the length of the sequence")
    panels[1].set_title("over the number of heads")
    figure.suptitle(f"dense_decode bf16, one sequence, one query token\n{title_of(content)}")
    figure.savefig(path, dpi=120)


def draw_cases(content: dict, path: Path) -> None:
    """A bar a case: the fraction of its roof."""
    rows = [result for result in content["results"] if result["section"] in CASES_SECTIONS]
    rows.reverse()  # the first case stands on top
    figure, panel = plt.subplots(figsize=(12, 1.6 + 0.34 * len(rows)), layout="constrained")
    colors = ["tab:blue" if row["gflops"] else "tab:gray" for row in rows]
    panel.barh(range(len(rows)), [row["fraction_of_roof"] for row in rows], color=colors)
    panel.set_yticks(range(len(rows)), [f"{row['operation']}  {row['name']}" for row in rows])
    panel.set_xlim(0, 1.02 * max(1, *(row["fraction_of_roof"] for row in rows)))
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    panel.grid(axis="x", alpha=0.3)
    texts = panel.secondary_yaxis("right")
    texts.set_yticks(range(len(rows)), [bar_text(row) for row in rows])
    texts.tick_params(length=0)
    panel.set_xlabel("of the roof: the lower of peak and what the read rate allows")
    panel.set_title(title_of(content))
    panel.margins(y=0.02)
    figure.savefig(path, dpi=120)


def bar_text(row: dict) -> str:
    """The fraction, the rate, and what the peak is of."""
    if not row["gflops"]:
        return f"{row['fraction_of_roof']:.0%} of the read rate: {row['gbs']:.1f} GB/s"
    return f"{row['fraction_of_roof']:.0%}: {row['gflops']:,.0f} GFLOP/s, peak of {row['dot_instruction']}"


def main() -> None:
    """Draws the files of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of `flashmla bench --cases`")
    for path in parser.parse_args().results:
        content = json.loads(path.read_text())
        draw_sweeps(content, path.with_name(f"{path.stem}-sweeps.png"))
        draw_cases(content, path.with_name(f"{path.stem}-cases.png"))


if __name__ == "__main__":
    main()
