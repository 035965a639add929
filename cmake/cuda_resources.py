"""What each CUDA kernel uses on each architecture, as nvcc reports it. A kernel that spills fails the build.

cuda_resources.py compile NVCC ARGUMENT...  runs nvcc; what -Xptxas -v reports goes to OBJECT.resources.json
cuda_resources.py report PATH OBJECT...     gathers these files in PATH.txt and PATH.json
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

COMPILING = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FUNCTION = re.compile(r"Function properties for (\w+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
BARRIERS = re.compile(r"used (\d+) barriers")
SHARED = re.compile(r"(\d+) bytes smem")
ANY_SERIALIZED = re.compile(r"wgmma.*serialized", re.IGNORECASE)
ANY_IGNORED = re.compile(r"setmaxnreg.*ignored", re.IGNORECASE)
NUMBERS = ("registers", "barriers", "stack", "spill_stores", "spill_loads", "shared")
# Lines that say nothing beyond what the report has.
QUIET = re.compile(r"^ptxas info\s*: (\d+ bytes gmem|Compil|Function properties|Used )|bytes stack frame")


def first_number(pattern, line):
    """The number that the pattern finds in the line, or 0."""
    found = pattern.search(line)
    return int(found.group(1)) if found else 0


def parse(text):
    """The functions that ptxas compiled, and the complaints that must fail a build."""
    functions, complaints = [], []
    architecture, current = "", None
    for line in text.splitlines():
        if found := COMPILING.search(line):
            architecture = found.group(2)
        elif found := FUNCTION.search(line):
            current = {"function": found.group(1), "architecture": architecture}
            current |= {
                "registers": 0,
                "barriers": 0,
                "stack": 0,
                "spill_stores": 0,
                "spill_loads": 0,
                "shared": 0,
            }
            functions.append(current)
        elif current and (found := STACK.search(line)):
            numbers = map(int, found.groups())
            current.update(zip(("stack", "spill_stores", "spill_loads"), numbers, strict=True))
        elif current and REGISTERS.search(line):
            current["registers"] = first_number(REGISTERS, line)
            current["barriers"] = first_number(BARRIERS, line)
            current["shared"] = first_number(SHARED, line)
        elif ANY_SERIALIZED.search(line) or ANY_IGNORED.search(line):
            complaints.append(line.strip())
    for used in functions:
        if used["spill_stores"] or used["spill_loads"]:
            complaints.append(
                f"{demangled([used['function']])[0]} spills on {used['architecture']}: "
                f"{used['spill_stores']} bytes stored, {used['spill_loads']} loaded"
            )
    return functions, complaints


def demangled(names):
    """Names as they stand in the source, without parameters, if c++filt is there to tell."""
    tool = shutil.which("c++filt")
    if not tool or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    names = (
        name.replace("(anonymous namespace)::", "").removeprefix("void ") for name in done.stdout.splitlines()
    )
    return [re.sub(r"\(\S*Params\)$", "", name) for name in names]


def output_of(command):
    """The path behind -o, if nvcc is asked for one."""
    return Path(command[command.index("-o") + 1]) if "-o" in command else None


def compile_and_check(command):
    """Runs nvcc; the exit code is its own, or 1 for a kernel that must not be shipped."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    functions, complaints = parse(done.stderr)
    for line in done.stderr.splitlines():
        if not QUIET.search(line):
            print(line, file=sys.stderr)
    if done.returncode != 0:
        return done.returncode
    for complaint in complaints:
        print(f"error: {complaint}", file=sys.stderr)
    output = output_of(command)
    if complaints:
        if output:
            output.unlink(missing_ok=True)
        return 1
    if output:
        output.with_name(output.name + ".resources.json").write_text(json.dumps(functions))
    return 0


def table(functions):
    """The functions as text, one line each."""
    lines = ["architecture  registers  barriers  stack  static shared  function"]
    for used in functions:
        lines.append(
            f"{used['architecture']:<12}  {used['registers']:>9}  {used['barriers']:>8}  {used['stack']:>5}  "
            f"{used['shared']:>13}  {used['function']}"
        )
    return "\n".join(lines) + "\n"


def report(path, objects):
    """Writes what the kernels of all objects use."""
    functions = []
    for name in objects:
        functions += json.loads(Path(name + ".resources.json").read_text())
    for used, name in zip(functions, demangled([f["function"] for f in functions]), strict=True):
        used["function"] = name
    functions.sort(key=lambda used: (used["function"], int(re.sub(r"\D", "", used["architecture"]) or 0)))
    Path(path + ".txt").write_text(table(functions))
    Path(path + ".json").write_text(json.dumps(functions, indent=2) + "\n")
    return 0


def main():
    """Does what the first argument says."""
    match sys.argv[1:]:
        case ["compile", *command] if command:
            return compile_and_check(command)
        case ["report", path, *objects]:
            return report(path, objects)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
