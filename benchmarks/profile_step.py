"""Where a training step's time goes: `python -m benchmarks.profile_step` writes benchmarks/results/profile.md."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import molecules
from benchmarks.subjects.pcbridge import Subject

_CASES = ("train_step", "multi_task_step", "consistency_step")
_REPEATS = 5
_ROWS = 12
# What an operation is, by the beginning of its name; the rest is small and many.
_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "unfolding pairs": ("aten::gather",),
    "copies and concatenations": ("aten::copy_", "aten::cat", "aten::fill_"),
    "multiplications and additions": ("aten::mul", "aten::add", "aten::sub", "aten::sum", "aten::addcmul", "aten::neg"),
    "activations, softmax, norms": (
        "aten::gelu",
        "aten::tanh",
        "aten::_softmax",
        "aten::native_layer_norm",
        "aten::exp",
    ),
}


def profile_step(subject: Subject, case: str, batch: dict) -> list[str]:
    """Markdown lines for one case: shares of self time by operation, and by kind."""
    run = getattr(subject, case)
    run(batch)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_REPEATS):
            run(batch)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    calls = sum(event.count for event in events) / _REPEATS
    lines = [f"## {case.replace('_', ' ')}", "", f"{calls:.0f} operations. By kind:", ""]
    for kind, names in _KINDS.items():
        share = sum(event.self_cpu_time_total for event in events if event.key.startswith(names)) / total
        lines.append(f"- {kind}: {share:.0%}")
    lines += ["", "| operation | share of time | calls |", "|---|---|---|"]
    for event in events[:_ROWS]:
        lines.append(f"| {event.key} | {event.self_cpu_time_total / total:.1%} | {event.count / _REPEATS:.0f} |")
    return [*lines, ""]


def main() -> None:
    torch.set_num_threads(1)
    subject = Subject("mini")
    batch = subject.collate(molecules.qm9_batch(molecules.load(), 32))
    lines = ["# Profile", "", "Preset mini, batch 32 of QM9 molecules, one thread, `torch.profiler`, self time.", ""]
    for case in _CASES:
        lines += profile_step(subject, case, batch)
    path = Path(__file__).parent / "results" / "profile.md"
    path.write_text("\n".join(lines))
    print(path)


if __name__ == "__main__":
    main()
