"""Runs the cases of one program, on request, in that program's own environment.

Reads one JSON request a line from standard input and answers each with one JSON line. Needs PyTorch and NumPy only,
besides the program itself. A subject is a module of `benchmarks.subjects` whose class `Subject` has `model`, `sizes`,
`collate(molecules)` and one method a case, each of which does the work once on a batch.
"""

import importlib
import json
import resource
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import molecules as molecule_file


def _peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _batch(molecules, request: dict):
    if request.get("carbons"):
        return molecule_file.alkane_batch(molecules, request["carbons"], request["batch_size"])
    return molecule_file.qm9_batch(molecules, request["batch_size"])


def matrix_product_peak(size: int = 1536) -> float:
    """GFLOP/s of a large float32 matrix product, the best of five."""
    a = torch.randn(size, size)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:]) / 1e9


def main() -> None:
    # What a program prints must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    molecules = molecule_file.load()
    module = importlib.import_module(f"benchmarks.subjects.{sys.argv[1]}")
    baseline_mb = _peak_mb()
    subject = module.Subject(*sys.argv[2:])
    batches: dict[tuple, object] = {}

    def answer(**values) -> None:
        print(json.dumps(values), file=answers, flush=True)

    answer(parameters=sum(p.numel() for p in subject.model.parameters()), torch=torch.__version__, **subject.sizes)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request.get("threads", 1))
        if request["case"] == "peak":
            answer(gflops=matrix_product_peak())
            continue
        if request["case"] == "memory":
            answer(peak_mb=_peak_mb() - baseline_mb)
            continue
        key = (request["batch_size"], request.get("carbons"))
        if key not in batches:
            batches[key] = subject.collate(_batch(molecules, request))
        if request["case"] == "flops":
            # Not torch.utils.flop_counter, which cannot follow torch.autograd.grad.
            with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
                getattr(subject, request["of"])(batches[key])
            products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
            answer(gflop=sum(event.flops for event in profiler.key_averages() if event.key in products) / 1e9)
            continue
        run = getattr(subject, request["case"])
        start = time.perf_counter()
        run(batches[key])
        answer(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
