"""Writes what follows from the package itself: the type stub of flash_mla.ops and the API reference.

    python python/tools/generate.py [--check]

Needs flash_mla and PyTorch. With --check nothing is written; exits 1 if a file is out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path

import flash_mla
from flash_mla._library import Operation, ScalarField, TensorField, operations

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "python/flash_mla/ops.pyi"
REFERENCE = ROOT / "docs/python-api.md"


# --- the stub ---

_SCALARS = {"float": "float | None", "int": "int", "bool": "bool"}


def _stub_parameter(field: TensorField | ScalarField) -> str:
    if isinstance(field, ScalarField):
        return f"{field.name}: {_SCALARS[field.type]} = {field.default!r}"
    if field.is_list:
        return f"{field.name}: Sequence[Any]"
    return f"{field.name}: Any | None = None" if field.role == "optional" else f"{field.name}: Any"


def _stub_function(operation: Operation) -> str:
    parameters = [_stub_parameter(field) for field in (*operation.tensors, *operation.scalars)]
    parameters += ["backend: str | None = None", "threads: int = 0", "check_indices: bool = False"]
    lines = "".join(f"    {parameter},\n" for parameter in ("*", *parameters))
    return f"def {operation.name}(\n{lines}) -> None: ...\n"


def stub() -> str:
    """The text of ops.pyi."""
    head = "# Written by python/tools/generate.py.\n"
    head += "from collections.abc import Sequence\nfrom typing import Any\n\n"
    names = "".join(f'    "{name}",\n' for name in sorted(operations))
    return f"{head}__all__ = [\n{names}]\n\n" + "".join(map(_stub_function, operations.values()))


# --- the reference ---


def _joined(text: str) -> str:
    return " ".join(text.split())


def _list(text: str) -> list[str]:
    """Items that begin at the margin and go on indented: a name, a colon and its meaning."""
    items = [_joined(item).partition(": ") for item in re.split(r"\n(?=\S)", text)]
    return [*(f"- `{name}`: {meaning}" for name, _, meaning in items), ""]


def _markdown(docstring: str) -> str:
    """A docstring of Google's style as Markdown: sections become lists."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", inspect.cleandoc(docstring)).replace("``", "`")
    lines = []
    for paragraph in text.split("\n\n"):
        section = re.match(r"(Args|Returns):\n", paragraph)
        if section is None:
            lines += [_joined(paragraph), ""]
            continue
        body = textwrap.dedent(paragraph[section.end() :])
        lines += [f"**{section[1]}**", "", *(_list(body) if section[1] == "Args" else [_joined(body), ""])]
    return "\n".join(lines) + "\n"


def _signature(function: object) -> str:
    signature = inspect.signature(function)
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        parameters.append(f"{prefix}{parameter.name}{default}")
    return ", ".join(parameters)


def _function_section(name: str, function: object) -> str:
    call = textwrap.fill(f"{name}({_signature(function)})", 100, subsequent_indent="    ")
    return f"### {name}\n```\n{call}\n```\n{_markdown(function.__doc__)}"


def _class_section(name: str, described: type) -> str:
    fields = "".join(f"- `{field.name}`\n" for field in dataclasses.fields(described))
    return f"### {name}\n{_markdown(described.__doc__)}\n{fields}\n"


def _operation_section(operation: Operation) -> str:
    lines = [f"### {operation.name}", f"{operation.summary[0].upper()}{operation.summary[1:]}.", ""]
    lines += ["| argument | | types | shape | |", "| --- | --- | --- | --- | --- |"]
    for field in operation.tensors:
        types = field.types.replace("|", ", ")
        many = "list of " if field.is_list else ""
        lines.append(f"| `{field.name}` | {field.role} | {many}{types} | `{field.shape}` | {field.meaning} |")
    for scalar in operation.scalars:
        lines.append(f"| `{scalar.name}` | {scalar.default} | {scalar.type} | | {scalar.meaning} |")
    return "\n".join([*lines, "", ""])


def reference() -> str:
    """The text of the API reference."""
    sections = [
        "# Python API\n",
        "Written by `python/tools/generate.py` from docstrings and declared fields. How to use it: "
        "[python.md](python.md).\n",
        "\n## flash_mla\n",
        _markdown(flash_mla.flash_mla_interface.__doc__) + "\n",
    ]
    for name in flash_mla.__all__:
        member = getattr(flash_mla, name)
        if inspect.isclass(member):
            sections.append(_class_section(name, member))
        elif inspect.isfunction(member):
            sections.append(_function_section(name, member))
    sections += ["## flash_mla.ops\n", _markdown(flash_mla.ops.__doc__) + "\n"]
    sections += map(_operation_section, operations.values())
    return "".join(section if section.endswith("\n") else section + "\n" for section in sections)


def main() -> int:
    """Writes the files, or with --check names those that are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    result = 0
    for path, text in ((STUB, stub()), (REFERENCE, reference())):
        if check and (not path.exists() or path.read_text() != text):
            print(f"{path.relative_to(ROOT)} is out of date: run {Path(__file__).name}", file=sys.stderr)
            result = 1
        elif not check:
            path.write_text(text)
    return result


if __name__ == "__main__":
    sys.exit(main())
