"""What README and docs show of the package runs, and generated files are current."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def programs(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page, count", [("README.md", 1), ("docs/python.md", 1)])
def test_programs_run(page, count):
    found = programs(page)
    assert len(found) == count
    for program in found:
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_stub_and_api_reference_are_current():
    generate = [sys.executable, str(ROOT / "python/tools/generate.py"), "--check"]
    subprocess.run(generate, check=True, timeout=120)
