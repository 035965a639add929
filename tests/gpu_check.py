"""Builds and checks everything that needs an NVIDIA GPU, without a network; `./dev gpu-check` runs it.

Needs nvcc, g++, cmake, ninja, Python, and the packages that the build names; where they are not installed,
the environment variable CMAKE_PREFIX_PATH says where they lie. Writes into the folder of --out:
  summary.json        what ran, for how long, and how it ended
  log.txt             what it printed
  cuda-resources.txt  registers and shared memory of each kernel
  bench*.json         measurements
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu-check"
SITE = BUILD / "site"
# Shared memory that a block may have on GeForce and RTX PRO cards, SM86 to SM120.
SMALL = {"FLASHMLA_CUDA_SHARED_MEMORY": "101376"}
GOLDEN = sorted(str(path) for path in (ROOT / "tests" / "golden").glob("dense_decode_*.safetensors"))
LONGEST = 1200  # seconds of one step
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Test executables, and what the tests among theirs that need a GPU are called.
TESTS = {
    "device": "*EachGpu*",
    "cases": "*EachGpu*",
    "cli": "*OnGpus*",
    "operations": "*portable*-*RandomCases*",
}


@dataclasses.dataclass
class Step:
    """One command."""

    name: str
    group: str
    command: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    needs: str = ""
    """Why it cannot run here; empty if it can."""


def compute_capability():
    """That of the first GPU: `90`."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"gpu-check: no GPU: {error}")
    return done.stdout.splitlines()[0].strip().replace(".", "")


