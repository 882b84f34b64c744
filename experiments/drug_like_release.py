"""Put the model of drug-like molecules into checkpoints/drug_like, with a card that states what was measured.

    python -m experiments.averaged_checkpoint ...   # docs/training.md
    python -m experiments.outside flexisol_validation.parquet --checkpoints outputs/drug_like_mean/consistency
    python -m experiments.drug_like_release outputs/drug_like_mean/consistency
    python -m experiments.same_level   # of what is in checkpoints/drug_like then
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
from experiments.evidence_release import FILES
from experiments.measured_values import measured_values
from experiments.outside import RESULTS, ROOT
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.beyond_training import atoms_beyond_training
from pcbridge.evaluation.batches import energies_and_forces
from pcbridge.training.card import losses_section, render_card
from pcbridge.training.config import StageConfig
from train_accelerate import parse

FOLDER = ROOT / "checkpoints" / "drug_like"
SAME_LEVEL = RESULTS.with_name("same_level.json")
# As `experiments.outside` names the rows of the released model.
ROW = "drug_like_mean/consistency"
_AT_SAME_LEVEL = "checkpoints/drug_like, "
# Each is the last of the two configurations of a round, whose first is configs/drug_like_corrected.yaml.
_ROUNDS = {
    "corrected structures": "drug_like_corrected",
    "corrected structures, and labels near minima": "drug_like_near",
    "the same with out-of-plane terms": "drug_like_bent",
    "structures corrected by three steps, and more labels": "drug_like_three_steps",
    "the same with minima of the smallest molecules": "drug_like_small",
    "the same, corrected anew, with more of both": "drug_like_minima",
}
_INTRODUCTION = """\
Brings a cheap structure (MMFF94, GFN2-xTB) of a drug-like molecule towards its B3LYP/6-31G* structure, and predicts the
total electronic energy and forces of any structure, with one shared encoder. No DFT of a whole drug-like molecule was
used: DFT energies and forces are of fragments."""
_USE = """\
A structure that is given keeps its conformer: `model.predict_structure(**processor([mol]), method="mean_shift")`, for
an RDKit molecule `mol` with a conformer; `processor(smiles, embed=True)` takes RDKit's. Five evaluations of the
structure decoder are followed by two quasi-Newton steps on E; `relaxation_steps=0` leaves that out. A
minimum of GFN2-xTB is best moved by `method="correct"` (`pcbridge predict xtb.sdf --method correct -o dft.sdf`).
Ensembles of conformers: `pcbridge predict library.smi -o ensembles/`."""
_DATA = """\
- Energies and forces at B3LYP/6-31G*: 1,276 structures, in the last rounds 1,485, 1,876 and 1,908, of the bundled
  `fragments` (up to nine heavy atoms) and the labelled rows of `pm6` and `pm6_displaced`.
- Energies and forces at GFN2-xTB: 15,382 structures of fragments and 4,652 of whole molecules, in the third round 8,210
  structures near minima of whole molecules, and in the last ones 12,271 of fragments,
  then 102,607 of fragments and QM9 molecules, 886 of whole molecules and 2,898 near their minima.
- Structures: GFN2-xTB minima of 3,506 molecules of the bundled `drug_like` and of 2,492 fragments, in the second stage
  moved to B3LYP/6-31G* by the difference of the two levels (`pcbridge/training/corrected_library.py`), and again, of
  4,223 molecules and 2,625 fragments, by the better model that this gave; in the last rounds by three steps in place
  of one. And in the last two B3LYP/6-31G* minima of small fragments, 44 and 130.

How all of it is made: docs/training.md. The molecules of the test below, and all others of its source, are in none of
it."""
_LIMITS = """\
- Elements other than H, C, N, O, F, P, S, Cl, Br, I; total charges beyond -2 to +2. Iodine has GFN2-xTB labels only,
  so its energies at B3LYP/6-31G* are far off.
- Of the molecules below, none of 213 has worse bonds after refinement than before (MMFF94), 3 without the steps on E,
  8 relaxed to the minimum of E, one after the correction of GFN2-xTB minima.
- Bonds of H2, water, ammonia, methane, HF and H2S are within 0.005 angstrom of B3LYP/6-31G* when refined, angles within
  0.8 degrees; relaxed on E within 0.003 angstrom and 0.2 degrees. All but methane trained it (compared by hand with
  minima of `pcbridge data label --level b3lyp --geometries minimum`).
- Zwitterions of amino acids. Allenes that MMFF94 has turned stay turned, which the checks refuse.
- Drug-like structures from noise are often broken (experiments/results/validity.md): start from conformers.
- Conformers of 17 molecules of 9 to 18 heavy atoms are ranked about as by GFN2-xTB, with dispersion
  (experiments/results/conformer_energies.md), which E has only where it is asked for.
- One training run, seven minutes of an H200, 35 of two cores and 112 of one, then the mean of the weights of four runs
  of the last round, 93 minutes of one core in all; no spread over seeds before that round.
