"""Put the model of drug-like molecules into checkpoints/drug_like, with a card that states what was measured.

    python -m experiments.averaged_checkpoint ...   # docs/training.md
    python -m experiments.outside flexisol_validation.parquet --checkpoints outputs/drug_like_mean/consistency
    python -m experiments.drug_like_release outputs/drug_like_mean/consistency
    python -m experiments.same_level       # of what is in checkpoints/drug_like then
    python -m experiments.small_molecules  # the same
    python -m experiments.drug_like_release outputs/drug_like_mean/consistency   # once more, for its card

What it covers is in the config.json of a training; of one that began from a checkpoint that does not know,
`python -m pcbridge.training.learned checkpoints/drug_like --config ...` with both configurations adds it.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import example_from_row
from dataset_scripts.schema import B3LYP_6_31GD
from experiments import same_level
from experiments.evidence_release import FILES
from experiments.measured_values import measured_values
from experiments.outside import GFN2, REFINED, RELAXED, RESULTS, ROOT, SHIFTED
from experiments.structure_errors import METRICS, mean_cells, worse_bonds
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.beyond_training import atoms_beyond_training
from pcbridge.evaluation.batches import energies_and_forces
from pcbridge.training.card import losses_section, render_card
from pcbridge.training.config import StageConfig
from train_accelerate import parse

FOLDER = ROOT / "checkpoints" / "drug_like"
SAME_LEVEL = RESULTS.with_name("same_level.json")
SMALL_MOLECULES = RESULTS.with_name("small_molecules.json")
# As `experiments.outside` names the rows of the released model.
ROW = "drug_like_mean/consistency"
_AT_SAME_LEVEL = "checkpoints/drug_like"
# Each is the last of the two configurations of a round, whose first is configs/drug_like_corrected.yaml.
_ROUNDS = {
    "corrected structures": "drug_like_corrected",
    "corrected structures, and labels near minima": "drug_like_near",
    "the same with out-of-plane terms": "drug_like_bent",
    "structures corrected by three steps, and more labels": "drug_like_three_steps",
    "the same with minima of the smallest molecules": "drug_like_small",
    "the same, corrected anew, with more of both, twice": "drug_like_minima",
}
_INTRODUCTION = """\
Brings a cheap structure (MMFF94, GFN2-xTB) of a drug-like molecule towards its B3LYP/6-31G* structure, and predicts the
total electronic energy and forces of any structure, with one shared encoder. No DFT of a whole drug-like molecule was
used: DFT energies and forces are of fragments."""
_USE = """\
A structure that is given keeps its conformer: `model.predict_structure(**processor([mol]), method="mean_shift")`, for
an RDKit molecule `mol` with a conformer; `processor(smiles, embed=True)` takes RDKit's. Five evaluations of the
structure decoder are followed by two quasi-Newton steps on E; `relaxation_steps=0` leaves that out. For minima of
B3LYP/6-31G* relax to convergence (`relaxation_steps="converged"`, `--relax`): nearer to them, but torsions may move.
A minimum of GFN2-xTB keeps its conformer by `method="correct"` (`pcbridge predict xtb.sdf --method correct -o
dft.sdf`). Ensembles of conformers: `pcbridge predict library.smi -o ensembles/`."""
_DATA = """\
- Energies and forces at B3LYP/6-31G*: of the bundled `fragments` (up to 11 heavy atoms) 1,276 structures, in the last
  rounds 1,485, 1,876, 1,908 and 2,471; and in all rounds 760 of `pm6` and 759 of `pm6_displaced`.
- Energies and forces at GFN2-xTB: 15,382 structures of fragments and 4,652 of whole molecules, in the third round 8,210
  structures near minima of whole molecules, and in the last ones 12,271 of fragments,
  then 102,607 of fragments and QM9 molecules, 886 of whole molecules and 2,898 near their minima; in the last one 8,636
  of fragments, 900 of whole molecules and 2,599 near their minima.
