"""What a refinement saves: B3LYP/6-31G* energy left in cheap and in refined structures, and DFT optimiser steps.

    python -m experiments.qm9_dft --molecules 30            # energies; hours on one core, goes on where it stopped
    python -m experiments.qm9_dft --molecules 30 --steps    # and optimisations with geomeTRIC: a day
    python -m experiments.qm9_dft --report                  # only the table, of what is there

Needs the `qc` extra, MOPAC and data/qm9 (see `experiments.qm9_benchmark`).
Starts are minima of MMFF94 and PM6 below the DFT structure, and the same refined by checkpoints/qm9. Lines in
experiments/results/qm9_dft*.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from dataset_scripts.label_generation import read_lines
from dataset_scripts.quantum_chemistry import b3lyp_optimised
from experiments.dft_check import DFT, Structures, compute, whole_molecules
from experiments.qm9_benchmark import DATA, RESULTS, ROOT, RUN
from experiments.qm9_evaluation import refine
from experiments.qm9_molecules import MMFF, PM6, SAME_CONFORMER, cheap_structures, load_molecules
from experiments.statistics import compare
from modeling_pcbridge import PCBridgeModel

CHECKPOINT = ROOT / "checkpoints" / "qm9"
ENERGIES, STEPS = RESULTS / "qm9_dft.jsonl", RESULTS / "qm9_dft_steps.jsonl"


def structures(molecules: int) -> Structures:
    """The first molecules of the benchmark of which there is every start."""
    references = load_molecules(DATA, "test", 2 * molecules)
    starts = cheap_structures(references, RUN / "starts-test.jsonl")
    keys = [(method, SAME_CONFORMER) for method in (MMFF, PM6)]
    chosen = [(r, s.positions) for r, s in zip(references, starts, strict=True) if all(k in s.positions for k in keys)]
    chosen = chosen[:molecules]
    table: Structures = {
        reference.example.molecule_id: {DFT: (reference.example.graph.atomic_numbers.tolist(), reference.positions)}
        for reference, _ in chosen
    }
    model = PCBridgeModel.from_pretrained(CHECKPOINT)
    for key in keys:
        refined = refine(model, [r for r, _ in chosen], [positions[key] for _, positions in chosen])
        for found, (_, positions), structure in zip(table.values(), chosen, refined, strict=True):
            elements = found[DFT][0]
            found |= {key[0]: (elements, positions[key]), f"{key[0]}, refined": (elements, structure)}
    return table


def count_steps(table: Structures) -> None:
    """Append to `STEPS` the optimiser steps from every structure but the DFT one."""
    done = {(line["molecule_id"], line["structure"]) for line in read_lines(STEPS)}
    tasks = [(name, title, *x) for name, found in table.items() for title, x in found.items() if title != DFT]
    with STEPS.open("a") as output:
        for name, title, elements, positions in tqdm([task for task in tasks if task[:2] not in done], desc="steps"):
            line: dict = {"molecule_id": name, "structure": title}
            try:
                line["steps"] = b3lyp_optimised(elements, positions, 0)[2]
            except RuntimeError as error:
                line["error"] = str(error)
            output.write(json.dumps(line) + "\n")
            output.flush()


def energies_above() -> dict[str, list[float]]:
    """B3LYP/6-31G* energy above the DFT structure, eV, by structure; a value a molecule of which all converged."""
    energies = whole_molecules(read_lines(ENERGIES))
    titles = next(iter(energies.values()), {})
    return {t: [found[t]["energy_ev"] - found[DFT]["energy_ev"] for found in energies.values()] for t in titles}


def report() -> str:
    """Markdown of what there is, over molecules of which everything converged."""
    energies, steps = whole_molecules(read_lines(ENERGIES)), whole_molecules(read_lines(STEPS))
    text = [
        "# DFT energy left after refinement",
        "",
        f"{len(energies)} test molecules of QM9; B3LYP/6-31G* energy above the QM9 structure, a minimum of "
        "B3LYP/6-31G(2df,p). "
        f"Optimiser steps: geomeTRIC, default thresholds, net forces and torques taken out, {len(steps)} molecules.",
        "",
        "| structure | energy above, mean (eV) | median (eV) | RMS force, mean (eV/angstrom) | optimiser steps, mean "
        "| median |",
        "|---|---|---|---|---|---|",
    ]
    for title, above in energies_above().items():
        forces = [np.square(found[title]["forces_ev_ang"]).mean() ** 0.5 for found in energies.values()]
        counted = [found[title]["steps"] for found in steps.values() if title in found]
        of_steps = f"{np.mean(counted):.1f} | {np.median(counted):.0f}" if counted else "- | -"
        text.append(f"| {title} | {np.mean(above):.4f} | {np.median(above):.4f} | {np.mean(forces):.3f} | {of_steps} |")
    if len(steps) > 1:
        by_start = {t: [found[t]["steps"] for found in steps.values()] for t in next(iter(steps.values()))}
        saved = {t: compare(by_start[t], by_start[f"{t}, refined"]) for t in by_start if f"{t}, refined" in by_start}
        effects = [
            f"{title} {x.difference:+.1f} (95% {x.low:+.1f} to {x.high:+.1f}, p = {x.p_value:.2g})"
            for title, x in saved.items()
        ]
        text += ["", f"Steps after refinement minus before, paired over molecules: {'; '.join(effects)}."]
    return "\n".join([*text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=30)
    parser.add_argument("--steps", action="store_true", help="optimise too")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        table = structures(arguments.molecules)
        compute(table, ENERGIES)
        if arguments.steps:
            count_steps(table)
    text = report()
    Path(ENERGIES).with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
