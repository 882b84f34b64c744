"""Put the trained models of the evidence into checkpoints/, with model cards that state their metrics.

    python -m experiments.evidence_release                    # seed 0 of setting "displaced"

The cards state what was measured, as a table and as `model-index` metadata. Code is not copied: links to it are beside
them here, and `save_pretrained` and `push_to_hub` add it.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard

from pcbridge.evaluation.report import ENERGY_COLUMNS, PREDICTION_TITLES, STRUCTURE_COLUMNS
from pcbridge.training.card import losses_section, render_card
from pcbridge.training.config import StageConfig
from pcbridge.training.run import CONSISTENCY, MULTI_TASK, STAGE1, without_consistency
from train_accelerate import parse

ROOT = Path(__file__).parents[1]
SETTING = "displaced"
# Metrics of the card's metadata, by kind of prediction.
_INDEXED = dict.fromkeys(
    ("ddim", "ddim_mean_shift", "refine", "mean_shift"), ("heavy_rmsd_mean", "bond_length_error", "one_three_error")
)
_DATA = """\
The set bundled with the code (`dataset_scripts/bundled/README.md`): PM6 minima of 3,037 training molecules of up
to seven heavy atoms of QM9, B3LYP/6-31G* energies and forces at 760 of them and at 759 displaced structures. DFT
equilibrium structures are used for evaluation only. Levels of theory: structures PM6, energies and forces B3LYP/6-31G*,
reference structures of the evaluation B3LYP/6-31G(2df,p).

Training takes about 20 minutes on one core of an AMD EPYC (stage 1, then stage 2), about 3 Wh if a core takes 10 W (an
assumption; power was not measured)."""
_LIMITS = """\
- Elements other than H, C, N, O, F. Molecules of more than seven heavy atoms are outside the training data;
  most drug-like molecules come out worse than they went in. `checkpoints/drug_like` is for them; this model is kept for
  the tables of small molecules.
- Radicals, open shells, several fragments, metals. Charged molecules are accepted but were not in the data.
- The smallest molecules (water, HCN: there are five of up to four atoms in the training data) are generated with bond
  errors of several hundredths of an angstrom.
- It gives structures from the distribution of the training conformers (one per molecule), not a Boltzmann ensemble.
- Energies far from the training structures (strongly stretched bonds, turned double bonds, reactions) are meaningless.
- Stereo marks of allenes and helices are not seen."""
FILES = ("config.json", "model.safetensors", "processor_config.json")


def stages_of(model: str) -> dict[str, StageConfig]:
    """What trained the released models, from the configuration of the evidence."""
    config = parse(["--config", str(ROOT / "configs/evidence.yaml")])
    assert config.stage1 is not None and config.stage2 is not None
    stage2 = config.stage2 if model == CONSISTENCY else without_consistency(config.stage2)
    return {STAGE1: config.stage1, model: stage2}


def metrics_section(model: str, seed: int, evaluation: dict, record: dict) -> tuple[str, list[EvalResult]]:
    """The metrics of a checkpoint, and their spread over training seeds from `record`: Markdown and metadata."""
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
    section = [
        f"This is the {model} model of training seed {seed}, setting `{SETTING}` of experiments/evidence_settings.py. "
        f"{record['num_molecules']} test molecules against their DFT structures, "
        f"{len(record['settings'][SETTING]['seeds'])} training seeds; lengths in angstrom. All tables: "
        "experiments/results/evidence.md.",
        "",
        *table,
    ]
    return "\n".join(section), results


def card(model: str, metrics: str, results: list[EvalResult]) -> ModelCard:
    """The card of a released model."""
    return render_card(
        title=f"PCBridge, {model}",
        model_name=f"pcbridge-mini-{model}",
        level_of_theory="B3LYP/6-31G* (the B3LYP of Gaussian and GAMESS, Cartesian d functions, density fitting)",
        losses=losses_section(stages_of(model)),
        data=_DATA,
        limits=_LIMITS,
        metrics=metrics,
        eval_results=results,
    )


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
        card(model, *metrics_section(model, arguments.seed, evaluation, record)).save(folder / "README.md")
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