- Structures: GFN2-xTB minima of 3,506 molecules of the bundled `drug_like` (up to 45 heavy atoms) and of 2,492
  fragments (up to 11), and PM6 minima of 760 of QM9 in the first stage; those of GFN2-xTB in the second stage
  moved to B3LYP/6-31G* by the difference of the two levels (`pcbridge/training/corrected_library.py`), and again, of
  4,223 molecules and 2,625 fragments, by the better model that this gave; in the last rounds by three steps in place
  of one, and in the last one of 9,589 molecules and 2,649 fragments. And B3LYP/6-31G* minima of small fragments, 44 and
  then 130.

Training took some 0.13 kWh, if an H200 takes 700 W and a core 10 W, and the labels and minima forty core hours, 0.4 kWh
(estimates, not measured). What fragments cover of a library: docs/data.md; what more labels bring:
experiments/README.md, "What labels are worth". How all of it is made: docs/training.md. The molecules of the tests
below, and all others of FlexiSol, are in none of it."""
_LIMITS = """\
- Elements other than H, C, N, O, F, P, S, Cl, Br, I; total charges beyond -2 to +2. Iodine has GFN2-xTB labels only,
  so its energies at B3LYP/6-31G* are far off.
- Ions are worse, and hardly tested. Refined: {num_ions} of charge -1 or +1 among the B3LYP/6-31G* minima below have
  bonds of {ion_bonds:.4f} angstrom and angles of {ion_angles:.2f} degrees,
  the {num_neutral} neutral molecules {neutral_bonds:.4f} and {neutral_angles:.2f}.
  Forces of {num_ion_labels} ions are off by {ion_forces:.3f} eV/angstrom,
  of {num_neutral_labels} neutral molecules by {neutral_forces:.3f}.
  Charges of -2 and +2 have 6 B3LYP/6-31G* labels and no test.
- Torsions stay about where they are: the conformer is the one that is given.
- Small molecules like no others: Br2, F2, P2H4 and the like are wrong by up to {worst_small:.1f} angstrom,
  which `beyond_training` says (experiments/results/small_molecules.md). Zwitterions and betaines, which it
  says too. Allenes that
  MMFF94 has turned stay turned, which the checks refuse.
- Bonds of antiaromatic rings (cyclobutadiene, biphenylene, cyclooctatetraene) come out alike, which `beyond_training`
  says, as of small propellanes and tetrahedranes. Other strained or crowded groups may be wrong and not said to be.
- Of drug-like structures from noise one in eight is broken, above 25 heavy atoms one in four
  (experiments/results/validity.md): start from conformers.
- Conformers of 17 molecules of 9 to 18 heavy atoms are ranked a little worse than by GFN2-xTB, with dispersion
  (experiments/results/conformer_energies.md), which E has only where it is asked for.
- One training run, seven minutes of an H200, 35 of two cores and 112 of one, then the mean of the weights of four runs
  of one round, 93 minutes of one core in all, and of two runs of the last one, 30; no spread over seeds before these.
