"""What a student that fulfils Eq. 11 exactly does to a structure: where the paper's form can carry the minimum of E.

    python -m experiments.exact_score          # five minutes of one core

Eq. 11 asks for the score -grad E / kT at the noise of t. By Eq. 4 the structure that such a student predicts is
S_t(R) = R - (1 - abar_t) grad E(R) / kT, but for the factor sqrt(abar_t), which is near 1 for small t: one step down E
of the length sigma_t^2 / kT. No student has to be trained to see what becomes of that; the released model's E takes
the steps here. PM6 structures of the test split are the start, the DFT structures the reference.
"""

import argparse
from functools import partial

import numpy as np
import torch
from torch import Tensor

from experiments.figures import plt, save_figure
from experiments.outside import RESULTS
from experiments.provenance import write_results, written_by
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.diffusion import noise_by_molecule
from modeling_pcbridge.graph_batch import GraphBatch
from pcbridge.evaluation.batches import moved
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.metrics import bond_length_error
from pcbridge.evaluation.references import ReferenceMolecule, graphs_for, load_references, pm6_structures

OUTPUT = RESULTS.with_name("exact_score.json")
TIMESTEPS = (1, 2, 3, 5, 7, 10, 20, 40, 100, 300)  # the paper draws from 5 to 300
# kT in eV: the paper's, and in proportion to the noise, so that every step is one over a stiffness (eV/angstrom^2).
PAPER_KT = 0.1
STIFFNESS = 133.0  # what kT = .1 eV amounts to at t = 5
NUM_STEPS = 10  # of mean shift, as many as the evidence takes
_EVALUATION = EvaluationConfig(split="test", max_molecules=200, num_samples=1, num_inference_steps=2)
_BATCH_SIZE = 50


def step_down(model: PCBridgeModel, graph: GraphBatch, positions: Tensor, length: float, num_steps: int) -> Tensor:
    """`positions` (B, N, 3) after steps of `length`, angstrom^2/eV, along the forces of E."""
    for _ in range(num_steps):
        _, forces = model.detached_energy_and_forces(graph, positions)
        positions = positions + length * forces
    return positions


def noised_step(model: PCBridgeModel, graph: GraphBatch, positions: Tensor, sigma: float, length: float) -> Tensor:
    """What the student predicts of a structure with the noise of t, as it is drawn in training."""
    num_atoms = graph.atom_mask.sum(-1).tolist()
    noise = noise_by_molecule(graph.atom_mask, num_atoms, list(range(len(num_atoms))), 1, positions.dtype)[0]
    return step_down(model, graph, positions + sigma * noise, length, 1)


def mean_bond_error(references: list[ReferenceMolecule], structures: list[np.ndarray]) -> float:
    """Angstrom, mean over molecules."""
    errors = [
        bond_length_error(reference.example.graph, structure[None], reference.positions)[0]
        for reference, structure in zip(references, structures, strict=True)
    ]
    return float(np.mean(errors))


@torch.no_grad()
def measure(model: PCBridgeModel) -> dict:
    """Bond errors of the starts, of structures relaxed on E, and of the exact student at each t and kT."""
    references, pm6 = load_references(_EVALUATION, model.config.supported_elements), pm6_structures(_EVALUATION)
    graphs = graphs_for(model, references)
    starts = [pm6(reference)[0] for reference in references]

    def error_after(move) -> float:
        return mean_bond_error(references, moved(model, graphs, starts, _BATCH_SIZE, move))

    rows = []
    for timestep in TIMESTEPS:
        sigma = float((1 - model.diffusion.alphas_cumprod[timestep]).sqrt()) * model.config.length_unit
        for kT in (PAPER_KT, STIFFNESS * sigma**2):
            length = sigma**2 / kT
            rows.append(
                {
                    "timestep": timestep,
                    "sigma": sigma,
                    "kT": kT,
                    "is_paper": kT == PAPER_KT,
                    "one step": error_after(partial(step_down, model, length=length, num_steps=1)),
                    "mean shift": error_after(partial(step_down, model, length=length, num_steps=NUM_STEPS)),
                    "one step, noised": error_after(partial(noised_step, model, sigma=sigma, length=length)),
                }
            )
    return {
        "num_molecules": len(references),
        "PM6": mean_bond_error(references, starts),
        "relaxed on E": error_after(partial(model.quasi_newton_steps, num_steps=4)),
        "rows": rows,
    }


def report(found: dict, checkpoint: str) -> str:
    """The table in Markdown."""
    lines = [
        "# A student that fulfils Eq. 11 exactly",
        "",
        f"Mean bond error, angstrom, of {found['num_molecules']} QM9 molecules of the test split against DFT. All "
        f"begin from PM6, {found['PM6']:.4f}; four quasi-Newton steps on the same E give {found['relaxed on E']:.4f}. "
        f"Mean shift: {NUM_STEPS} steps at this t. The last column begins from PM6 with the noise of t, as trained on. "
        f"{written_by('exact_score', checkpoint)}",
        "",
        "| t | noise, angstrom | kT, eV | kT / noise^2, eV/angstrom^2 | one step | mean shift | one step, noised |",
        "|---|---|---|---|---|---|---|",
    ]
    for is_paper in (True, False):
        for row in (row for row in found["rows"] if row["is_paper"] == is_paper):
            errors = " | ".join(f"{row[key]:.4f}" for key in ("one step", "mean shift", "one step, noised"))
            stiffness = row["kT"] / row["sigma"] ** 2
            lines.append(f"| {row['timestep']} | {row['sigma']:.3f} | {row['kT']:.3g} | {stiffness:.3g} | {errors} |")
    return "\n".join(lines) + "\n"


def plot(found: dict) -> None:
    """Bond errors against the noise, of the paper's kT and of one in proportion to the noise."""
    figure, axis = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for is_paper, colour, kT in ((True, "tab:red", "kT = .1 eV"), (False, "tab:blue", "kT in proportion to noise$^2$")):
        rows = [row for row in found["rows"] if row["is_paper"] == is_paper]
        for key, style in (("mean shift", "-"), ("one step, noised", ":")):
            label = f"{kT}, {key}"
            axis.plot([row["sigma"] for row in rows], [row[key] for row in rows], style, color=colour, label=label)
    for key, style in (("PM6", "--"), ("relaxed on E", "-.")):
        axis.axhline(found[key], color="grey", linestyle=style, label=key)
    axis.set_xscale("log")
    axis.set_xticks(ticks := [0.01, 0.03, 0.1, 0.3], [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set(yscale="log", xlabel="noise of t, angstrom", ylabel="bond error, angstrom", ylim=(0.003, 10))
    axis.legend(fontsize=8)
    save_figure(figure, OUTPUT.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/drug_like", help="folder or hub name")
    checkpoint = parser.parse_args().checkpoint
    found = measure(PCBridgeModel.from_pretrained(checkpoint).eval())
    write_results(OUTPUT, found, report(found, checkpoint))
    plot(found)


if __name__ == "__main__":
    main()
