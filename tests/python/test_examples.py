"""The examples run as a reader would run them, and say that all is well."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def lines_of(name: str, *arguments: str) -> list[str]:
    """What an example prints."""
    # Threads that wait actively slow each other down where several programs run.
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_WAIT_POLICY": "passive"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def numbers_behind(label: str, lines: list[str]) -> list[list[float]]:
    """The numbers of all lines that begin with this label."""
    found = [line for line in map(str.strip, lines) if line.startswith(label)]
    return [[float(number) for number in line.removeprefix(label).split()] for line in found]


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed, whose models it runs",
)
def test_transformers_deepseek() -> None:
    lines = lines_of("transformers_deepseek.py", "--seed", "3")
    assert [line for line in lines if line.startswith("DeepSeek-")] == [
        f"DeepSeek-{kind}: greedy tokens behind prompts of 12, 7, 9 and 3 tokens" for kind in ("V2", "V3")
    ]
    tokens = {name: numbers_behind(name, lines) for name in ("eager float32", "flash_mla")}
    assert len(tokens["flash_mla"]) == 2 * 4
    assert {len(row) for row in tokens["flash_mla"]} == {16}
    assert tokens["flash_mla"] == tokens["eager float32"]
    assert sum("tokens match: yes" in line for line in lines) == 2
    for quantity in ("largest logit", "all logits / norm", "gradient / norm"):
        distances = numbers_behind(quantity, lines)
        assert len(distances) == 2
        assert all(0 < ours <= allowed for ours, _, allowed in distances)
    assert lines[-1] == "all within bounds"


def test_mla_layer() -> None:
    lines = lines_of("mla_layer.py", "--heads", "4", "--hidden", "128", "--prompts", "70", "64", "1")
    bf16 = ["prefill, MHA", "decode, MQA dense, bf16 cache", "decode, MQA sparse, bf16 cache"]
    norms = {way: numbers_behind(way, lines) for way in [*bf16, "decode, MQA sparse, fp8_v32 cache"]}
    assert all(len(rows) == 1 for rows in norms.values())
    assert all(0 < norms[way][0][1] < 0.01 for way in bf16)
    # Not the bf16 cache by mistake.
    assert 0.01 < norms["decode, MQA sparse, fp8_v32 cache"][0][1] < 0.05
    assert lines[-1] == "all within bounds"


@pytest.mark.parametrize(
    ("arguments", "cache"), [([], "bf16"), (["--topk", "100"], "fp8_v32")], ids=["dense", "sparse"]
)
def test_decode_loop(arguments: list[str], cache: str) -> None:
    sizes = [
        "--layers",
        "3",
        "--steps",
        "2",
        "--batch",
        "3",
        "--length",
        "190",
        "--heads",
        "8",
        "--repeats",
        "1",
    ]
    lines = lines_of("decode_loop.py", *sizes, *arguments)
    assert lines[0] == f"3 layers, 3 sequences, 8 heads, {cache} cache"
    steps = [line.split() for line in lines if re.match(r" +\d", line)]
    assert [step[:2] for step in steps] == [["1", "191"], ["2", "192"]]
    assert all(float(measured) > 0 for step in steps for measured in step[2:])
    assert lines[-1] == "same bits with both schedules: yes"
