"""How far should atoms see each other while structures are denoised? `structure_cutoff` of the config, by training.

    python -m experiments.structure_sight                  # half an hour of one core
    python -m experiments.structure_sight --report         # only the table, of what is there

Denoising alone (Eq. 7) is learned from the GFN2-xTB minima of the bundled `drug_like` molecules, by models of the width
of the preset that see everything at every noise level or, beyond three bonds, only what is within a cutoff. They are
compared on unseen molecules of its validation split, whose GFN2-xTB minima are the truth: refined from MMFF94 minima,
where the noise is small, and drawn from noise, where it is large. What is finished is not done again. Runs are in
outputs/structure_sight/, the table in experiments/results/.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.schema import GFN2_XTB
from experiments.extensive import settings_of, train_new
from experiments.outside import ROOT, mean_shifted
from experiments.same_level import mmff94_minimum
from experiments.structure_errors import Molecule, measured
from modeling_pcbridge import LossSettings, PCBridgeModel
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from pcbridge.evaluation.batches import unpadded
from pcbridge.training.config import SourceConfig, TrainingConfig

RESULTS = Path(__file__).parent / "results" / "structure_sight"
CUTOFFS: dict[str, float | None] = {"everything": None, "5 angstrom": 5.0}
_METRICS = {"bonds": 4, "one_three": 4, "angles": 2, "torsions": 1, "rmsd": 3}
_DRAWN_AT_A_TIME = 10


def settings(cutoff: float | None, updates: int, seed: int, output: Path) -> TrainingConfig:
    """A stage of denoising alone."""
    losses = LossSettings(
        energy_weight=0.0, denoising_weight=0.3, denoising_exponent=2.0, align_targets=True, force_weight=0.0
    )
    model = {"energy_levels_of_theory": [GFN2_XTB], "structure_cutoff": cutoff, "mean_shift_timesteps": [8, 1]}
    return settings_of([SourceConfig("drug_like")], model, updates, seed, output, losses, batch_size=16)


def read(count: int) -> list[Molecule]:
    """So many molecules of the validation split that MMFF94 has a minimum of, the smallest first."""
    molecules = []
    for row in load_bundled("drug_like", "validation"):
        mol = mol_from_smiles(row["mapped_smiles"])
        minimum = np.array(row["positions"])
        if len(molecules) < count and (start := mmff94_minimum(mol, minimum)) is not None:
            graph = graph_from_mol(mol, resonance_invariant=True)
            molecules.append(Molecule(row["molecule_id"], mol, graph, minimum, start, minimum))
    return sorted(molecules, key=lambda molecule: molecule.graph.num_atoms)


def drawn(model: PCBridgeModel, molecules: list[Molecule], seed: int) -> tuple[list[np.ndarray], float]:
    """One structure (N, 3), angstrom, of each molecule from noise, and the share that the checks refuse."""
    generator = torch.Generator().manual_seed(seed)
    structures: list[np.ndarray] = []
    is_sound: list[bool] = []
    for start in tqdm(range(0, len(molecules), _DRAWN_AT_A_TIME), unit="batch"):
        batch = GraphBatch(**pad_graphs([m.graph for m in molecules[start : start + _DRAWN_AT_A_TIME]]))
        output = model.predict_structure(method="ddim", mean_shift_steps=5, generator=generator, **batch.inputs)
        structures += unpadded(batch, output.positions[:, 0])
        is_sound += output.is_sound[:, 0].tolist()
    return structures, 1 - float(np.mean(is_sound))


def means(molecules: list[Molecule], structures: list[np.ndarray]) -> dict[str, float]:
    """The mean over molecules of each error of their structures (N, 3), angstrom."""
    records = measured(molecules, structures, None)["records"].values()
    return {key: float(np.nanmean([record[key] for record in records])) for key in _METRICS}


def run(cutoff: float | None, updates: int, seed: int, output: Path, molecules: list[Molecule]) -> dict:
    """Train with one cutoff, and evaluate."""
    model = train_new(settings(cutoff, updates, seed, output))
    refined = mean_shifted(model, [m.graph for m in molecules], [m.mmff for m in molecules])
    generated, unsound = drawn(model, molecules, seed)
    return {
        "updates": updates,
        "seed": seed,
        "molecules": len(molecules),
        "start": means(molecules, [m.mmff for m in molecules]),
        "refined": means(molecules, refined),
        "drawn": means(molecules, generated),
        "unsound": unsound,
    }


def report(results: dict[str, dict]) -> str:
    """A Markdown table for structures that are refined, and one for those that are drawn."""
    first = next(iter(results.values()))
    text = [
        "# What atoms see while structures are denoised",
        "",
        f"{first['updates']} updates by batches of 16 on GFN2-xTB minima of `drug_like`, seed {first['seed']}; against "
        f"those of {first['molecules']} unseen molecules. Atoms within three bonds always see each other. Lengths in "
        "angstrom. Written by `python -m experiments.structure_sight`.",
    ]
    head = "| sees | bonds | 1-3 distances | angles, degrees | torsions, degrees | all-atom RMSD |"
    text += ["", "## Refined from MMFF94 minima by mean shift", "", head, "|---" * 6 + "|"]
    text.append(_row("MMFF94", first["start"]))
    text += [_row(name, result["refined"]) for name, result in results.items()]
    text += ["", "## From noise, by DDIM and mean shift", "", f"{head} refused by the checks |", "|---" * 7 + "|"]
    text += [f"{_row(name, result['drawn'])} {100 * result['unsound']:.0f}% |" for name, result in results.items()]
    return "\n".join([*text, ""])


def _row(name: str, errors: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{errors[key]:.{digits}f}" for key, digits in _METRICS.items()) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cutoffs", nargs="+", choices=CUTOFFS, default=list(CUTOFFS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--molecules", type=int, default=150)
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "structure_sight")
    parser.add_argument("--output", type=Path, default=RESULTS, help="table and numbers, without ending")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    paths = {name: arguments.runs / f"{name.replace(' ', '_')}_{arguments.seed}.json" for name in CUTOFFS}
    missing = [name for name in arguments.cutoffs if not paths[name].exists()]
    if missing and not arguments.report:
        molecules = read(arguments.molecules)
        for name in missing:
            result = run(CUTOFFS[name], arguments.updates, arguments.seed, paths[name].with_suffix(""), molecules)
            paths[name].write_text(json.dumps(result, indent=1) + "\n")
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    text = report(results)
    arguments.output.with_suffix(".md").write_text(text)
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