- Radicals, open shells, several fragments, metals. Stereo marks other than of tetrahedral centres, double bonds and
  axes of atropisomers."""
# Rows of the tables: how `experiments.outside` names what is measured, what the card says, and where it starts.
_WAYS = {
    "MMFF94": ("MMFF94", None),
    GFN2: (GFN2, None),
    REFINED: ("refined from MMFF94 (default)", "MMFF94"),
    SHIFTED: ("refined from MMFF94, `relaxation_steps=0`", "MMFF94"),
    RELAXED: ("relaxed on E from MMFF94", "MMFF94"),
    "GFN2-xTB corrected": ('GFN2-xTB, `method="correct"`', GFN2),
    "GFN2-xTB relaxed on E": ("relaxed on E from GFN2-xTB", GFN2),
}
_METRICS = ("bonds", "bonds_centred", "one_three", "angles", "torsions", "heavy_rmsd")
_PLOTS = {
    "outside.png": "Errors of bonds and angles of the 213 molecules by size; dashed MMFF94, GFN2-xTB and PM6",
    "release_scans.png": "Energies along 21 torsion scans, of B3LYP/6-31G* and of E",
}
_FORCES, _ENERGIES = "force MAE (eV/angstrom)", "energy MAE (eV)"


def stages() -> dict[str, StageConfig]:
    """What trained the released model."""

    def config(name: str) -> str:
        return f"--config={ROOT / 'configs' / name}.yaml"

    first = parse([config("drug_like")]).stage1
    rounds = {
        title: parse([config(name) for name in dict.fromkeys(("drug_like_corrected", last))]).stage2
        for title, last in _ROUNDS.items()
    }
    return {name: stage for name, stage in ({"stage 1": first} | rounds).items() if stage is not None}


def errors_of_labels(model: PCBridgeModel, name: str) -> list[dict]:
    """Errors at B3LYP/6-31G* of each structure of the test split of a bundled configuration, and what it is.

    `fragments` are minima, torsions, dynamics and displaced, `large_labelled` minima of 12 to 20 heavy atoms.
    """
    rows = [example_from_row(row, [B3LYP_6_31GD], True) for row in load_bundled(name, "test") if row["forces"]]
    energies, forces = energies_and_forces(model, [row.graph for row in rows], [row.positions for row in rows], 32)
    return [
        {
            _FORCES: float(np.abs(force - row.forces).mean()),
            _ENERGIES: float(abs(energy - row.energy)),
            "is_known": not atoms_beyond_training(model.config, row.graph),
            "is_ion": int(row.graph.formal_charges.sum(dtype=int)) != 0,
        }
        for energy, force, row in zip(energies, forces, rows, strict=True)
    ]


def structure_table(results: dict[str, dict], prefix: str) -> tuple[list[str], dict[str, float]]:
    """Lines of a Markdown table of `_WAYS`, and the means of those of the model by name, from what `outside` wrote."""
    titles = [METRICS[key][0] for key in _METRICS]
    lines = [f"| | {' | '.join(titles)} | bonds worse than where they started |", "|---" * (len(titles) + 2) + "|"]
    values = {}
    for way, (title, start) in _WAYS.items():
        result = results[way if start is None else f"{prefix}, {way}"]
        records = result["records"].values()
        worse = "" if start is None else f"{len(worse_bonds(result, results[start]))} of {len(records)}"
        lines.append(f"| {title} | {' | '.join(mean_cells(records, _METRICS))} | {worse} |")
        if start is not None:
            of_way = {key: float(np.nanmean([record[key] for record in records])) for key in _METRICS}
            values |= {f"{title}: {METRICS[key][0]}": value for key, value in of_way.items()}
    return lines, values


def label_table(label_errors: dict[str, list[dict]]) -> tuple[list[str], dict[str, float]]:
    """Lines of a Markdown table of errors of energies and forces, and the same by name."""
    lines = ["| | structures | force MAE, mean | median | energy MAE, mean | median |", "|---" * 6 + "|"]
    values = {}
    for name, errors in label_errors.items():
        known = [error for error in errors if error["is_known"]]
        for title, some in ((f"`{name}`", errors), (f"`{name}`, all surroundings in labels", known)):
            cells = [
                f"{mean([error[key] for error in some]):.3f}"
                for key in (_FORCES, _ENERGIES)
                for mean in (np.mean, np.median)
            ]
            lines.append(f"| {title} | {len(some)} | {' | '.join(cells)} |")
            values |= {
                f"{title}: {key}": float(np.mean([error[key] for error in some])) for key in (_FORCES, _ENERGIES)
            }
    return lines, values


def limits(of_same_level: dict[str, dict], label_errors: dict[str, list[dict]], small: list[dict]) -> str:
    """What the model cannot do, with what was measured of ions and of the smallest molecules."""
    records = of_same_level[f"{_AT_SAME_LEVEL}, {REFINED}"]["records"]
    charges = {molecule.name: int(molecule.graph.formal_charges.sum(dtype=int)) for molecule in same_level.read()}
    measured = {}
    for title, is_ion in (("ion", True), ("neutral", False)):
        some = [record for name, record in records.items() if (charges[name] != 0) == is_ion]
        labels = [error[_FORCES] for error in label_errors["large_labelled"] if error["is_ion"] == is_ion]
        measured |= {f"num_{title}{'s' if is_ion else ''}": len(some), f"num_{title}_labels": len(labels)}
        measured |= {f"{title}_{key}": np.mean([record[key] for record in some]) for key in ("bonds", "angles")}
        measured[f"{title}_forces"] = np.mean(labels)
    return _LIMITS.format(**measured, worst_small=max(record["refined"]["bonds"] for record in small))


def metrics_section(
    results: dict[str, dict], of_same_level: dict[str, dict], label_errors: dict[str, list[dict]]
) -> tuple[str, list[EvalResult]]:
    """What `outside`, `same_level` and `errors_of_labels` measured: Markdown and metadata."""
    outside_lines, values = structure_table(results, ROW)
    level_lines, of_level = structure_table(of_same_level, _AT_SAME_LEVEL)
    label_lines, of_labels = label_table(label_errors)
    number = len(of_same_level["MMFF94"]["records"])
    sizes = [molecule.mol.GetNumHeavyAtoms() for molecule in same_level.read()]
    values |= {f"{number} B3LYP/6-31G* minima, {name}": value for name, value in of_level.items()} | of_labels
    _, metadata = measured_values(
        values,
        "equilibrium structures, energies and forces",
        "FlexiSol, 213 molecules, DFT minima, from MMFF94 minima; bundled fragments and molecules",
        "flexisol",
    )
    text = [
        "Means over molecules of mean absolute errors. Settings were chosen on the first molecules, numbers of steps "
        "on the second ones too; no molecules were kept for a last test.",
        "",
        "213 neutral molecules of 8 to 46 heavy atoms of FlexiSol (doi:10.1039/D5SC06406F), one gas-phase DFT minimum "
        "each, not made by this project. Their level is r2SCAN-3c, as far as forces at these structures tell; its "
        "bonds differ from those of B3LYP/6-31G* by 0.0037 angstrom (seven molecules, "
        "experiments/results/level_floor.md). MMFF94 and GFN2-xTB are the minima below the DFT structures. All rows: "
        "experiments/results/outside.md.",
        "",
        *outside_lines,
        "",
        f"{number} B3LYP/6-31G* minima of molecules and ions of {min(sizes)} to {max(sizes)} heavy atoms of "
        "`large_labelled`, by `python -m experiments.same_level`; 19 were found from structures of earlier releases:",
        "",
        *level_lines,
        "",
        "Energies and forces at B3LYP/6-31G*, eV and eV/angstrom, of the test splits of the bundled `fragments` and "
        "`large_labelled` (12 to 20 heavy atoms), by `python -m experiments.drug_like_release`:",
        "",
        *label_lines,
        *(line for name, title in _PLOTS.items() for line in ("", f"![{title}]({name})")),
    ]
    return "\n".join(text), metadata


def card(limits: str, metrics: str, results: list[EvalResult]) -> ModelCard:
    """The card of the released model."""
    return render_card(
        title="PCBridge for drug-like molecules",
        model_name="pcbridge-drug-like",
        introduction=_INTRODUCTION,
        use=_USE,
        level_of_theory="B3LYP/6-31G*, and by a head of its own GFN2-xTB",
        losses=losses_section(stages()),
        data=_DATA,
        limits=limits,
        metrics=metrics,
        eval_results=results,
    )


def project_card(text: str) -> str:
    """The card of the default model as the project's own, at the root, where its plots are elsewhere."""
    for name in _PLOTS:
        text = text.replace(f"]({name})", f"]({RESULTS.with_name(name).relative_to(ROOT)})")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of the trained model")
    checkpoint = parser.parse_args().checkpoint
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        # Aside first: a process that has the weights mapped would be killed if its file were written to.
        shutil.copyfile(checkpoint / name, FOLDER / f"{name}.new").replace(FOLDER / name)
    results = json.loads(RESULTS.with_suffix(".json").read_text())
    model = PCBridgeModel.from_pretrained(FOLDER).eval()
    label_errors = {name: errors_of_labels(model, name) for name in ("fragments", "large_labelled")}
    of_same_level = json.loads(SAME_LEVEL.read_text())
    said = limits(of_same_level, label_errors, json.loads(SMALL_MOLECULES.read_text()))
    card(said, *metrics_section(results, of_same_level, label_errors)).save(FOLDER / "README.md")
    for name in _PLOTS:
        shutil.copyfile(RESULTS.with_name(name), FOLDER / name)
    (ROOT / "model_card.md").write_text(project_card((FOLDER / "README.md").read_text()))
    print(f"{FOLDER}: {sum(file.stat().st_size for file in FOLDER.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
