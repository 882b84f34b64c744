"""Does an energy learned from fragments hold for whole drug-like molecules, and does it resist torsion?

    python -m experiments.extensive --fragments fragments.parquet --drug-like drug_like.parquet   # an hour on one core
    python -m experiments.extensive --report                                # only the tables, of what is there
    python -m experiments.extensive ... --variants cutoff_4.5 cutoff_6 --updates 1000 --runs outputs/cutoffs

E alone is trained on GFN2-xTB energies and forces of fragments (up to 9 heavy atoms), once for each form of the model,
with the same seed and number of updates. Both files hold rows of `dataset_scripts.schema`. Errors are of unseen
fragments, of drug-like molecules by size, and along torsion scans of small molecules that no label contains. What is
finished is not done again. Runs are in outputs/extensive/, tables and plots in experiments/results/.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import torch
from rdkit import Chem
from tqdm.auto import tqdm

from dataset_scripts.collator import Example, collate, example_from_row
from dataset_scripts.mixture import MixtureBatchSampler
from dataset_scripts.reference_energies import fit_reference_energies
from dataset_scripts.schema import GFN2_XTB
from dataset_scripts.splits import constitution_of, split_of
from experiments.torsion_scans import Scan, make_scans, scan_errors, scanned_smiles
from modeling_pcbridge import PCBridgeConfig, PCBridgeModel
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch, pad_graphs

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

# Forms of the model: a title, and fields of its config.
VARIANTS = {
    "all": ("all atoms", {"attention_cutoff": None, "torsion_terms": False}),
    "all_torsions": ("all atoms, torsion terms", {"attention_cutoff": None, "torsion_terms": True}),
    "local": ("within 5 angstrom", {"attention_cutoff": 5.0, "torsion_terms": False}),
    "local_torsions": ("within 5 angstrom, torsion terms", {"attention_cutoff": 5.0, "torsion_terms": True}),
    "cutoff_4.5": ("within 4.5 angstrom, torsion terms", {"attention_cutoff": 4.5, "torsion_terms": True}),
    "cutoff_6": ("within 6 angstrom, torsion terms", {"attention_cutoff": 6.0, "torsion_terms": True}),
}
_COMPARED = ["all", "local", "all_torsions", "local_torsions"]
_ELEMENTS = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]
_SIZES = [(10, 14), (15, 19), (20, 24), (25, 35)]  # heavy atoms
_BATCH_SIZE = 32
_EVALUATION_BATCH = 16
_LEARNING_RATE = 4e-3
_WARMUP = 100
_FORCE_WEIGHT = 0.5  # as in configs/evidence.yaml, with the same form of the loss
_MAX_GRADIENT_NORM = 10.0
_TORSION_TARGET = 0.05  # eV


def load(path: Path, split: str | None = None) -> list[Example]:
    """The examples of a file, all or of one split of molecules, without the molecules of the torsion scans."""
    excluded = scanned_smiles()
    examples = []
    for row in tqdm(pq.read_table(path).to_pylist(), desc=f"{path.name} {split or ''}", leave=False):
        constitution = constitution_of(Chem.MolFromSmiles(row["smiles"]))
        if constitution not in excluded and (split is None or split_of(constitution) == split):
            examples.append(example_from_row(row, GFN2_XTB))
    return examples


def train(config: dict, examples: list[Example], updates: int, seed: int) -> PCBridgeModel:
    """A new model whose E has learned the energies and forces of `examples`."""
    torch.manual_seed(seed)
    model = PCBridgeModel(PCBridgeConfig(**config, supported_elements=_ELEMENTS, energy_level_of_theory=GFN2_XTB))
    # Of minima, since strain is nothing of the elements.
    minima = [example for example in examples if example.is_equilibrium]
    references = fit_reference_energies(
        [example.graph.atomic_numbers.tolist() for example in minima], [example.energy for example in minima]
    )
    for element, energy in references.items():
        model.energy_decoder.reference_energies.energies[element] = energy
    parameters = [p for part in (model.encoder, model.energy_decoder) for p in part.parameters()]
    matrices = [p for p in model.encoder.layers.parameters() if p.ndim == 2]
    others = [p for p in parameters if not any(p is matrix for matrix in matrices)]
    # As in configs/evidence.yaml: Muon for the matrices of the layers, Adam for the rest.
    optimizers = [
        torch.optim.AdamW(others, lr=_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        torch.optim.Muon(matrices, lr=_LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]

    def factor(step: int) -> float:
        return min((step + 1) / _WARMUP, (updates - step) / max(updates - _WARMUP, 1))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    sizes = [example.graph.num_atoms for example in examples]
    batches = MixtureBatchSampler([sizes], [1.0], _BATCH_SIZE, num_batches=updates, seed=seed)
    progress = tqdm(batches, total=updates, mininterval=10)
    for batch in progress:
        loss = energy_and_force_loss(model, collate([examples[i] for i in batch]))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        for stepped in (*optimizers, *schedules):
            stepped.step()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return model.eval()


def energy_and_force_loss(model: PCBridgeModel, batch: dict) -> torch.Tensor:
    """Absolute error of the energy (Eq. 7), and the lengths of the force errors summed over a molecule's atoms."""
    graph = _graph(batch)
    energy, gradient = model.interaction_energy_and_gradient(graph, batch["positions"].requires_grad_())
    label = batch["energy"] - model.energy_decoder.reference_energies(graph.atomic_numbers)
    errors = gradient + batch["forces"].nan_to_num()
    lengths = (errors.square().sum(-1) + 1e-8).sqrt() * graph.atom_mask
    return (energy - label).abs().mean() + _FORCE_WEIGHT * lengths.sum(-1).mean()


