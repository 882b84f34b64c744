"""Does an energy learned from fragments hold for whole drug-like molecules, and does it resist torsion?

    python -m experiments.extensive                                  # four forms, three seeds: two hours of one core
    python -m experiments.extensive --variants cutoff_4.5 cutoff_6 --seeds 0
    python -m experiments.extensive --report                         # only the tables, of what is there

E alone is trained on GFN2-xTB energies and forces of fragments (up to 9 heavy atoms; `data/fragments_gfn2`), once for
each form of the model and seed, with the same number of updates. Errors are of unseen fragments, of drug-like molecules
by size (`data/drug_like_gfn2`, of which none is trained on), and along torsion scans of small molecules that no label
contains. docs/training.md makes both folders. What is finished is not done again. Runs are in outputs/extensive/,
tables and plots in experiments/results/.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from rdkit import Chem

from dataset_scripts.collator import Example, example_from_row
from dataset_scripts.schema import GFN2_XTB
from dataset_scripts.splits import constitution_of
from experiments.figures import plt, save_figure
from experiments.torsion_scans import Scan, make_scans, scan_errors, scanned_smiles
from modeling_pcbridge import LossSettings, PCBridgeConfig, PCBridgeModel
from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs
from pcbridge.evaluation.batches import energies_and_forces
from pcbridge.training.config import SourceConfig, StageConfig, TrainingConfig
from pcbridge.training.data import TrainingData
from pcbridge.training.initial_model import initial_model
from pcbridge.training.run import make_accelerator
from pcbridge.training.stage import train_stage

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
DATA = ROOT / "data"


def _fields(attention_cutoff: float | None, torsions: bool, out_of_plane: bool = False) -> dict:
    return {"attention_cutoff": attention_cutoff, "torsion_terms": torsions, "out_of_plane_terms": out_of_plane}


# Forms of the model: a title, and fields of its config.
VARIANTS = {
    "all": ("all atoms", _fields(None, False)),
    "all_torsions": ("all atoms, torsion terms", _fields(None, True)),
    "local": ("within 5 angstrom", _fields(5.0, False)),
    "local_torsions": ("within 5 angstrom, torsion terms", _fields(5.0, True)),
    "local_terms": ("within 5 angstrom, torsion and out-of-plane terms", _fields(5.0, True, True)),
    "cutoff_4.5": ("within 4.5 angstrom, torsion terms", _fields(4.5, True)),
    "cutoff_6": ("within 6 angstrom, torsion terms", _fields(6.0, True)),
}
_COMPARED = ["all", "local", "all_torsions", "local_torsions"]
_SIZES = [(10, 14), (15, 19), (20, 24), (25, 35)]  # heavy atoms
_EVALUATION_BATCH = 16
_TORSION_TARGET = 0.05  # eV
_LABELS_ALONE = LossSettings(energy_weight=1.0, force_weight=0.5, force_form="norm", denoising_weight=0.0)


def settings_of(
    sources: list[SourceConfig],
    model: dict,
    updates: int,
    seed: int,
    output: Path,
    losses: LossSettings = _LABELS_ALONE,
    batch_size: int = 32,
) -> TrainingConfig:
    """A stage of a part of the model, otherwise as in configs/drug_like.yaml, of the width of the preset.

    Args:
        sources: of the rows.
        model: fields of the config that differ from the preset.
        updates, seed, output, batch_size: of the run.
        losses: by default of energies and forces alone.
    """
    return TrainingConfig(
        StageConfig(updates, 4e-3, 100, sources, losses),
        stage2=None,
        preset="drug_like",
        model=model,
        output_dir=str(output),
        resume="latest",
        batch_size=batch_size,
        optimizer="muon",
        weight_decay=0.01,
        seed=seed,
        cpu=True,
        evaluation=None,
    )


def train_new(config: TrainingConfig) -> PCBridgeModel:
    """A new model after stage 1 of `config`."""
    torch.manual_seed(config.seed)
    model, data = initial_model(config)
    assert config.stage1 is not None
    train_stage("stage1", model, data, config.stage1, config, make_accelerator(config))
    return model.eval()


def settings_of_variant(name: str, updates: int, seed: int, runs: Path) -> TrainingConfig:
    """Of one form of the model and one seed."""
    source = SourceConfig(str(runs / "fragments"), structures=False)
    model = {"energy_levels_of_theory": [GFN2_XTB], **VARIANTS[name][1]}
    return settings_of([source], model, updates, seed, runs / f"{name}_{seed}")


def leave_out_scanned(runs: Path) -> None:
    """The training shards of the fragments without the molecules of the torsion scans, in `runs`/fragments."""
    excluded = scanned_smiles()
    for path in sorted((DATA / "fragments_gfn2" / "train").glob("*.parquet")):
        table = pq.read_table(path)
        constitutions = [constitution_of(Chem.MolFromSmiles(text)) for text in table["smiles"].to_pylist()]
        target = runs / "fragments" / "train" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter([text not in excluded for text in constitutions]), target)


def read_test(folder: str, splits: tuple[str, ...]) -> list[Example]:
    """The labelled rows of some splits."""
    paths = [path for split in splits for path in sorted((DATA / folder / split).glob("*.parquet"))]
    rows = [row for path in paths for row in pq.read_table(path).to_pylist() if row["energy"] is not None]
    return [example_from_row(row, [GFN2_XTB], True) for row in rows]


def train(config: TrainingConfig, data: TrainingData, references: dict) -> PCBridgeModel:
    """A new model whose E has learned the energies and forces of the fragments."""
    torch.manual_seed(config.seed)
    model = PCBridgeModel(PCBridgeConfig.from_preset(config.preset, **config.model))
    model.energy_decoder.reference_energies.load_state_dict(references)
    assert config.stage1 is not None
    train_stage("stage1", model, data, config.stage1, config, make_accelerator(config))
    return model.eval()


def evaluate(model: PCBridgeModel, examples: list[Example]) -> dict[str, dict]:
    """Number of structures, energy MAE (eV), force MAE (eV/angstrom): of all, and by heavy atoms."""
    examples = sorted(examples, key=lambda example: example.graph.num_atoms)
    graphs, structures = [e.graph for e in examples], [e.positions for e in examples]
    energies, forces = energies_and_forces(model, graphs, structures, _EVALUATION_BATCH)
    of_energies = np.array([abs(energy - e.energy) for energy, e in zip(energies, examples, strict=True)])
    of_forces = np.array([np.abs(force - e.forces).mean() for force, e in zip(forces, examples, strict=True)])
    heavy = np.array([(graph.atomic_numbers > 1).sum() for graph in graphs])
    groups = {"all": heavy > 0} | {f"{low}-{high}": (heavy >= low) & (heavy <= high) for low, high in _SIZES}
    return {
        group: {
            "structures": int(rows.sum()),
            "energy_mae": float(of_energies[rows].mean()),
            "force_mae": float(of_forces[rows].mean()),
        }
        for group, rows in groups.items()
        if rows.any()
    }


def run(config: TrainingConfig, data: TrainingData, references: dict, tests: dict, scans: list[Scan]) -> dict:
    """Train one form of the model and evaluate it."""
    start = time.process_time()
    model = train(config, data, references)
    seconds = round(time.process_time() - start)
    model.save_pretrained(config.output_dir)

    def energies_of(graph, positions: np.ndarray) -> np.ndarray:
        batch = GraphBatch(**pad_graphs([graph])).repeat(len(positions))
        return model.energy_and_forces(batch, torch.from_numpy(positions).float())[0].numpy()

    assert config.stage1 is not None
    return {
        "updates": config.stage1.num_steps,
        "seed": config.seed,
        "seconds": seconds,
        "errors": {group: evaluate(model, examples) for group, examples in tests.items()},
        "scans": scan_errors(scans, energies_of),
    }


def _shown(values: list[float], digits: int) -> str:
    """Mean and, of several seeds, standard deviation."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def report(results: dict[str, list[dict]]) -> str:
    """Markdown tables of the results of each seed, by name of the form."""
    first = next(iter(results.values()))[0]
    text = [
        "# From fragments to drug-like molecules",
        "",
        "E alone, trained on GFN2-xTB energies and forces of fragments of up to 9 heavy atoms, "
        f"{first['updates']} updates by batches of 32; mean and standard deviation over seeds. Mean absolute errors "
        "against GFN2-xTB, of so many structures; energies in eV per molecule, forces in eV/angstrom. Written by "
        "`python -m experiments.extensive`.",
        "",
    ]
    columns = [("fragments", "all", "unseen fragments")]
    columns += [("drug_like", f"{low}-{high}", f"{low} to {high} heavy atoms") for low, high in _SIZES]
    columns = [column for column in columns if column[1] in first["errors"][column[0]]]
    for key, title, digits in (("force_mae", "Forces", 3), ("energy_mae", "Energies", 2)):
        titles = [f"{name} ({first['errors'][source][group]['structures']})" for source, group, name in columns]
        text += [f"## {title}", "", f"| attention | seeds | {' | '.join(titles)} |", "|---" * (len(columns) + 2) + "|"]
        for name, runs in results.items():
            cells = [_shown([r["errors"][source][group][key] for r in runs], digits) for source, group, _ in columns]
            text.append(_row(VARIANTS[name][0], [str(len(runs)), *cells]))
        text.append("")
    text += [f"## Torsion scans, mean absolute error in eV (wanted: {_TORSION_TARGET})", ""]
    text += [f"| molecule | GFN2-xTB, highest | {' | '.join(VARIANTS[name][0] for name in results)} |"]
    text += ["|---" * (len(results) + 2) + "|"]
    for scan, of_first in first["scans"].items():
        values = [_shown([r["scans"][scan]["mae"] for r in runs], 3) for runs in results.values()]
        text.append(_row(scan, [f"{max(of_first['gfn2']):.2f}", *values]))
    means = [[np.mean([scan["mae"] for scan in r["scans"].values()]) for r in runs] for runs in results.values()]
    text.append(_row("mean", ["", *(_shown(mean, 3) for mean in means)]))
    minutes = [
        f"{VARIANTS[name][0]} {np.mean([r['seconds'] for r in runs]) / 60:.0f}" for name, runs in results.items()
    ]
    text += ["", f"Core minutes of training: {', '.join(minutes)}."]
    return "\n".join([*text, ""])


