"""The statistics and tables of the evidence on worked numbers, and every declared setting against the options."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from dataset_scripts.bundled import load_bundled
from experiments import outside, structure_errors
from experiments.averaged_checkpoint import mean_of
from experiments.evidence_report import (
    SIMILARITY_LIMIT,
    dissimilar_molecules,
    only_molecules,
    over_seeds,
    recorded_evaluations,
)
from experiments.evidence_settings import ABLATIONS, QUICK_TRAINING, SETTINGS
from experiments.statistics import compare
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.rdkit_structures import rdkit_structures
from pcbridge.evaluation.report import STRUCTURE_COLUMNS
from train_accelerate import parse

ROOT = Path(__file__).parent.parent


def test_paired_comparison_on_worked_numbers():
    # differences -1, -2, -3: mean -2, standard error 1 / sqrt(3), t = -2 sqrt(3) with two degrees of freedom
    effect = compare([10.0, 12.0, 14.0], [9.0, 10.0, 11.0])
    assert effect.difference == pytest.approx(-2.0)
    assert effect.relative == pytest.approx(-2.0 / 12.0)
    assert effect.p_value == pytest.approx(0.0741799, abs=1e-6)
    assert (effect.low, effect.high) == pytest.approx((-4.4841377, 0.4841377), abs=1e-6)


def test_seeds_must_pair():
    with pytest.raises(ValueError, match="one value of each per seed"):
        compare([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least two seeds"):
        compare([1.0], [2.0])


@pytest.mark.parametrize("name", list(SETTINGS))
def test_declared_settings_are_options_of_the_training_script(name):
    config = parse(["--config", str(ROOT / "configs" / "evidence.yaml"), *SETTINGS[name].overrides, *QUICK_TRAINING])
    assert config.stage1.num_steps == 20
    if name in ABLATIONS:
        baseline = parse(["--config", str(ROOT / "configs" / "evidence.yaml")])
        assert config.stage2.losses != baseline.stage2.losses
        start = parse(["--config", str(ROOT / "configs" / "evidence.yaml"), *SETTINGS[SETTINGS[name].start].overrides])
        assert config.model == start.model, "the checkpoint it starts from would be refused"


def test_metrics_of_a_subset():
    keys = [key for key, _, _ in STRUCTURE_COLUMNS]
    values = {key: [1.0, 2.0, 6.0] for key in keys} | {"stereo_right": [1.0, float("nan"), 0.0]}
    results = {"per_molecule": {"molecule_id": ["a", "b", "c"], **values}}
    subset = only_molecules(results, {"b", "c"})
    assert subset["rmsd_mean"] == 4.0 and subset["stereo_right"] == 0.0 and subset["heavy_rmsd_median"] == 4.0


def test_dissimilar_molecules_are_far_from_every_training_molecule():
    rows = list(load_bundled("dft_equilibrium", "test"))[:40]
    chosen = dissimilar_molecules([row["molecule_id"] for row in rows], "test")
    assert 0 < len(chosen) < len(rows)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    training = [
        generator.GetFingerprint(Chem.MolFromSmiles(row["smiles"])) for row in load_bundled("dft_equilibrium", "train")
    ]
    for row in rows[:5]:
        fingerprint = generator.GetFingerprint(Chem.MolFromSmiles(row["smiles"]))
        similarity = max(DataStructs.TanimotoSimilarity(fingerprint, other) for other in training)
        assert (similarity < SIMILARITY_LIMIT) == (row["molecule_id"] in chosen)


def test_record_gives_every_seed_its_values_again():
    record = {"seeds": [3, 5], "consistency": {"ddim": {"rmsd_mean": [1.0, 2.0]}, "energy": {"energy_mae": [4.0, 3.0]}}}
    evaluations = recorded_evaluations(record, ["consistency"])
    assert evaluations[5] == {"consistency": {"ddim": {"rmsd_mean": 2.0}, "energy": {"energy_mae": 3.0}}}
    assert over_seeds(evaluations, "consistency", "energy", "energy_mae") == [4.0, 3.0]
    assert recorded_evaluations({}, ["consistency"]) == {}


@pytest.mark.slow
def test_evidence_runs_end_to_end():
    """Minutes; needs the `xtb` extra."""
    command = [sys.executable, "-m", "experiments.evidence", "--quick", "--seeds", "0", "1"]
    subprocess.run([*command, "--settings", "displaced", "local", "fine_tuned"], cwd=ROOT, check=True)
    subprocess.run([*command, "--ablations"], cwd=ROOT, check=True)
    record = json.loads((ROOT / "outputs" / "evidence-quick" / "evidence.json").read_text())
    assert record["settings"]["displaced"]["seeds"] == [0, 1] and set(record["ablations"]) == set(ABLATIONS)
    assert set(record["references"]) >= {"PM6 (same conformer)", "GFN2-xTB from PM6", "ETKDGv3 + MMFF94"}


def test_errors_of_outside_structures_and_type_means(tmp_path):
    """Bonds of one type that are all off by as much have no error left once type means are out."""
    mol = mol_from_smiles("CCC")
    graph = graph_from_mol(mol)
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(mol.GetNumAtoms(), 3))
    molecule = structure_errors.Molecule("propane", mol, graph, reference, None, None)
    same = structure_errors.record(molecule, reference)
    assert max(same.values()) < 1e-6
    [(i, j), *_] = np.argwhere(np.triu(graph.bonded)).tolist()
    moved = reference.copy()
    moved[j] += 0.1 * (reference[j] - reference[i]) / np.linalg.norm(reference[j] - reference[i])
    assert structure_errors.record(molecule, moved)["bonds"] > 0.1 / 10 - 1e-9  # of ten bonds one is .1 longer
    ethane = mol_from_smiles("CC")
    positions = rdkit_structures(ethane, 1, timeout=10)[0].GetConformer().GetPositions()
    larger = structure_errors.Molecule("ethane", ethane, graph_from_mol(ethane), positions, None, None)
    stretched = [positions * 1.01]
    assert structure_errors.record(larger, stretched[0])["bonds"] > 0.01
    assert structure_errors.centred_bond_errors([larger], stretched)[0] < 1e-3


def test_outside_results_stay_beside_new_ones_if_of_the_same_molecules(tmp_path):
    def of(bonds: float, seconds: float | None = None, torsions: float = 1.0) -> dict:
        record = dict.fromkeys(structure_errors.METRICS, 1.0) | {"bonds": bonds, "torsions": torsions}
        return {"records": {"octane": record}, "seconds": seconds}

    mol = mol_from_smiles("CCCCCCCC")
    molecules = [structure_errors.Molecule("octane", mol, graph_from_mol(mol), np.zeros((26, 3)), None, None)]
    output = tmp_path / "outside"

    def written(results: dict) -> dict:
        outside.write_beside(results, molecules, "some.parquet", output)
        return json.loads(output.with_suffix(".json").read_text())

    written({"MMFF94": of(0.02, seconds=0.5), "old, refined": of(0.01), "new, refined": of(0.03)})
    both = written({"MMFF94": of(0.02), "new, refined": of(0.005, seconds=0.1)})
    assert both["MMFF94"]["seconds"] == 0.5  # which the second run did not measure
    assert both["old, refined"]["records"]["octane"]["bonds"] == 0.01
    assert both["new, refined"]["records"]["octane"]["bonds"] == 0.005
    table = output.with_suffix(".md").read_text()
    assert "| new, refined | 1 | 0.0050 |" in table and "at most 3 (1) | more than 3 (0)" in table
    assert set(written({"MMFF94": of(0.07, torsions=9.0)})) == {"MMFF94"}  # another file
    assert "at most 3 (0) | more than 3 (1)" in output.with_suffix(".md").read_text()


def test_the_mean_of_checkpoints_is_of_one_architecture():
    states = [{"weight": torch.tensor([1.0, 2.0]), "count": torch.tensor([4])}] * 2
    states[1] = {"weight": torch.tensor([3.0, 6.0]), "count": torch.tensor([4])}
    mean = mean_of(states)
    assert mean["weight"].tolist() == [2.0, 4.0] and mean["count"].dtype == torch.int64
    with pytest.raises(ValueError, match="not of one architecture"):
        mean_of([states[0], {"weight": torch.ones(3), "count": torch.tensor([4])}])