def commit():
    """The commit that is checked, as git or else the environment says."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FLASHMLA_COMMIT", "unknown")


def missing_modules(*names):
    """A sentence that names the Python modules that are not installed, or nothing."""
    code = f"import importlib.util as u; print(*[n for n in {names!r} if u.find_spec(n) is None])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    missing = done.stdout.split()
    return f"{sys.executable} has no {', '.join(missing)}" if missing else ""


def build_steps():
    """Configures and builds for the GPU of this machine."""
    architecture = compute_capability()
    configure = ["cmake", "-S", ".", "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DFLASHMLA_CUDA=ON", f"-DFLASHMLA_CUDA_ARCHITECTURES={architecture}-real"]
    configure += [f"-DFLASHMLA_COMMIT={commit()}", "-DFLASHMLA_BUILD_EMULATOR=OFF"]
    yield Step("machine", "build", ["nvidia-smi", "-q", "-d", "CLOCK,POWER,TEMPERATURE,MEMORY,ECC"])
    yield Step("configure", "build", configure)
    yield Step("build", "build", ["cmake", "--build", str(BUILD)])
    yield Step("info", "build", [str(BUILD / "flashmla"), "info"])


def test_steps():
    """PTX wrappers; GoogleTest programs and recorded cases, each with both classes of shared memory."""
    outputs = [str(BUILD / "tests" / "cuda" / "wrappers" / "wrapper_outputs"), "compare"]
    outputs += ["tests/cuda/wrappers/h200.bin"]
    missing = "" if compute_capability() == "90" else "the recorded outputs are those of an H200"
    yield Step("PTX wrappers", "tests", outputs, {}, missing)
    for suffix, environment in (("", {}), (" with 99 KB", SMALL)):
        for name, which in TESTS.items():
            program = str(BUILD / "tests" / f"test_{name}")
            yield Step(f"test_{name}{suffix}", "tests", [program, f"--gtest_filter={which}"], environment)
        # Programs of which every test needs a GPU.
        for program in sorted((BUILD / "tests").glob("test_gpu_*")):
            if os.access(program, os.X_OK) and program.is_file():
                yield Step(f"{program.name}{suffix}", "tests", [str(program)], environment)
        random_cases = [str(BUILD / "tests" / "test_operations"), "--gtest_filter=*RandomCases*portable*"]
        environment_of_cases = environment | {"FLASHMLA_RANDOM_CASES": "500"}
        yield Step(f"500 random cases{suffix}", "tests", random_cases, environment_of_cases)
        check = [str(BUILD / "flashmla"), "check", *GOLDEN, "--backend", "portable"]
        yield Step(f"golden cases{suffix}", "tests", check, environment)


def sanitizer_steps():
    """The recorded cases under each tool of compute-sanitizer."""
    missing = "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not on the PATH"
    for suffix, environment in (("", {}), (" with 99 KB", SMALL)):
        for tool in SANITIZERS:
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
            command += [str(BUILD / "flashmla"), "check", *GOLDEN, "--backend", "portable"]
            yield Step(f"{tool}{suffix}", "sanitizers", command, environment, missing)


def python_steps():
    """The Python package on tensors of the GPU."""
    missing = missing_modules("torch", "tvm_ffi", "pytest", "scikit_build_core")
    architecture = compute_capability()
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--upgrade",
    ]
    install += [
        f"--config-settings=cmake.define.FLASHMLA_CUDA_ARCHITECTURES={architecture}-real",
        "--target",
        str(SITE),
        ".",
    ]
    yield Step("install flash_mla", "python", install, {}, missing)
    environment = {"PYTHONPATH": os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")])}
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-ra",
        "-p",
        "no:cacheprovider",
        "-k",
        "cuda",
        "tests/python",
    ]
    yield Step("Python tests", "python", pytest, environment, missing)


def bench_steps(out):
    """Measurements, with all shared memory and with that of smaller GPUs."""
    for suffix, environment in (("", {}), ("-99kb", SMALL)):
        command = [str(BUILD / "flashmla"), "bench", "--cases", "bench/gpu.json", "--backend", "portable"]
        command += ["--json", str(out / f"bench{suffix}.json")]
        yield Step(f"bench{suffix}", "bench", command, environment)


def run(step, log):
    """Runs one command with its output in the log; returns what the summary says of it."""
    if step.needs:
        log.write(f"\n== {step.name}: not run: {step.needs}\n".encode())
        return {"name": step.name, "result": "not run", "because": step.needs}
    log.write(f"\n== {step.name}: {step.environment} {' '.join(step.command)}\n".encode())
    log.flush()
    start = time.monotonic()
    environment = os.environ | step.environment
    try:
        done = subprocess.run(
            step.command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=LONGEST
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.write((getattr(error, "stdout", None) or b"") + f"{error}\n".encode())
        return {"name": step.name, "result": "failed", "because": str(error)}
    log.write(done.stdout + done.stderr)
    log.flush()
    found = {
        "name": step.name,
        "result": "passed" if done.returncode == 0 else "failed",
        "code": done.returncode,
        "seconds": round(time.monotonic() - start, 1),
    }
    counts = re.findall(rb"^\[  (PASSED|SKIPPED|FAILED) +\] (\d+) test", done.stdout, re.MULTILINE)
    found |= {word.decode().lower(): int(number) for word, number in counts}
    if Path(step.command[0]).name.startswith("test_") and found.get("passed", 0) == 0:
        found["result"] = "failed"
        found["because"] = "no test passed"
    return found


def set_up_environment():
    """Headers that have no CMake package are looked for in the prefix, too."""
    prefixes = os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep)
    includes = [str(Path(prefix) / "include") for prefix in prefixes if prefix]
    if includes:
        os.environ["CPATH"] = os.pathsep.join([*includes, *filter(None, [os.environ.get("CPATH")])])
    os.environ["PYTHONUNBUFFERED"] = "1"


def main():
    """Runs the steps in order; the exit code is 1 if one failed."""
    groups = ("build", "tests", "sanitizers", "python", "bench")
    parser = argparse.ArgumentParser(prog="./dev gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the logs and results")
    parser.add_argument(
        "--only", default=",".join(groups), help=f"some of {','.join(groups)}; build comes first"
    )
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(groups):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    set_up_environment()
    makers = {
        "build": build_steps,
        "tests": test_steps,
        "sanitizers": sanitizer_steps,
        "python": python_steps,
        "bench": lambda: bench_steps(out),
    }
    results = []
    with (out / "log.txt").open("wb") as log:
        for group in groups:
            if group not in chosen:
                continue
            for step in makers[group]():
                print(f"== {step.name}", flush=True)
                results.append({"group": group} | run(step, log))
                shown = (
                    f"{key} {value}" for key, value in results[-1].items() if key not in ("group", "name")
                )
                print(f"   {', '.join(shown)}", flush=True)
                summary = {"commit": commit(), "steps": results}
                (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
            if any(result["group"] == "build" and result["result"] == "failed" for result in results):
                break
    if (BUILD / "cuda-resources.txt").exists():
        shutil.copy(BUILD / "cuda-resources.txt", out)
    return 1 if any(result["result"] == "failed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