- Radicals, open shells, several fragments, metals. Stereo marks other than of tetrahedral centres, double bonds and
  axes of atropisomers."""


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


def errors_of_labels(model: PCBridgeModel, name: str) -> dict[str, float]:
    """Errors at B3LYP/6-31G* on the test split of a bundled configuration, and where no atom is beyond training.

    `fragments` are minima, torsions, dynamics and displaced, `large_labelled` minima of 12 to 20 heavy atoms.
    """
    rows = [example_from_row(row, [B3LYP_6_31GD], True) for row in load_bundled(name, "test") if row["forces"]]
    energies, forces = energies_and_forces(model, [row.graph for row in rows], [row.positions for row in rows], 32)
    of_forces = [np.abs(force - row.forces).mean() for force, row in zip(forces, rows, strict=True)]
    of_energies = [abs(energy - row.energy) for energy, row in zip(energies, rows, strict=True)]
    is_known = [not atoms_beyond_training(model.config, row.graph) for row in rows]
    return {
        f"force MAE, mean of {len(rows)} structures (eV/angstrom)": float(np.mean(of_forces)),
        f"force MAE, mean of the {sum(is_known)} with only surroundings that labels had (eV/angstrom)": float(
            np.mean(of_forces, where=is_known)
        ),
        "force MAE, median (eV/angstrom)": float(np.median(of_forces)),
        "energy MAE, median (eV)": float(np.median(of_energies)),
    }


def metrics_section(
    results: dict[str, dict], of_same_level: dict[str, dict], label_errors: dict[str, dict]
) -> tuple[str, list[EvalResult]]:
    """What `outside`, `same_level` and, by configuration, `errors_of_labels` measured: Markdown and metadata."""
    values: dict[str, float] = {}
    for name, result in results.items():
        if not name.startswith(("MMFF94", "GFN2", f"{ROW},")):
            continue
        title = name.replace(f"{ROW}, ", "")
        for key, unit in (("bonds", "angstrom"), ("one_three", "angstrom"), ("angles", "degrees")):
            errors = [record[key] for record in result["records"].values()]
            values[f"{title}: {key} MAE, mean ({unit})"] = float(np.nanmean(errors))
            values[f"{title}: {key} MAE, median ({unit})"] = float(np.nanmedian(errors))
    for name, result in of_same_level.items():
        if name == "MMFF94" or name.startswith(f"{_AT_SAME_LEVEL}mean shift"):
            errors = [record["bonds"] for record in result["records"].values()]
            title = name.replace(_AT_SAME_LEVEL, "")
            values[f"{title}, {len(errors)} B3LYP/6-31G* minima: bonds MAE, mean (angstrom)"] = float(np.mean(errors))
    for configuration, errors in label_errors.items():
        values |= {f"`{configuration}`, B3LYP/6-31G*: {name}": value for name, value in errors.items()}
    table, metadata = measured_values(
        {name: value for name, value in values.items() if not name.startswith(("MMFF94", "GFN2"))},
        "equilibrium structures, energies and forces",
        "FlexiSol, 213 molecules, r2SCAN-3c minima, from MMFF94 minima; bundled fragments and molecules",
        "flexisol",
    )
    table += [f"| {name} | {value:.4f} |" for name, value in values.items() if name.startswith(("MMFF94", "GFN2"))]
    text = [
        "213 molecules of 8 to 57 heavy atoms that no one here made: r2SCAN-3c minima of FlexiSol (a level whose bonds "
        "differ from those of B3LYP/6-31G* by about 0.0035 angstrom), from the MMFF94 minima below them. Settings were "
        "chosen on these molecules. All rows: experiments/results/outside.md. `fragments` and `large_labelled` (12 to "
        "20 heavy atoms): test splits of these bundled configurations, by `python -m experiments.drug_like_release`; "
        "minima of the latter by `python -m experiments.same_level`.",
        "",
        *table,
    ]
    return "\n".join(text), metadata


def card(metrics: str, results: list[EvalResult]) -> ModelCard:
    """The card of the released model."""
    return render_card(
        title="PCBridge for drug-like molecules",
        model_name="pcbridge-drug-like",
        introduction=_INTRODUCTION,
        use=_USE,
        level_of_theory="B3LYP/6-31G*, and by a head of its own GFN2-xTB",
        losses=losses_section(stages()),
        data=_DATA,
        limits=_LIMITS,
        metrics=metrics,
        eval_results=results,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of the trained model")
    checkpoint = parser.parse_args().checkpoint
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(checkpoint / name, FOLDER / name)
    results = json.loads(RESULTS.with_suffix(".json").read_text())
    model = PCBridgeModel.from_pretrained(FOLDER).eval()
    label_errors = {name: errors_of_labels(model, name) for name in ("fragments", "large_labelled")}
    of_same_level = json.loads(SAME_LEVEL.read_text())
    card(*metrics_section(results, of_same_level, label_errors)).save(FOLDER / "README.md")
    print(f"{FOLDER}: {sum(file.stat().st_size for file in FOLDER.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
