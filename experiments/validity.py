"""Are structures of drug-like molecules valid, and is the right conformer among them? Judged by PoseBusters and RDKit.

    python -m experiments.validity flexisol_validation.parquet            # hours of one core, goes on where it stopped
    python -m experiments.validity flexisol_validation.parquet --report   # only the tables and the plot

The file is that of `experiments.outside`. Of each molecule: ten conformers of ETKDGv3 and MMFF94, the same refined by
checkpoints/drug_like as `pcbridge predict` does, and two structures that it draws from noise by DDIM. Each is judged by
PoseBusters (extra `validity`), by the bonds and the stereo that RDKit perceives, and by the check of this project,
`StructureChecks`, after which the command writes no broken ones. Then the heavy-atom RMSD of the closest of 20 and of
100 conformers to the DFT structure. Molecules come in a random order, so that a run cut short is a fair sample. Lines
go to experiments/results/validity.jsonl, the report beside it; lines of other weights do not count.
"""

import argparse
import json
import os
import platform
import random
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rdkit import RDLogger
from tqdm.auto import tqdm

from dataset_scripts.label_generation import read_lines
from experiments.figures import plt, save_figure
from experiments.outside import ROOT, read
from experiments.perception import has_perceived_bonds, has_perceived_stereo
from experiments.provenance import weights_of, written_by
from experiments.structure_errors import Molecule
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.graph_batch import pad_graphs
from modeling_pcbridge.molecular_graph import MolecularGraph, graph_from_mol
from modeling_pcbridge.rdkit_molecules import with_conformers
from modeling_pcbridge.rdkit_structures import rdkit_structures
from modeling_pcbridge.structure_checks import StructureChecks
from pcbridge.evaluation.batches import moved, refined
from pcbridge.evaluation.metrics import heavy_atom_rmsd
from pcbridge.evaluation.validity import checks

CHECKPOINT = ROOT / "checkpoints" / "drug_like"
LINES = Path(__file__).parent / "results" / "validity.jsonl"
NUM_JUDGED = 10  # conformers whose validity is judged
NUM_DRAWN = 2
NUM_CONFORMERS = (20, 100)  # among which the DFT conformer is looked for
WITHIN = 0.5  # angstrom
DFT, RDKIT, REFINED, NOISE = "DFT structure", "ETKDGv3 + MMFF94", "PCBridge, conformers", "PCBridge, from noise"
_SEED = 0
_BATCH_SIZE = 25
_EMBEDDING_SECONDS = 120
_MAX_MATCHES = 10_000  # permutations of equivalent atoms, as in `pcbridge.app.ensembles`
_SIZES = {"up to 15": (1, 15), "16 to 25": (16, 25), "above 25": (26, 10_000)}  # heavy atoms


def judged(molecule: Molecule, graph: MolecularGraph, structures: np.ndarray) -> list[dict]:
    """Of each structure (N, 3) whether `StructureChecks` calls it sound, and the other checks that it fails."""
    mols = [with_conformers(molecule.mol, positions) for positions in structures]
    own = StructureChecks(graph)
    records = []
    for mol, positions, found in zip(mols, structures, checks(mols), strict=True):
        found |= {"bonds": has_perceived_bonds(mol), "stereo": has_perceived_stereo(mol)}
        failed = [name for name, passed in found.items() if not passed]
        records.append({"sound": not own.faults(positions), "failed": failed})
    return records


def line_of(model: PCBridgeModel, molecule: Molecule) -> dict:
    """All that is measured of a molecule."""
    graph = graph_from_mol(molecule.mol, model.config.resonance_invariant)
    mols = rdkit_structures(molecule.mol, max(NUM_CONFORMERS), _EMBEDDING_SECONDS)
    minima = [mol.GetConformer().GetPositions() for mol in mols]
    after = moved(model, [graph] * len(minima), minima, _BATCH_SIZE, partial(refined, model))
    # As `pcbridge predict --method ddim` draws.
    drawn = model.predict_structure(
        **pad_graphs([graph]),
        num_samples=NUM_DRAWN,
        mean_shift_steps=10,
        generator=torch.Generator().manual_seed(_SEED),
    ).positions[0]
    own = StructureChecks(graph)
    structures = {
        DFT: [molecule.reference],
        RDKIT: minima[:NUM_JUDGED],
        REFINED: after[:NUM_JUDGED],
        NOISE: list(drawn.double().numpy()),
    }
    conformers = {RDKIT: minima, REFINED: [x for x in after if not own.faults(x)]}
    return {
        "name": molecule.name,
        "heavy_atoms": int((graph.atomic_numbers > 1).sum()),
        "structures": {method: judged(molecule, graph, np.array(some)) for method, some in structures.items()},
        "closest": {
            method: {str(number): closest(molecule, some[:number]) for number in NUM_CONFORMERS}
            for method, some in conformers.items()
        },
    }


