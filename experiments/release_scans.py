"""Torsion scans of small molecules by E of the released model, at both of its levels, beside the levels themselves.

    python -m experiments.release_scans [checkpoints/drug_like]

The molecules (`torsion_scans`) may be among the training fragments of a released model, and the table says which are.
B3LYP/6-31G* energies of the same geometries take a quarter of an hour of one core and are kept in
experiments/results/release_scans.json. Table and plot: experiments/results/release_scans.*.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from tqdm import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.quantum_chemistry import b3lyp_energy
from dataset_scripts.schema import B3LYP_6_31GD, GFN2_XTB
from experiments.figures import plt, save_figure
from experiments.provenance import written_by
from experiments.torsion_scans import Scan, make_scans, scan_errors
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs

RESULTS = Path(__file__).parent / "results" / "release_scans"
# The kinds of bonds that the project's target names: single bonds of drug-like molecules.
_NAMED = (
    "butane",
    "biphenyl",
    "butadiene",
    "methyl acetate",
    "acetamide",
    "methanesulfonamide",
    "dimethyl disulfide",
)


def known_molecules() -> set[str]:
    """Canonical SMILES without stereo of the bundled training rows."""
    names = ("fragments", "drug_like", "pm6", "pm6_displaced")
    smiles = {text for name in names for text in load_bundled(name, "train")["smiles"]}
    return {Chem.CanonSmiles(text, useChiral=0) for text in smiles}


def at_b3lyp(scans: list[Scan]) -> list[Scan]:
    """The same geometries with B3LYP/6-31G* energies."""
    stored = RESULTS.with_suffix(".json")
    energies = json.loads(stored.read_text()) if stored.exists() else {}
    for scan in tqdm(scans, unit="scan"):
        if scan.name not in energies:
            elements = [atom.GetAtomicNum() for atom in scan.mol.GetAtoms()]
            absolute = np.array([b3lyp_energy(elements, x, 0) for x in scan.positions])
            energies[scan.name] = (absolute - absolute[0]).round(5).tolist()
            stored.write_text(json.dumps(energies) + "\n")
    return [replace(scan, energies=np.array(energies[scan.name])) for scan in scans]


def errors_at(model: PCBridgeModel, scans: list[Scan], level: str) -> dict[str, dict]:
    """See `scan_errors`."""

    def energies_of(graph, positions: np.ndarray) -> np.ndarray:
        batch = GraphBatch(**pad_graphs([graph])).repeat(len(positions))
        return model.energy_and_forces(batch, torch.from_numpy(positions).float(), level)[0].numpy()

    return scan_errors(scans, energies_of)


def plot(scans: list[Scan], errors: dict[str, dict], path: Path) -> None:
    """Energies along each scan, of the level (black) and of E at it."""
    columns = 7
    figure, axes = plt.subplots(
        -(-len(scans) // columns), columns, figsize=(14, 6), sharex=True, constrained_layout=True, squeeze=False
    )
    for axis, scan in zip(axes.flat, scans, strict=False):
        axis.plot(scan.angles, scan.energies, "k.-", label=B3LYP_6_31GD)
        axis.plot(scan.angles, errors[scan.name]["model"], ".-", label="E")
        axis.set_title(scan.name, fontsize=8)
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("turned by, degrees")
    figure.supylabel("energy above the start, eV")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="checkpoints/drug_like")
    checkpoint = parser.parse_args().checkpoint
    torch.set_num_threads(1)
    scans, known = make_scans(), known_molecules()
    levels = {B3LYP_6_31GD: at_b3lyp(scans), GFN2_XTB: scans}
    model = PCBridgeModel.from_pretrained(checkpoint).eval()
    errors = {level: errors_at(model, of_level, level) for level, of_level in levels.items()}
    columns = [f"{level}{what}" for level in levels for what in (", highest", ", E's highest", ", error of E")]
    lines = [
        "# Torsion scans",
        "",
        f"Energies above the start of the scan, eV, by `{checkpoint}` and by the levels that its E was trained at, at "
        "the same geometries: the highest of the scan, and the mean absolute error of E. "
        f"{written_by('release_scans', checkpoint)}",
        "",
        f"| scan | in training | {' | '.join(columns)} |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for place, scan in enumerate(scans):
        smiles = Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(scan.mol)), useChiral=0)
        cells = []
        for level, of_level in levels.items():
            found = errors[level][scan.name]
            cells += [f"{of_level[place].energies.max():.2f}", f"{max(found['model']):.2f}", f"{found['mae']:.3f}"]
        lines.append(f"| {scan.name} | {'yes' if smiles in known else ''} | {' | '.join(cells)} |")
    of_all = {level: [scan["mae"] for scan in errors[level].values()] for level in levels}
    of_named = {level: [errors[level][name]["mae"] for name in _NAMED] for level in levels}
    for title, number, of in (
        ("mean", np.mean, of_all),
        ("median", np.median, of_all),
        (f"mean of {', '.join(_NAMED)}", np.mean, of_named),
    ):
        lines.append(f"| {title} | | " + " | ".join(f"| | {number(of[level]):.3f}" for level in levels) + " |")
    text = "\n".join([*lines, ""])
    RESULTS.with_suffix(".md").write_text(text)
    plot(levels[B3LYP_6_31GD], errors[B3LYP_6_31GD], RESULTS.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
