"""The benchmark's Markdown tables and its plot, from the numbers of one run."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

LABELS = {
    "PCBridge": "PCBridge",
    "torchmd_net": "TorchMD-NET ET",
    "schnetpack": "SchNetPack PaiNN",
    "mace": "MACE",
    "aimnet2": "AIMNet2",
}
# Of the first table: what was timed, batch size, threads.
COLUMNS = [
    ("train_step", 32, 1),
    ("train_step", 256, 1),
    ("train_step", 32, 2),
    ("energy_and_forces", 32, 1),
    ("energy_and_forces", 256, 1),
]


def find(result: dict, program: str, case: str, batch_size: int, threads: int = 1, carbons: int | None = None):
    """Median seconds, or None where it was not measured."""
    wanted = {"program": program, "case": case, "batch_size": batch_size, "threads": threads, "carbons": carbons}
    for record in result["records"]:
        if all(record.get(key) == value for key, value in wanted.items()):
            return record["median"]
    return None


def growth_exponent(result: dict, program: str) -> float | None:
    """Slope of log time against log atoms, over the molecules of 20 atoms and more."""
    points = [
        (atoms, seconds)
        for carbons, atoms in result["alkane_atoms"].items()
        if atoms >= 20
        and (seconds := find(result, program, "train_step", result["growth_batch"], carbons=int(carbons)))
    ]
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0]) if points else None


def write(result: dict, folder: Path) -> None:
    """benchmark.md and benchmark.png in `folder`."""
    programs = [name for name in LABELS if name in result["programs"]]
    sections = [_heading, _energies_and_forces, _stages, _data, _structures]
    lines = [line for section in sections for line in [*section(result), ""]]
    lines += ["![Molecules per second, and time against molecule size](benchmark.png)", ""]
    (folder / "benchmark.md").write_text("\n".join(lines))
    _plot(result, programs, folder / "benchmark.png")


def _heading(result: dict) -> list[str]:
    return [
        "# Benchmark",
        "",
        f"{result['date']}, commit {result['commit']}, {result['machine']}, Python {result['python']}; "
        f"{result['seconds']:.0f} s in all. Largest matrix product: {result['peak_gflops']:.0f} GFLOP/s a core "
        "(float32). Machine and load vary; the ratios are within this run.",
    ]


def _energies_and_forces(result: dict) -> list[str]:
    return [
        "## Energies and forces",
        "",
        "Molecules per second, QM9 molecules of 18 and 19 atoms, float32; in brackets how many times as fast PCBridge "
        "is. Training is one update on energies and forces.",
        "",
        "| | parameters | width, layers, cutoff | train, 32 | train, 256 | train, 32, 2 threads | infer, 32 "
        "| infer, 256 | peak MB, 256 | growth exponent |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_program_row(result, name) for name in LABELS if name in result["programs"]),
        "",
        "Parameters of PCBridge: those of the energy model. Memory: above that of the imports.",
        *(
            f"{LABELS[name]} at batch 256: {reason.partition(' stopped ')[2]}."
            for name, reason in result["stopped"].items()
        ),
    ]


def _program_row(result: dict, name: str) -> str:
    about = result["programs"][name]
    cells = [_rate(result, name, *column) for column in COLUMNS]
    exponent = growth_exponent(result, name)
    peak = f"{result['memory_mb'][name]:,.0f}" if name in result["memory_mb"] else "-"
    parameters = about.get("energy_parameters", about["parameters"])
    return (
        f"| {LABELS[name]} (torch {about['torch']}) | {parameters:,} | {about['width']}, {about['layers']}, "
        f"{about['cutoff']} | {' | '.join(cells)} | {peak} | "
        f"{'-' if exponent is None else f'{exponent:.2f}'} |"
    )


def _rate(result: dict, name: str, case: str, batch_size: int, threads: int) -> str:
    """Molecules per second, and how many times as fast PCBridge is."""
    seconds, ours = (find(result, who, case, batch_size, threads) for who in (name, "PCBridge"))
    if seconds is None:
        return "killed" if name in result["stopped"] and batch_size == 256 else "-"
    ratio = "" if name == "PCBridge" else f" ({seconds / ours:.1f})"
    return f"{batch_size / seconds:.3g}{ratio}"


def _stages(result: dict) -> list[str]:
    lines = [
        "## The stages of training",
        "",
        "Molecules per second.",
        "",
        "| | batch | threads | stage 1 (energy, force, denoising) | stage 2 (both consistency losses besides) | cost |",
        "|---|---|---|---|---|---|",
    ]
    for name in (name for name in result["programs"] if name.startswith("PCBridge")):
        for batch_size, threads in ((32, 1), (32, 2), (256, 1)):
            first = find(result, name, "multi_task_step", batch_size, threads)
            second = find(result, name, "consistency_step", batch_size, threads)
            if first and second:
                lines.append(
                    f"| {name} | {batch_size} | {threads} | {batch_size / first:.0f} | {batch_size / second:.0f} | "
                    f"{second / first:.2f} x |"
                )
    shares = [
        f"{case.replace('_', ' ')} {gflop / find(result, 'PCBridge', case, 32) / result['peak_gflops']:.0%}"
        for case, gflop in result["flops"].items()
    ]
    lines += ["", "Share of the largest matrix product's speed (batch 32, products only counted):"]
    return [*lines, ",\n".join(shares) + "."]


def _data(result: dict) -> list[str]:
    step = find(result, "PCBridge mini", "multi_task_step", 32)
    lines = ["## Data", "", "| batch of 32 | molecules per second | share of a mini stage-1 step |", "|---|---|---|"]
    for case, what in (
        ("batch_from_cache", "collated from cached graphs (every step)"),
        ("batch_from_parquet", "from Parquet rows (once)"),
        ("batch_from_smiles", "from SMILES (once)"),
    ):
        seconds = find(result, "PCBridge", case, 32)
        lines.append(f"| {what} | {32 / seconds:.0f} | {seconds / step:.1%} |")
    padding = "; ".join(
        f"batch {size}, {order}: {share['atoms']:.1%}, {share['pairs']:.1%}"
        for order, shares in result["padding"].items()
        for size, share in shares.items()
    )
    return [*lines, "", f"Padded share of a batch of QM9 molecules (atoms, pairs of atoms): {padding}."]


def _structures(result: dict) -> list[str]:
    trained = result["structures_checkpoint"] is not None
    lines = [
        "## One structure",
        "",
        "32 test molecules of the bundled data, one thread; angstrom, against the DFT structure. PCBridge: preset "
        + ("mini, trained." if trained else "mini, untrained, so without distances."),
        "",
        "| | seconds per molecule | heavy RMSD mean / median | bond error |",
        "|---|---|---|---|",
    ]
    for record in result["structures"]:
        errors = "- | -"
        if "heavy_rmsd_mean" in record:
            errors = (
                f"{record['heavy_rmsd_mean']:.3f} / {record['heavy_rmsd_median']:.3f} | "
                f"{record['bond_length_error']:.4f}"
            )
        lines.append(f"| {record['name']} | {record['seconds']:.4f} | {errors} |")
    return lines


def _plot(result: dict, programs: list[str], path: Path) -> None:
    figure, (bars, growth) = plt.subplots(1, 2, figsize=(11, 4))
    groups = [("train_step", 32), ("train_step", 256), ("energy_and_forces", 32), ("energy_and_forces", 256)]
    width = 0.8 / len(programs)
    for number, name in enumerate(programs):
        rates = [
            batch_size / seconds if (seconds := find(result, name, case, batch_size)) else np.nan
            for case, batch_size in groups
        ]
        container = bars.bar(np.arange(len(groups)) + number * width, rates, width, label=LABELS[name])
        bars.bar_label(container, fmt="%.3g", fontsize=7)
    bars.set_yscale("log")
    bars.set_xticks(np.arange(len(groups)) + 0.4 - width / 2, ["train\n32", "train\n256", "infer\n32", "infer\n256"])
    bars.set_ylabel("molecules per second")
    bars.set_title("QM9 molecules, energies and forces, one core", fontsize=10)
    bars.legend(fontsize=8, ncols=2, loc="upper left")
    bars.set_ylim(top=bars.get_ylim()[1] * 8)
    for name in programs:
        points = [
            (atoms, seconds / result["growth_batch"])
            for carbons, atoms in result["alkane_atoms"].items()
            if (seconds := find(result, name, "train_step", result["growth_batch"], carbons=int(carbons)))
        ]
        if points:
            growth.loglog(
                *zip(*points, strict=True), "o-", label=f"{LABELS[name]} ({growth_exponent(result, name):.2f})"
            )
    growth.set_xlabel("atoms")
    growth.set_ylabel("training step, seconds per molecule")
    growth.set_title("n-alkanes, batch 8 (growth exponent from 20 atoms)", fontsize=10)
    growth.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