def closest(molecule: Molecule, conformers: list[np.ndarray]) -> float | None:
    """Heavy-atom RMSD to the DFT structure, angstrom; None without conformers."""
    if not conformers:
        return None
    rmsd = heavy_atom_rmsd(molecule.mol, np.array(conformers), molecule.reference, _MAX_MATCHES)
    return round(float(rmsd.min()), 4)


def provenance() -> dict[str, str | int]:
    """The code, the weights, the machine and the seed of a line."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    machine = f"{platform.machine()}, one of {os.cpu_count()} cores"
    return {"commit": commit.stdout.strip(), "weights": weights_of(CHECKPOINT), "machine": machine, "seed": _SEED}


def lines_of(path: Path) -> list[dict]:
    """What was measured of today's weights."""
    weights = weights_of(CHECKPOINT)
    return [line for line in read_lines(path) if line.get("weights") == weights]


def share(values: list[bool]) -> float:
    """Percent; NaN of nothing."""
    return 100 * sum(values) / len(values) if values else float("nan")


def of_size(lines: list[dict], size: str) -> list[dict]:
    low, high = _SIZES[size]
    return [line for line in lines if low <= line["heavy_atoms"] <= high]


def records_of(lines: list[dict], method: str, only_sound: bool) -> list[dict]:
    """All structures of a method, or those that the check of this project lets through."""
    return [r for line in lines for r in line["structures"][method] if r["sound"] or not only_sound]


_ROWS = {  # title: method, and whether only what the check lets through counts
    DFT: (DFT, False),
    RDKIT: (RDKIT, False),
    REFINED: (REFINED, False),
    f"{REFINED}, after the check": (REFINED, True),
    NOISE: (NOISE, False),
    f"{NOISE}, after the check": (NOISE, True),
}


def report(lines: list[dict]) -> str:
    """Markdown of what there is."""
    failed = sorted({name for method in (DFT, RDKIT, REFINED, NOISE) for name in failures(lines, method, False)})
    failing = {title: failures(lines, *of_row) for title, of_row in _ROWS.items()}
    head = [*_SIZES, "all", "sound by StructureChecks", "bonds", "stereo"]
    text = [
        "# Validity of structures, and whether the right conformer is among them",
        "",
        f"{len(lines)} molecules ({', '.join(f'{len(of_size(lines, s))} of {s}' for s in _SIZES)} heavy atoms). "
        "Percent of structures that pass PoseBusters and have the bonds and the stereo of their molecule by RDKit's "
        "perception, by heavy atoms; then of all sizes what passes single checks. "
        f"Commit {', '.join(sorted({line['commit'] for line in lines}))}, "
        f"{', '.join(sorted({line['machine'] for line in lines}))}, seed {_SEED}. {written_by('validity', CHECKPOINT)}",
        "",
        "| | structures | " + " | ".join(head) + " |",
        "|---" * (len(head) + 2) + "|",
    ]
    for title, (method, only_sound) in _ROWS.items():
        records = records_of(lines, method, only_sound)
        cells = [share([not r["failed"] for r in records_of(of_size(lines, s), method, only_sound)]) for s in _SIZES]
        cells += [share([not r["failed"] for r in records]), share([r["sound"] for r in records])]
        cells += [share([name not in r["failed"] for r in records]) for name in ("bonds", "stereo")]
        text.append(f"| {title} | {len(records)} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    text += [
        "",
        "Structures that fail each check, of each method's all:",
        "",
        "| | " + " | ".join(failing) + " |",
        "|---" * (len(failing) + 1) + "|",
    ]
    for name in failed:
        numbers = [of_row.get(name, 0) for of_row in failing.values()]
        text.append(f"| {name.replace('_', ' ')} | " + " | ".join(map(str, numbers)) + " |")
    text.append("")
    for method in (DFT, RDKIT, REFINED):
        names = [line["name"] for line in lines if failures([line], method, False)]
        text.append(f"- {method}: what fails is of {', '.join(names) or 'no molecule'}.")
    text += [
        "",
        f"Percent of molecules with a conformer within {WITHIN} angstrom (heavy-atom RMSD) of the DFT structure, and "
        "the median RMSD of the closest:",
        "",
        "| | conformers | " + " | ".join(_SIZES) + " | all | median of the closest, angstrom |",
        "|---" * (len(_SIZES) + 4) + "|",
    ]
    for number in NUM_CONFORMERS:
        for method in (RDKIT, REFINED):
            cells = [covered(of_size(lines, s), method, number) for s in _SIZES] + [covered(lines, method, number)]
            median = np.median([rmsd for rmsd in closest_of(lines, method, number) if np.isfinite(rmsd)])
            text.append(
                f"| {method} | {number} | " + " | ".join(f"{cell:.1f}" for cell in cells) + f" | {median:.3f} |"
            )
    return "\n".join([*text, ""])


