"""Several processes give the run of one: two on the device by gloo, and by NCCL where there are two GPUs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

from benchmarks.gpu.options import Options, part_options
from benchmarks.gpu.results import Results
from modeling_pcbridge.errors import CalculationError

# Relative, in float64: only the order of sums differs. Losses are kept in float32.
WEIGHTS, LOSSES = 1e-8, 1e-5


def train(parent: Path, device: str, processes: int, backend: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """History and weights of the run of `benchmarks.gpu.ddp_process` on so many processes, in a new folder of `parent`.

    Raises:
        CalculationError: one of them failed.
    """
    folder = parent / f"{backend}-{processes}"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        variables = {}
        if processes > 1:
            # All of them share the first GPU, unless each has its own.
            local = rank if backend == "nccl" else 0
            variables = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "benchmarks.gpu.ddp_process", str(folder), device, backend]
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        running.append(subprocess.Popen(command, env=environment))
    codes = [process.wait() for process in running]
    if any(codes):
        raise CalculationError(f"{processes} processes by {backend} ended with exit codes {codes}")
    return json.loads((folder / "history.json").read_text()), load_file(folder / "model.safetensors")


def main(options: Options) -> None:
    results = Results(options.output, "ddp", options.device)
    table = "Two processes and one"
    backends = ["gloo"]
    if options.device == "cuda" and torch.cuda.device_count() >= 2:
        backends.append("nccl")
    with TemporaryDirectory() as name, results.whatever_happens(table, backend="none"):
        parent = Path(name)
        expected_history, expected = train(parent, options.device, 1, "gloo")
        for backend in backends:
            with results.whatever_happens(table, backend=backend):
                history, weights = train(parent, options.device, 2, backend)
                moved = max(
                    ((weights[key] - value).abs().max() / value.abs().max().clamp(min=1)).item()
                    for key, value in expected.items()
                )
                losses = max(
                    abs(record["loss"] / other["loss"] - 1)
                    for record, other in zip(history, expected_history, strict=True)
                )
                for what, error, tolerance in (("weights", moved, WEIGHTS), ("losses", losses, LOSSES)):
                    passed = error <= tolerance
                    results.add(table, backend=backend, what=what, error=error, tolerance=tolerance, passed=passed)
    results.finish()


if __name__ == "__main__":
    main(part_options())