def evaluate(model: PCBridgeModel, examples: list[Example]) -> list[dict]:
    """One record a structure: heavy atoms, error of its energy (eV), mean error of its forces (eV/angstrom)."""
    records = []
    examples = sorted(examples, key=lambda example: example.graph.num_atoms)
    for start in range(0, len(examples), _EVALUATION_BATCH):
        some = examples[start : start + _EVALUATION_BATCH]
        # Not `collate`, which may change their order.
        graph = GraphBatch(**pad_graphs([example.graph for example in some]))
        positions = torch.zeros(*graph.atom_mask.shape, 3)
        for row, example in enumerate(some):
            positions[row, : len(example.positions)] = torch.from_numpy(example.positions)
        energies, forces = model.energy_and_forces(graph, positions)
        for example, energy, force in zip(some, energies.tolist(), forces, strict=True):
            error = force[: example.graph.num_atoms].numpy() - example.forces
            records.append(
                {
                    "heavy_atoms": int((example.graph.atomic_numbers > 1).sum()),
                    "geometry": example.molecule_id.rpartition("_")[2].rstrip("0123456789"),
                    "energy": abs(energy - example.energy),
                    "forces": float(np.abs(error).mean()),
                }
            )
    return records


def run(
    name: str,
    training: list[Example],
    evaluated: dict[str, list[Example]],
    scans: list[Scan],
    updates: int,
    seed: int,
    output: Path,
) -> None:
    """Train one form of the model, unless it is in `output`/`name`, and evaluate it; results: `output`/`name`.json."""
    _, config = VARIANTS[name]
    record = output / name / "training.json"
    if not record.exists():
        start = time.process_time()
        model = train(config, training, updates, seed)
        seconds = round(time.process_time() - start)
        model.save_pretrained(output / name)
        about = {"config": config, "updates": updates, "seed": seed, "training_structures": len(training)}
        record.write_text(json.dumps(about | {"seconds": seconds}) + "\n")
    model = PCBridgeModel.from_pretrained(output / name).eval()
    results = json.loads(record.read_text())
    results["errors"] = {group: _means(evaluate(model, examples)) for group, examples in evaluated.items()}

    def energies_of(graph, positions: np.ndarray) -> np.ndarray:
        batch = GraphBatch(**pad_graphs([graph])).repeat(len(positions))
        return model.energy_and_forces(batch, torch.from_numpy(positions).float())[0].numpy()

    results["scans"] = scan_errors(scans, energies_of)
    (output / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


def _means(records: list[dict]) -> dict:
    """Number of structures, energy MAE, force MAE over structures: of all, by kind of geometry, by size."""
    groups = {"all": records}
    groups |= {kind: [r for r in records if r["geometry"] == kind] for kind in {r["geometry"] for r in records}}
    groups |= {f"{low}-{high}": [r for r in records if low <= r["heavy_atoms"] <= high] for low, high in _SIZES}
    return {
        group: {
            "structures": len(some),
            "energy_mae": float(np.mean([r["energy"] for r in some])),
            "force_mae": float(np.mean([r["forces"] for r in some])),
        }
        for group, some in sorted(groups.items())
        if some
    }


def report(results: dict[str, dict]) -> str:
    """Markdown tables of the results by name of the form."""
    updates = {result["updates"] for result in results.values()}
    text = [
        "# From fragments to drug-like molecules",
        "",
        f"E alone, trained on GFN2-xTB energies and forces of {next(iter(results.values()))['training_structures']} "
        f"geometries of fragments of up to 9 heavy atoms, {', '.join(map(str, sorted(updates)))} updates by batches of "
        f"{_BATCH_SIZE}, the same seed. Mean absolute errors against GFN2-xTB; energies in eV a molecule, forces in "
        "eV/angstrom. Written by `python -m experiments.extensive`.",
        "",
    ]
    columns = [("fragments", "all", "unseen fragments")]
    columns += [("drug_like", f"{low}-{high}", f"{low} to {high} heavy atoms") for low, high in _SIZES]
    for key, title, digits in (("force_mae", "Forces", 3), ("energy_mae", "Energies", 2)):
        text += [f"## {title}", "", "| attention | " + " | ".join(name for _, _, name in columns) + " |"]
        text += ["|---" * (len(columns) + 1) + "|"]
        for name, result in results.items():
            cells = [result["errors"][source].get(group) for source, group, _ in columns]
            text.append(_row(VARIANTS[name][0], [f"{cell[key]:.{digits}f}" if cell else "" for cell in cells]))
        text.append("")
    kinds = sorted({kind for r in results.values() for kind in r["errors"]["fragments"] if kind.isalpha()} - {"all"})
    text += ["## Unseen fragments by kind of geometry: energy / force MAE", ""]
    text += ["| attention | " + " | ".join(kinds) + " | core minutes of training |", "|---" * (len(kinds) + 2) + "|"]
    for name, result in results.items():
        cells = [result["errors"]["fragments"][kind] for kind in kinds]
        values = [f"{cell['energy_mae']:.3f} / {cell['force_mae']:.3f}" for cell in cells]
        text.append(_row(VARIANTS[name][0], [*values, f"{result['seconds'] / 60:.0f}"]))
    scans = list(next(iter(results.values()))["scans"])
    text += ["", f"## Torsion scans, mean absolute error in eV (wanted: {_TORSION_TARGET})", ""]
    text += ["| molecule | GFN2-xTB, highest | " + " | ".join(VARIANTS[name][0] for name in results) + " |"]
    text += ["|---" * (len(results) + 2) + "|"]
    for scan in scans:
        first = next(iter(results.values()))["scans"][scan]
        values = [f"{r['scans'][scan]['mae']:.3f}" for r in results.values()]
        text.append(_row(scan, [f"{max(first['gfn2']):.2f}", *values]))
    means = [np.mean([r["scans"][scan]["mae"] for scan in scans]) for r in results.values()]
    text.append(_row("mean", ["", *(f"{mean:.3f}" for mean in means)]))
    return "\n".join([*text, ""])


def _row(title: str, cells: list[str]) -> str:
    return f"| {title} | " + " | ".join(cells) + " |"


def plot(results: dict[str, dict], path: Path) -> None:
    """Force error against size, and the torsion scans."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for name, result in results.items():
        groups = [result["errors"]["fragments"]["all"]]
        groups += [result["errors"]["drug_like"].get(f"{low}-{high}") for low, high in _SIZES]
        places = [i for i, group in enumerate(groups) if group]
        for axis, key in zip(axes, ("force_mae", "energy_mae"), strict=True):
            axis.plot(places, [groups[i][key] for i in places], marker="o", label=VARIANTS[name][0])
    for axis, label in zip(axes, ("force MAE, eV/angstrom", "energy MAE, eV"), strict=True):
        axis.set_xticks(range(len(_SIZES) + 1), ["fragments", *(f"{low}-{high}" for low, high in _SIZES)])
        axis.set(xlabel="heavy atoms", ylabel=label, yscale="log")
    axes[0].legend()
    figure.savefig(path.with_suffix(".png"), dpi=150)
    plt.close(figure)

    scans = list(next(iter(results.values()))["scans"])
    figure, grid = plt.subplots(3, -(-len(scans) // 3), figsize=(16, 7), constrained_layout=True)
    for axis, scan in zip(grid.flat, scans, strict=False):
        for name, result in results.items():
            axis.plot(result["scans"][scan]["angles"], result["scans"][scan]["model"], label=VARIANTS[name][0])
        axis.plot(result["scans"][scan]["angles"], result["scans"][scan]["gfn2"], "k--", label="GFN2-xTB")
        axis.set_title(scan, fontsize=9)
    for axis in list(grid.flat)[len(scans) :]:
        axis.axis("off")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.supylabel("energy, eV")
    figure.savefig(path.with_name(f"{path.name}_torsions.png"), dpi=110)
    plt.close(figure)


def _graph(batch: dict) -> GraphBatch:
    return GraphBatch(**{key: batch[key] for key in GRAPH_KEYS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fragments", type=Path, help="Parquet file of labelled fragments")
    parser.add_argument("--drug_like", type=Path, help="Parquet file of labelled drug-like molecules")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=_COMPARED)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "extensive")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="which fragments are evaluated")
    parser.add_argument("--output", type=Path, default=RESULTS / "extensive", help="tables and plots, without ending")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    missing = [name for name in arguments.variants if not (arguments.runs / f"{name}.json").exists()]
    if missing and not arguments.report:
        if arguments.fragments is None or arguments.drug_like is None:
            parser.error("--fragments and --drug-like are needed to train")
        arguments.runs.mkdir(parents=True, exist_ok=True)
        training = load(arguments.fragments, "train")
        evaluated = {"fragments": load(arguments.fragments, arguments.split), "drug_like": load(arguments.drug_like)}
        scans = make_scans()
        for name in missing:
            run(name, training, evaluated, scans, arguments.updates, arguments.seed, arguments.runs)
    paths = {name: arguments.runs / f"{name}.json" for name in arguments.variants}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    text = report(results)
    arguments.output.with_suffix(".md").write_text(text)
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, arguments.output)
    print(text)


if __name__ == "__main__":
    main()
