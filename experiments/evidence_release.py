"""Put the trained models of the evidence into checkpoints/, with model cards that state their metrics.

    python -m experiments.evidence_release                    # seed 0 of setting "displaced"

The cards are model_card.md with what was measured, as a table and as `model-index` metadata. Code is
not copied: the package is beside them here, and `save_pretrained` and `push_to_hub` add it.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pcbridge.evaluation.report import ENERGY_COLUMNS, PREDICTION_TITLES, STRUCTURE_COLUMNS
from pcbridge.training.run import CONSISTENCY, MULTI_TASK

ROOT = Path(__file__).parents[1]
SETTING = "displaced"
# Metrics of the card's metadata, by kind of prediction.
_INDEXED = dict.fromkeys(
    ("ddim", "ddim_mean_shift", "refine", "mean_shift"), ("heavy_rmsd_mean", "bond_length_error", "one_three_error")
)
_LOSSES = {
    MULTI_TASK: "It is the baseline, trained without the consistency losses.",
    CONSISTENCY: "It was trained by one of the consistency losses, a relaxed form of the score consistency; the "
    "optimality consistency was off.",
}
FILES = ("config.json", "model.safetensors", "processor_config.json")


def card(model: str, seed: int, evaluation: dict, record: dict) -> ModelCard:
    """model_card.md with the metrics of this checkpoint, and their spread over training seeds from `record`."""
    text = ModelCard.load(ROOT / "model_card.md")
    titles = {key: (title, decimals) for key, title, decimals in (*STRUCTURE_COLUMNS, *ENERGY_COLUMNS)}
    rows = [(kind, key) for kind, keys in _INDEXED.items() for key in keys]
    rows += [("energy", key) for key, _, _ in ENERGY_COLUMNS]
    table = ["| | this checkpoint | mean (standard deviation) over training seeds |", "|---|---|---|"]
    results = []
    for kind, key in rows:
        title, decimals = titles[key]
        name = title if kind == "energy" else f"{PREDICTION_TITLES[kind]}: {title}"
        value, seeds = evaluation[kind][key], record["settings"][SETTING][model][kind][key]
        spread = f" ({np.std(seeds, ddof=1):.{decimals}f})" if len(seeds) > 1 else ""
        table.append(f"| {name} | {value:.{decimals}f} | {np.mean(seeds):.{decimals}f}{spread} |")
        results.append(
            EvalResult(
                task_type="graph-ml",
                task_name="equilibrium structures, energies and forces",
                dataset_name="PCBridge bundled data (QM9 molecules of up to seven heavy atoms)",
                dataset_type="pcbridge-bundled",
                dataset_split="test",
                metric_type=f"{kind}_{key}",
                metric_name=name,
                metric_value=round(float(value), decimals + 1),
            )
        )
    metadata = text.data.to_dict() | {"model_name": f"pcbridge-mini-{model}", "eval_results": results}
    seeds = record["settings"][SETTING]["seeds"]
    section = [
        f"This is the {model} model of training seed {seed}, setting `{SETTING}` of experiments/evidence_settings.py.",
        _LOSSES[model],
        f"{record['num_molecules']} test molecules against their DFT structures, {len(seeds)} training seeds; lengths "
        "in angstrom. All tables: experiments/results/evidence.md.",
        "",
        *table,
    ]
    body = text.text.split("## Metrics")[0] + "## Metrics\n\n" + "\n".join(section) + "\n"
    return ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n{body}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run = ROOT / "outputs" / "evidence" / SETTING / f"seed{arguments.seed}"
    record = json.loads((Path(__file__).parent / "results" / "evidence.json").read_text())
    for model in (MULTI_TASK, CONSISTENCY):
        folder = ROOT / "checkpoints" / model
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(run / model / name, folder / name)
        evaluation = json.loads((run / f"{model}.json").read_text())
        card(model, arguments.seed, evaluation, record).save(folder / "README.md")
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
