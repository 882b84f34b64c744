"""Evaluate checkpoints and the classical references on a split; one table, pictures and JSON.

    python -m pcbridge.evaluation.checkpoints --checkpoints.consistency outputs/mini/consistency \\
        --output_dir outputs/evaluation --evaluation.split validation --evaluation.num_samples 10
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rdkit import RDLogger

from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.options import underscored
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.evaluate import evaluate_model, evaluate_reference
from pcbridge.evaluation.references import load_references, mmff_structures, pm6_structures
from pcbridge.evaluation.report import plot_energy_scatter, plot_structures, results_markdown


def evaluate_checkpoints(
    checkpoints: dict[str, str],
    output_dir: str,
    evaluation: EvaluationConfig,
    seed: int = 0,
    device: str | None = None,
) -> dict:
    """Evaluate every checkpoint, the PM6 structures and ETKDGv3 + MMFF94 against the DFT structures of a split.

    Writes `evaluation.json`, `results.md`, `energy_scatter.png` and `structures.png` to `output_dir`.

    Args:
        checkpoints: name in the table -> folder or hub name.
        output_dir: made if it is not there.
        evaluation: split, numbers of molecules, samples and steps.
        seed: of the samples.
        device: by default a GPU where there is one.

    Returns:
        What is in `evaluation.json`.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    results, elements = {}, None
    for name, path in checkpoints.items():
        model = PCBridgeModel.from_pretrained(path).to(device)
        own = set(model.config.supported_elements)
        elements = own if elements is None else elements & own
        results[name] = evaluate_model(model, evaluation, seed)
    references = load_references(evaluation, elements)
    metrics = {
        "evaluation": asdict(evaluation),
        "split": evaluation.split,
        "num_molecules": len(references),
        "num_samples": evaluation.num_samples,
        "seed": seed,
        "models": results,
        "references": {
            "PM6 (same conformer)": evaluate_reference(pm6_structures(evaluation), evaluation, elements),
            "ETKDGv3 + MMFF94": evaluate_reference(mmff_structures(evaluation.num_samples, seed), evaluation, elements),
        },
    }
    (folder / "evaluation.json").write_text(json.dumps(metrics, indent=1))
    table = results_markdown(metrics)
    (folder / "results.md").write_text(table)
    print(table)
    plot_energy_scatter(results, folder / "energy_scatter.png")
    # Evenly from the smallest to the largest molecule, so nobody chose the good ones.
    count = min(evaluation.num_pictures, len(references))
    chosen = [round(i * (len(references) - 1) / max(count - 1, 1)) for i in range(count)]
    plot_structures(
        [references[i] for i in chosen],
        {name: [r["per_molecule"]["ddim"]["first_sample"][i] for i in chosen] for name, r in results.items()},
        folder / "structures.png",
    )
    return metrics


def main() -> None:
    RDLogger.DisableLog("rdApp.*")
    with errors_as_sentences():
        auto_cli(evaluate_checkpoints, args=underscored(sys.argv[1:]), as_positional=False)


if __name__ == "__main__":
    main()
