"""Put the model of the QM9 benchmark into checkpoints/qm9, with a card that states what was measured.

python -m experiments.qm9_release
"""

import json
import shutil
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from experiments.dft_check import DFT
from experiments.evidence_release import FILES
from experiments.qm9_benchmark import CHECKPOINTS, RESULTS, ROOT
from experiments.qm9_dft import energies_above
from experiments.qm9_evaluation import DDIM, central
from experiments.qm9_report import RELEASED

FOLDER = ROOT / "checkpoints" / "qm9"
_TEMPLATE = Path(__file__).parent / "qm9_card.md"
_PLOTS = {
    "qm9_errors.png": "D-MAE from the graph: against the number of atoms, and its distribution",
    "qm9_refinement.png": "Distribution of D-MAE before and after refinement",
}


def card(record: dict) -> ModelCard:
    """The card from what `experiments.qm9_benchmark` measured (results/qm9.json)."""
    template = ModelCard.load(_TEMPLATE)
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
    results = [
        EvalResult(
            task_type="graph-ml",
            task_name="equilibrium structures and energies",
            dataset_name="QM9",
            dataset_type="qm9",
            dataset_split=record["split"],
            metric_type=name.rpartition(": ")[2].split(" (")[0],
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in values.items()
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in values.items())]
    text = [
        "Stage 1 of training seed 0, continued with seed 1, then with seed 2; "
        f"{record['num_from_graph']} (from the graph) and {record['num_molecules']} test molecules that it has not "
        "seen; energies on all of the test split but 66 molecules of stage 2. "
        "One training run, so no spread over seeds. All rows and plots: experiments/results/qm9.md.",
        "",
        *table,
        *(line for name, title in _PLOTS.items() for line in ("", f"![{title}]({name})")),
    ]
    metadata = template.data.to_dict() | {"model_name": "pcbridge-qm9", "eval_results": results}
    body = template.text.rstrip() + "\n\n" + "\n".join(text) + "\n"
    return ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n{body}")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(CHECKPOINTS[RELEASED] / name, FOLDER / name)
    for name in _PLOTS:
        shutil.copyfile(RESULTS / name, FOLDER / name)
    card(json.loads((RESULTS / "qm9.json").read_text())).save(FOLDER / "README.md")
    print(f"{FOLDER}: {sum(file.stat().st_size for file in FOLDER.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
