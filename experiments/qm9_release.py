"""Put the model of the QM9 benchmark into checkpoints/qm9, with a card that states what was measured.

python -m experiments.qm9_release
"""

import json
import shutil

import numpy as np
from huggingface_hub import EvalResult, ModelCard

from experiments.dft_check import DFT
from experiments.evidence_release import FILES
from experiments.measured_values import measured_values
from experiments.qm9_benchmark import CHECKPOINTS, RESULTS, ROOT
from experiments.qm9_dft import energies_above
from experiments.qm9_evaluation import DDIM, central
from experiments.qm9_report import RELEASED
from pcbridge.training.card import losses_section, render_card
from pcbridge.training.config import StageConfig
from pcbridge.training.run import STAGE1
from train_accelerate import parse

FOLDER = ROOT / "checkpoints" / "qm9"
_INTRODUCTION = """\
Predicts the DFT equilibrium structure of a molecule from its graph, brings a cheap structure (MMFF94, PM6) of it
to DFT level, and predicts the total electronic energy of minima, with one shared encoder. It has learned no forces.
Energies and structures both come from DFT here."""
_USE = """\
A structure that is given is refined and its conformer kept: for an RDKit molecule `mol` with a conformer,
`model.predict_structure(**processor([mol]), method="mean_shift", num_inference_steps=40)`. From the graph,
`mean_shift_steps=10` takes the noise out of samples."""
_DATA = """\
QM9 (Ramakrishnan et al. 2014) as the PyPI package qm9pack has it: structures and energies of 110,000 molecules, a
random split of the sizes that conformation benchmarks use (`dataset_scripts/qm9.py`). No forces and no other structures
than minima."""
_LIMITS = """\
- Elements other than H, C, N, O, F. Molecules of more than nine heavy atoms are outside the training data:
  `checkpoints/drug_like` is for them.
- Radicals, open shells, several fragments, metals. Charged molecules are accepted but hardly in the data.
- It gives one conformer per sample, of the kind that QM9 has (one per molecule), not a Boltzmann ensemble. Refinement
  keeps the conformer that it is given.
- Forces and energies away from minima: none were in the data. Relaxations and dynamics want `checkpoints/drug_like`,
  which was trained on forces.
- Stereo marks of allenes and helices are not seen."""
_PLOTS = {
    "qm9_errors.png": "D-MAE from the graph: against the number of atoms, and its distribution",
    "qm9_refinement.png": "Distribution of D-MAE before and after refinement",
}


def metrics_section(record: dict) -> tuple[str, list[EvalResult]]:
    """What `experiments.qm9_benchmark` measured (results/qm9.json): Markdown and metadata."""
    measured = record["models"][RELEASED]
    values = {
        "at DFT structures: energy MAE (eV)": measured["at_minima"]["energy_mae"],
        "at DFT structures: RMS force, which should be zero (eV/angstrom)": measured["at_minima"]["force_left"],
    }
    for title, row in (("one sample", DDIM), ("most central of 10 samples", central(DDIM))):
        metrics = measured["from_graph"][row]["mean"]
        values |= {
            f"from the graph, {title}: D-MAE (angstrom)": metrics["d_mae"],
            f"from the graph, {title}: heavy-atom RMSD (angstrom)": metrics["heavy_rmsd_mean"],
        }
    for start, rows in measured["refinement"].items():
        values |= {
            f"{start}: median RMSD (angstrom)": rows["median"]["rmsd_mean"],
            f"{start}: median D-MAE (angstrom)": rows["median"]["d_mae"],
        }
    for structure, above in energies_above().items():
        if structure != DFT:
            name = f"{structure}, same conformer, {len(above)} molecules: B3LYP/6-31G* energy above DFT structure (eV)"
            values[name] = float(np.mean(above))
    table, results = measured_values(
        values, "equilibrium structures and energies", "QM9", "qm9", dataset_split=record["split"]
    )
    text = [
        "Stage 1 of training seed 0, continued with seed 1, then with seed 2; "
        f"{record['num_from_graph']} (from the graph) and {record['num_molecules']} test molecules that it has not "
        "seen; energies on all of the test split but 66 molecules of stage 2. "
        "One training run, so no spread over seeds. All rows and plots: experiments/results/qm9.md.",
        "",
        *table,
        *(line for name, title in _PLOTS.items() for line in ("", f"![{title}]({name})")),
    ]
    return "\n".join(text), results


def stages() -> dict[str, StageConfig]:
    """What trained the released model: stage 1 only."""
    stage1 = parse(["--config", str(ROOT / "configs/qm9.yaml")]).stage1
    assert stage1 is not None
    return {STAGE1: stage1}


def card(metrics: str, results: list[EvalResult]) -> ModelCard:
    """The card of the released model."""
    return render_card(
        title="PCBridge QM9",
        model_name="pcbridge-qm9",
        introduction=_INTRODUCTION,
        use=_USE,
        level_of_theory="B3LYP/6-31G(2df,p), the level of QM9, learned at minima only",
        losses=losses_section(stages()),
        data=_DATA,
        limits=_LIMITS,
        metrics=metrics,
        eval_results=results,
    )


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(CHECKPOINTS[RELEASED] / name, FOLDER / name)
    for name in _PLOTS:
        shutil.copyfile(RESULTS / name, FOLDER / name)
    card(*metrics_section(json.loads((RESULTS / "qm9.json").read_text()))).save(FOLDER / "README.md")
    print(f"{FOLDER}: {sum(file.stat().st_size for file in FOLDER.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
