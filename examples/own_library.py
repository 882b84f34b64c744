"""From a library of molecules to a model of it: fragments, their labels, training, refined structures.

    python examples/own_library.py                              # 50 small drugs, GFN2-xTB labels: about a minute
    python examples/own_library.py --library mine.smi --level b3lyp --num 500 --num_steps 3000 --output_dir outputs/mine

Needs the `xtb` extra, and `qc` for B3LYP/6-31G* (minutes to hours). By default everything is so small that structures
get worse; docs/own_library.md says what to enlarge. Writes to the output folder fragments.smi (.json and .png say what
they cover), data/ (the labelled rows), training/consistency (the model), refined.sdf, report.json and steps.svg.
Labels that are there are not made again.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.fragments import make_fragments
from dataset_scripts.label_generation import generate
from dataset_scripts.labelling import find_level, starting_structure
from dataset_scripts.library import library_mol, read_library
from dataset_scripts.own_data import own_source
from dataset_scripts.prepare import prepare
from dataset_scripts.quantum_chemistry import gfn2_energy_and_forces
from dataset_scripts.schema import GFN2_XTB
from modeling_pcbridge import PCBridgeConfig, PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.atom_environments import environments_of_mol
from modeling_pcbridge.beyond_training import beyond_as_text
from modeling_pcbridge.errors import PCBridgeError
from modeling_pcbridge.losses import LossSettings
from modeling_pcbridge.training_coverage import ENVIRONMENT_RADIUS
from pcbridge.training.config import SourceConfig, StageConfig, TrainingConfig
from pcbridge.training.run import run

HERE = Path(__file__).parent
TINY = {"hidden_size": 32, "intermediate_size": 32, "vector_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
RADIUS = ENVIRONMENT_RADIUS  # bonds
NUM_CHECKED = 10  # structures whose GFN2-xTB forces are compared with those of the cheap ones


def label(fragments: Path, level: str, output: Path) -> list[Path]:
    """GFN2-xTB minima of the fragments, and their energies and forces at `level`, there and at displaced structures."""
    minima, labels = output / "minima.jsonl", output / f"{level}.jsonl"
    print("minima:", dict(generate("gfn2", [fragments], minima, ["minimum"], in_order=True)))
    # At its own level a minimum needs no further label: its energy is known and its forces are zero.
    geometries = ["displaced", "torsion"] if level == "gfn2" else ["given", "displaced", "torsion"]
    print("labels:", dict(generate(level, [minima], labels, geometries, in_order=True)))
    return [minima, labels]


def train(data: Path, level_of_theory: str, output: Path, num_steps: int) -> Path:
    """Both stages of the method on the rows of `data`; returns the checkpoint."""
    losses = {"energy_weight": 1.0, "denoising_weight": 0.1, "force_weight": 0.5, "force_form": "norm"}
    losses |= {"denoising_exponent": 2.0, "align_targets": True}
    sources = [SourceConfig(str(data), weight=3), SourceConfig(str(data), only_labelled=True)]
    stage1 = StageConfig(num_steps, 0.004, num_steps // 10, sources, LossSettings(**losses))
    # Consistency: structures relaxed on the model's own energy are learned like data.
    consistency = LossSettings(**losses, distillation_weight=0.5, distillation_trains_encoder=True, data_precision=0.1)
    stage2 = StageConfig(max(10, num_steps // 4), 0.002, num_steps // 40, sources, consistency)
    config = TrainingConfig(
        stage1,
        stage2,
        preset="drug_like",
        # A head for each level: that of the labels, and that of the minima, whose energies are known.
        model={**TINY, "energy_levels_of_theory": list(dict.fromkeys([level_of_theory, GFN2_XTB]))},
        compare_multi_task=False,
        output_dir=str(output),
        batch_size=16,
        optimizer="muon",
        ema_decay=0.98,
        evaluation=None,
    )
    run(config)
    return output / "consistency"


def cheap_structures(library: Path) -> dict[str, Chem.Mol]:
    """MMFF94 minima of the library by name, with a number where a name is taken; what has none is printed."""
    found: dict[str, Chem.Mol] = {}
    for record in read_library(library):
        name = record.name if record.name not in found else f"{record.name}_{len(found) + 1}"
        try:
            found[name] = starting_structure({"smiles": Chem.MolToSmiles(library_mol(record))})
        except (BadRowError, PCBridgeError) as error:
            print(f"left out {error}")
    return found


def covered_share(mol: Chem.Mol, config: PCBridgeConfig) -> float:
    """The share of heavy atoms whose environment some labelled fragment has: the model carries the set."""
    hashes = environments_of_mol(mol, [RADIUS], config.resonance_invariant)[RADIUS]
    return sum(each in config.coverage.labelled_environments for each in hashes) / len(hashes)


def refine(mols: dict[str, Chem.Mol], checkpoint: Path, output: Path) -> dict[str, float]:
    """Write the structures after mean shift; returns by name how far atom pairs moved on average, angstrom."""
    model, processor = PCBridgeModel.from_pretrained(checkpoint), PCBridgeProcessor.from_pretrained(checkpoint)
    moved = {}
    with Chem.SDWriter(str(output)) as writer:
        for name, mol in mols.items():
            before = mol.GetConformer().GetPositions()
            try:
                inputs = processor([mol])
            except PCBridgeError as error:
                print(f"not refined {name}: {error}")
                continue
            result = model.predict_structure(**inputs, method="mean_shift", num_inference_steps=10)
            after = result.positions[0, 0].double().numpy()
            distances = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (before, after)]
            moved[name] = float(np.abs(distances[1] - distances[0]).mean())
            refined = Chem.Mol(mol)
            refined.GetConformer().SetPositions(after)
            refined.SetProp("_Name", name)
            refined.SetProp("beyond_training", beyond_as_text(result.beyond_training[0]))
            writer.write(refined)
    return moved


def mean_force(mols: list[Chem.Mol]) -> float:
    """GFN2-xTB forces on atoms, eV/angstrom: small in good structures, whatever the model thinks of them."""
    forces = []
    for mol in mols:
        numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        positions = mol.GetConformer().GetPositions()
        forces.append(np.abs(gfn2_energy_and_forces(numbers, positions, Chem.GetFormalCharge(mol))[1]).mean())
    return round(float(np.mean(forces)), 3)


def draw(report: dict, path: Path) -> None:
    """The steps and what each cost, and the coverage by number of fragments."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    seconds = report["seconds"]
    bars = left.barh(list(seconds)[::-1], list(seconds.values())[::-1], color="#1d4ed8")
    left.bar_label(bars, fmt="%.1f s", padding=3)
    left.set(xlim=(0, 1.25 * max(seconds.values())), xlabel="seconds of one core")
    left.set_title(f"{report['molecules']} molecules, {report['labels']} labels at {report['level']}", fontsize=9)
    right.plot([0.0, *(100 * share for share in report["coverage"])], color="#c2410c")
    right.set(xlabel="fragments", ylabel="atoms covered (%)", ylim=(0, 100))
    right.set_title(f"environments of {RADIUS} bond", fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def make_model(options: argparse.Namespace) -> None:
    """All steps, with what each cost."""
    output: Path = options.output_dir
    output.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.process_time()
        yield
        seconds[step] = round(time.process_time() - start, 1)

    with rdBase.BlockLogs():
        with timed("fragments"):
            fragments = make_fragments([options.library], output / "fragments.smi", num=options.num)
        with timed("labels"):
            lines = label(output / "fragments.smi", options.level, output)
            rows = prepare(own_source(), lines, output / "data", split="train")["rows"]["train"]
        with timed("training"):
            level_of_theory = find_level(options.level).level_of_theory
            checkpoint = train(output / "data", level_of_theory, output / "training", options.num_steps)
        with timed("refinement"):
            mols = cheap_structures(options.library)
            moved = refine(mols, checkpoint, output / "refined.sdf")

    refined = list(Chem.SDMolSupplier(str(output / "refined.sdf"), removeHs=False))[:NUM_CHECKED]
    forces = {"start": mean_force([mols[mol.GetProp("_Name")] for mol in refined]), "refined": mean_force(refined)}
    config = PCBridgeConfig.from_pretrained(checkpoint)
    report = {
        "molecules": len(mols),
        "fragments": len(fragments["fragments"]),
        "labels": rows,
        "level": level_of_theory,
        "seconds": seconds,
        "coverage": [fragment["coverage"][str(RADIUS)] for fragment in fragments["fragments"]],
        "mean_gfn2_force": forces,
        "left_out": fragments["failures"],
        "refined": {
            name: {"covered": round(covered_share(mol, config), 3), "moved": round(moved[name], 4)}
            for name, mol in mols.items()
            if name in moved
        },
    }
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, output / "steps.svg")
    whole = sum(each["covered"] == 1 for each in report["refined"].values())
    print(
        f"{len(moved)} structures in {output / 'refined.sdf'}; {whole} have every atom covered by a labelled fragment"
    )
    verdict = "better" if forces["refined"] < forces["start"] else "worse: train longer, on more fragments"
    print(f"mean GFN2-xTB force of {len(refined)} of them, eV/angstrom: {forces}, {verdict}")
    print(f"seconds of one core: {seconds}; report.json, steps.svg and fragments.png are beside it")


def main() -> None:
    """The command line; what cannot be done ends it with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=HERE / "library.smi", help="SMILES, SDF, CSV or Parquet")
    parser.add_argument("--level", default="gfn2", help="gfn2 or b3lyp, of energies and forces")
    parser.add_argument("--num", type=int, default=60, help="fragments")
    parser.add_argument("--num_steps", type=int, default=300, help="updates of stage 1; stage 2 takes a quarter")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/own_library"))
    options = parser.parse_args()
    try:
        make_model(options)
    except (PCBridgeError, ImportError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
