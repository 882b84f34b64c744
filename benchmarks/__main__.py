"""The benchmark: `python -m benchmarks` measures PCBridge and its peers side by side and writes benchmarks/results/.

Every program runs in a process and an environment of its own, under the same settings, and takes its turn: one
measurement of each, then the next round. What counts is the ratio of medians within the run. The peers' environments
are made on the first call, which takes some minutes more and needs PyPI. Measuring takes about ten minutes, with
`--full` four more.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import venv
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import structures, tables
from benchmarks.molecules import ALKANE_CARBONS, NUM_QM9, load
from dataset_scripts.mixture import MixtureBatchSampler

_ROOT = Path(__file__).parents[1]
_ENVIRONMENTS = Path(__file__).parent / ".venvs"
# What pip installs for each peer; its own pins decide the rest.
PEERS = {
    "torchmd_net": ["torch==2.13.0", "torchmd-net==3.1.0"],
    "schnetpack": ["schnetpack==2.1.1"],
    "mace": ["torch==2.13.0", "mace-torch==0.3.16"],
    "aimnet2": ["torch==2.13.0", "aimnet==0.2.6"],
}
# Keeps the C library from giving every large tensor back to the system at once, which slows the peers most.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
_GROWTH_BATCH = 8


class ProgramStoppedError(RuntimeError):
    """A program ended before it answered."""


class Program:
    """A worker process and its answers."""

    def __init__(self, subject: str, python: str, *options: str):
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", subject, *options],
            cwd=_ROOT,
            env={**os.environ, **ALLOCATOR},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.about = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            killed = ": the system killed it, as it does when memory runs out" if code == -9 else ""
            raise ProgramStoppedError(f"{' '.join(self.process.args)} stopped with exit code {code}{killed}")
        return json.loads(line)

    def ask(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def environment(peer: str) -> str:
    """The Python of a peer's virtual environment, made if it is not there."""
    folder = _ENVIRONMENTS / peer
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making the environment of {peer}: {', '.join(PEERS[peer])}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[peer]], check=True)
        (folder / "complete").touch()
    return str(python)


