"""Torsion scans of small molecules by the GFN2-xTB head of released models, beside GFN2-xTB itself.

    python -m experiments.release_scans checkpoints/drug_like [MORE ...]

The molecules (`torsion_scans`) may be among the training fragments of a released model, and the table says which are.
Written to experiments/results/release_scans.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem

from dataset_scripts.bundled import load_bundled
from experiments.torsion_scans import make_scans, scan_errors
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs

GFN2 = "GFN2-xTB"
RESULTS = Path(__file__).parent / "results" / "release_scans.md"


def known_molecules() -> set[str]:
    """Canonical SMILES without stereo of the bundled training rows."""
    names = ("fragments", "drug_like", "pm6", "pm6_displaced")
    smiles = {text for name in names for text in load_bundled(name, "train")["smiles"]}
    return {Chem.CanonSmiles(text, useChiral=0) for text in smiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    checkpoints = parser.parse_args().checkpoints
    scans, known = make_scans(), known_molecules()
    errors = {}
    for checkpoint in checkpoints:
        model = PCBridgeModel.from_pretrained(checkpoint).eval()

        def energies_of(graph, positions: np.ndarray, model: PCBridgeModel = model) -> np.ndarray:
            batch = GraphBatch(**pad_graphs([graph])).repeat(len(positions))
            return model.energy_and_forces(batch, torch.from_numpy(positions).float(), GFN2)[0].numpy()

        errors[checkpoint] = scan_errors(scans, energies_of)
    titles = ["/".join(Path(name).parts[-2:]) for name in checkpoints]
    lines = [
        "# Torsion scans",
        "",
        "Mean absolute error of energies above the start of the scan, eV, by the GFN2-xTB head against GFN2-xTB; the "
        "largest of its energies beside it. Written by `python -m experiments.release_scans`.",
        "",
        f"| scan | in training | GFN2-xTB, highest | {' | '.join(titles)} |",
        "|---|---|---|" + "---|" * len(titles),
    ]
    for scan in scans:
        smiles = Chem.CanonSmiles(Chem.MolToSmiles(Chem.RemoveHs(scan.mol)), useChiral=0)
        values = " | ".join(f"{errors[name][scan.name]['mae']:.3f}" for name in checkpoints)
        lines.append(f"| {scan.name} | {'yes' if smiles in known else ''} | {scan.energies.max():.2f} | {values} |")
    means = [np.mean([scan["mae"] for scan in errors[name].values()]) for name in checkpoints]
    medians = [np.median([scan["mae"] for scan in errors[name].values()]) for name in checkpoints]
    lines.append(f"| mean | | | {' | '.join(f'{value:.3f}' for value in means)} |")
    lines.append(f"| median | | | {' | '.join(f'{value:.3f}' for value in medians)} |")
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