def failures(lines: list[dict], method: str, only_sound: bool) -> dict[str, int]:
    """How many structures fail each check, see `records_of`."""
    counts: dict[str, int] = {}
    for record in records_of(lines, method, only_sound):
        for name in record["failed"]:
            counts[name] = counts.get(name, 0) + 1
    return counts


def closest_of(lines: list[dict], method: str, number: int) -> list[float]:
    """Of each molecule the RMSD of the closest conformer, angstrom; infinite where there is none."""
    found = [line["closest"][method][str(number)] for line in lines]
    return [np.inf if rmsd is None else rmsd for rmsd in found]


def covered(lines: list[dict], method: str, number: int) -> float:
    """Percent of molecules."""
    return share([rmsd <= WITHIN for rmsd in closest_of(lines, method, number)])


def plot(lines: list[dict], path: Path) -> None:
    """Valid structures by size, and molecules with a conformer within any RMSD of the DFT structure."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    width = 0.8 / len(_ROWS)
    for k, (title, (method, only_sound)) in enumerate(_ROWS.items()):
        values = [
            share([not r["failed"] for r in records_of(of_size(lines, size), method, only_sound)]) for size in _SIZES
        ]
        left.bar(np.arange(len(_SIZES)) + k * width, values, width, label=title)
    left.set_xticks(np.arange(len(_SIZES)) + 0.4 - width / 2, list(_SIZES))
    left.set(xlabel="heavy atoms", ylabel="valid structures, percent", ylim=(0, 100))
    left.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    for number, style in zip(NUM_CONFORMERS, ("--", "-"), strict=True):
        for method, colour in ((RDKIT, "C1"), (REFINED, "C2")):
            rmsd = np.sort(closest_of(lines, method, number))
            percent = 100 * np.arange(1, len(rmsd) + 1) / len(rmsd)
            right.plot(rmsd, percent, style, color=colour, label=f"{method}, {number} conformers")
    right.axvline(WITHIN, color="black", lw=0.6)
    right.set(
        xlabel="heavy-atom RMSD of the closest, angstrom", ylabel="molecules, percent", xlim=(0, 2), ylim=(0, 100)
    )
    right.legend(fontsize=7, loc="lower right")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--lines", type=Path, default=LINES, help="default: experiments/results/validity.jsonl")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    torch.set_num_threads(1)
    if not arguments.report:
        model = PCBridgeModel.from_pretrained(CHECKPOINT).eval()
        processor, made_by = PCBridgeProcessor.of_config(model.config), provenance()
        done = {line["name"] for line in lines_of(arguments.lines)}
        molecules = read(arguments.file)
        random.Random(_SEED).shuffle(molecules)
        with arguments.lines.open("a") as output:
            for molecule in tqdm([m for m in molecules if m.name not in done], unit="molecule"):
                try:
                    processor(molecule.mol)
                except InputError as error:
                    tqdm.write(f"{molecule.name} is left out: {error}")
                    continue
                output.write(json.dumps(line_of(model, molecule) | made_by) + "\n")
                output.flush()
    lines = lines_of(arguments.lines)
    text = report(lines)
    arguments.lines.with_suffix(".md").write_text(text)
    plot(lines, arguments.lines.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