def _row(title: str, cells: list[str]) -> str:
    return f"| {title} | " + " | ".join(cells) + " |"


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """Errors against size, means over seeds; and the torsion scans of the first seed."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    places = [("fragments", "all"), *(("drug_like", f"{low}-{high}") for low, high in _SIZES)]
    places = [place for place in places if place[1] in next(iter(results.values()))[0]["errors"][place[0]]]
    for axis, key in zip(axes, ("force_mae", "energy_mae"), strict=True):
        for name, runs in results.items():
            values = [[r["errors"][source][group][key] for r in runs] for source, group in places]
            spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
            axis.errorbar(range(len(places)), np.mean(values, axis=1), spread, marker="o", label=VARIANTS[name][0])
    for axis, label in zip(axes, ("force MAE, eV/angstrom", "energy MAE, eV"), strict=True):
        axis.set_xticks(range(len(places)), ["fragments", *(group for _, group in places[1:])])
        axis.set(xlabel="heavy atoms", ylabel=label, yscale="log")
    axes[0].legend()
    save_figure(figure, path.with_suffix(".png"))

    firsts = {name: runs[0]["scans"] for name, runs in results.items()}
    scans = list(next(iter(firsts.values())))
    figure, grid = plt.subplots(3, -(-len(scans) // 3), figsize=(16, 7), constrained_layout=True)
    for axis, scan in zip(grid.flat, scans, strict=False):
        for name, of_scans in firsts.items():
            axis.plot(of_scans[scan]["angles"], of_scans[scan]["model"], label=VARIANTS[name][0])
        axis.plot(of_scans[scan]["angles"], of_scans[scan]["gfn2"], "k--", label="GFN2-xTB")
        axis.set_title(scan, fontsize=9)
    for axis in list(grid.flat)[len(scans) :]:
        axis.axis("off")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.supylabel("energy, eV")
    save_figure(figure, path.with_name(f"{path.name}_torsions.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=_COMPARED)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "extensive")
    parser.add_argument("--output", type=Path, default=RESULTS / "extensive", help="tables and plots, without ending")
    parser.add_argument("--report", action="store_true", help="compute nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = arguments.runs
    wanted = [(name, seed) for seed in arguments.seeds for name in arguments.variants]
    missing = [(name, seed) for name, seed in wanted if not (runs / f"{name}_{seed}.json").exists()]
    if missing and not arguments.report:
        leave_out_scanned(runs)
        model, data = initial_model(settings_of_variant(missing[0][0], arguments.updates, 0, runs))
        references = model.energy_decoder.reference_energies.state_dict()
        fragments = read_test("fragments_gfn2", ("test",))
        tests = {"fragments": fragments, "drug_like": read_test("drug_like_gfn2", ("validation", "test"))}
        scans = make_scans()
        for name, seed in missing:
            config = settings_of_variant(name, arguments.updates, seed, runs)
            result = run(config, data, references, tests, scans)
            (runs / f"{name}_{seed}.json").write_text(json.dumps(result, indent=1) + "\n")
    results: dict[str, list[dict]] = defaultdict(list)
    for name in VARIANTS:
        for path in sorted(runs.glob(f"{name}_[0-9]*.json")):
            results[name].append(json.loads(path.read_text()))
    text = report(results)
    arguments.output.with_suffix(".md").write_text(text)
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, arguments.output)
    print(text)


if __name__ == "__main__":
    main()