def interleaved(programs: dict[str, Program], rounds: int, cases: list[str], **request) -> list[dict]:
    """`rounds` rounds in which every program does every case once; a record a program and case."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, program in programs.items():
            for case in cases:
                seconds.setdefault((name, case), []).append(program.ask(case=case, **request)["seconds"])
    return [
        {"program": name, "case": case, **request, "seconds": values, "median": statistics.median(values)}
        for (name, case), values in seconds.items()
    ]


def large_batches(starters: dict, cases: list[str], batch_size: int) -> tuple[list[dict], dict[str, float], dict]:
    """As `interleaved` for batches that need the whole memory: one program at a time, each turn in a fresh process.

    A program that the system kills is noted, and the others go on.

    Returns:
        The records, the peak memory above that of the imports in MB, and the reasons of programs that stopped.
    """
    seconds: dict[tuple[str, str], list[float]] = {}
    memory: dict[str, float] = {}
    stopped: dict[str, str] = {}
    request = {"batch_size": batch_size, "threads": 1}
    for turn in range(2):
        for name, start in starters.items():
            if name in stopped or (turn > 0 and name == "mace"):  # MACE needs minutes a turn
                continue
            program = start()
            try:
                for case in cases:
                    program.ask(case=case, batch_size=32)  # warm-up
                for case in cases:
                    seconds.setdefault((name, case), []).append(program.ask(case=case, **request)["seconds"])
                memory[name] = program.ask(case="memory")["peak_mb"]
                program.close()
            except ProgramStoppedError as error:
                stopped[name] = str(error)
    records = [
        {"program": name, "case": case, **request, "seconds": values, "median": statistics.median(values)}
        for (name, case), values in seconds.items()
        if values
    ]
    return records, memory, stopped


def measure(quick: bool, full: bool, compile: bool, checkpoint: str | None) -> dict:
    """All measurements, as one JSON-able dictionary."""
    started = time.perf_counter()
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip()
    starters = {"PCBridge": partial(Program, "pcbridge", sys.executable, "peer")}
    for peer in () if quick else PEERS:
        starters[peer] = partial(Program, peer, environment(peer))
    programs = {name: start() for name, start in starters.items()}
    variants = {"PCBridge": programs["PCBridge"], "PCBridge mini": Program("pcbridge", sys.executable, "mini")}
    if compile:
        variants["PCBridge mini, compiled"] = Program("pcbridge", sys.executable, "mini", "compile")
    everyone = programs | variants
    peak = [everyone["PCBridge"].ask(case="peak")["gflops"]]
    records = []

    print("energies and forces, batch 32", flush=True)
    cases = ["train_step", "energy_and_forces"]
    interleaved(programs, 1, cases, batch_size=32)  # warm-up
    records += interleaved(programs, 3, cases, batch_size=32, threads=1)
    records += interleaved(programs, 1 if quick else 2, cases, batch_size=32, threads=2)
    print("growth with the molecule", flush=True)
    growing = {name: program for name, program in programs.items() if name != "mace"}
    for carbons in ALKANE_CARBONS:
        interleaved(growing, 1, ["train_step"], batch_size=_GROWTH_BATCH, carbons=carbons)
        records += interleaved(growing, 2, ["train_step"], batch_size=_GROWTH_BATCH, carbons=carbons, threads=1)

    print("stages, structures, data", flush=True)
    steps = ["multi_task_step", "consistency_step"]
    interleaved(variants, 1, steps, batch_size=32)
    for batch_size, rounds in ((32, 9),) if quick else ((32, 9), (256, 2)):
        records += interleaved(variants, rounds, steps, batch_size=batch_size, threads=1)
    records += interleaved(variants, 5, steps, batch_size=32, threads=2)
    data = ["batch_from_cache", "batch_from_smiles", "batch_from_parquet"]
    records += interleaved({"PCBridge": programs["PCBridge"]}, 3, data, batch_size=32, threads=1)
    flops = {
        case: everyone["PCBridge"].ask(case="flops", of=case, batch_size=32)["gflop"] for case in ("train_step", *steps)
    }
    peak.append(everyone["PCBridge"].ask(case="peak")["gflops"])
    for program in everyone.values():
        program.close()
    memory: dict[str, float] = {}
    stopped: dict[str, str] = {}
    if not quick:
        print("energies and forces, batch 256", flush=True)
        chosen = {name: start for name, start in starters.items() if full or name != "mace"}
        large, memory, stopped = large_batches(chosen, cases, batch_size=256)
        records += large
    sizes = [len(molecule.atomic_numbers) for molecule in load()[NUM_QM9:]]
    return {
        "machine": f"{platform.processor() or platform.machine()}, {processor_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "commit": commit,
        "date": date.today().isoformat(),
        "peak_gflops": max(peak),
        "programs": {name: program.about for name, program in everyone.items()},
        "records": records,
        "flops": flops,
        "memory_mb": memory,
        "stopped": stopped,
        "alkane_atoms": dict(zip(ALKANE_CARBONS, sizes, strict=True)),
        "growth_batch": _GROWTH_BATCH,
        "padding": padded_share(),
        "structures": structures.measure(checkpoint),
        "structures_checkpoint": checkpoint,
        "seconds": time.perf_counter() - started,
    }


def padded_share() -> dict[str, dict[str, dict[str, float]]]:
    """Share of padding among atoms and pairs of batches, in the trainer's order (by size) and in random order."""
    sizes = np.array([len(molecule.atomic_numbers) for molecule in load()[:NUM_QM9]])
    shares: dict[str, dict[str, dict[str, float]]] = {"by size": {}, "at random": {}}
    for batch_size in (32, 256):
        sampler = MixtureBatchSampler([sizes], [1.0], batch_size, num_batches=64, seed=0)
        drawn = np.array([sizes[batch] for batch in sampler])
        for order, batches in (("by size", drawn), ("at random", np.random.default_rng(0).permuted(drawn.ravel()))):
            batches = batches.reshape(-1, batch_size)
            widest = batches.max(1, keepdims=True)
            shares[order][str(batch_size)] = {
                "atoms": float(1 - batches.sum() / (widest * batch_size).sum()),
                "pairs": float(1 - np.square(batches).sum() / (np.square(widest) * batch_size).sum()),
            }
    return shares


def processor_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="PCBridge alone, batch 32: two minutes")
    parser.add_argument("--full", action="store_true", help="also MACE at batch 256: minutes per step, 17 GB")
    parser.add_argument("--compile", action="store_true", help="also the mini preset through torch.compile: minutes")
    parser.add_argument("--checkpoint", help="a trained model, for the distances to DFT structures")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    result = measure(arguments.quick, arguments.full, arguments.compile, arguments.checkpoint)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    tables.write(result, arguments.output)
    print(f"{result['seconds']:.0f} s; see {arguments.output / 'benchmark.md'}")


if __name__ == "__main__":
    main()
