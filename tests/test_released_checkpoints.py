"""What the repository ships: the checkpoints, their cards, and the README's example with them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model
from huggingface_hub import ModelCard
from rdkit import Chem

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import example_from_row
from experiments import drug_like_release, evidence_release, qm9_release
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.beyond_training import bonds_in_many_small_rings, charges_apart
from modeling_pcbridge.graph_batch import pad_graphs, pad_positions
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.metrics import bond_length_error
from pcbridge.evaluation.references import load_references, pm6_structures
from pcbridge.training.card import losses_section
from pcbridge.training.run import CONSISTENCY, MULTI_TASK

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "checkpoints"


@pytest.fixture(scope="module", params=["multi-task", "consistency"])
def name(request) -> str:
    return request.param


def test_checkpoints_are_small_and_safe(name):
    files = {path.name: path.stat().st_size for path in (CHECKPOINTS / name).iterdir() if path.suffix != ".py"}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "processor_config.json"}
    assert sum(files.values()) < 12e6


def test_the_code_lies_beside_the_weights(tmp_path):
    """As links to the only copy of it, which a wheel and a copied folder resolve."""
    folders = [CHECKPOINTS / name for name in (MULTI_TASK, CONSISTENCY, "qm9", "drug_like")]
    for folder in folders:
        PCBridgeModel.from_pretrained(folder).save_pretrained(tmp_path / folder.name)
        for path in (tmp_path / folder.name).glob("*.py"):
            assert (folder / path.name).resolve() == ROOT / "modeling_pcbridge" / path.name


def test_models_say_whether_they_have_learned_forces():
    learned = {name: PCBridgeModel.from_pretrained(CHECKPOINTS / name).config for name in (MULTI_TASK, "qm9")}
    learned[MULTI_TASK].check_forces_are_learned("a relaxation")
    with pytest.raises(ValueError, match="a relaxation needs forces, but this model has learned from energies"):
        learned["qm9"].check_forces_are_learned("a relaxation")


@pytest.mark.parametrize(("name", "size"), [(MULTI_TASK, 7), (CONSISTENCY, 7), ("drug_like", 45)])
def test_models_know_what_their_training_data_covered(name, size):
    """The bundled labels are among it."""
    model = PCBridgeModel.from_pretrained(CHECKPOINTS / name)
    processor = PCBridgeProcessor.from_pretrained(CHECKPOINTS / name)
    labelled = [row["smiles"] for row in load_bundled("pm6_displaced", "train")]
    assert model.beyond_training(**processor(labelled[::40])) == [[]] * len(labelled[::40])
    assert model.config.coverage.largest_structure == size
    [unlike] = model.beyond_training(**processor(["FC(F)(F)C(F)(F)C(F)(F)OOC(=O)OC=C=C"]))
    assert "have surroundings that no training label had" in unlike[-1]


def test_cards_state_metrics_and_limits(name):
    card = ModelCard.load(CHECKPOINTS / name / "README.md")
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert 0 < metrics["refine_bond_length_error"] < 0.02 and 0 < metrics["energy_pm6_energy_mae"] < 1
    assert card.data.model_name == f"pcbridge-mini-{name}" and card.data.library_name == "transformers"
    for words in ("What it cannot do", "B3LYP/6-31G*", "Elements other than H, C, N, O, F", "training seeds", "Wh"):
        assert words in card.text


def test_cards_say_which_losses_trained_the_model():
    """As the configurations that trained them say it; only the consistency model saw the distillation."""
    texts = {name: ModelCard.load(CHECKPOINTS / name / "README.md").text for name in (MULTI_TASK, CONSISTENCY, "qm9")}
    for name in (MULTI_TASK, CONSISTENCY):
        assert losses_section(evidence_release.stages_of(name)) in texts[name]
    assert losses_section(qm9_release.stages()) in texts["qm9"]
    for name, text in texts.items():
        assert "Of the paper's consistency losses" in text and "did not train it" in text
        assert ("distillation" in text) == (name == CONSISTENCY)
    text = (CHECKPOINTS / "drug_like" / "README.md").read_text()
    assert (ROOT / "model_card.md").read_text() == drug_like_release.project_card(text)
    for folder in (CHECKPOINTS / "drug_like", ROOT):
        card = folder / ("model_card.md" if folder == ROOT else "README.md")
        plots = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card.read_text())
        assert len(plots) == 2 and all((folder / plot).exists() for plot in plots)


@pytest.fixture(scope="module")
def refined() -> dict[str, float]:
    """Median bond errors against DFT of 30 test molecules refined from PM6, for each checkpoint and after relaxation.

    Medians, because hydrogen cyanide is among them, of whose kind the card says that errors are tenfold.
    """
    evaluation = EvaluationConfig(split="test", max_molecules=30)
    references, starts = load_references(evaluation), pm6_structures(evaluation)
    graphs = pad_graphs([reference.example.graph for reference in references])
    positions = pad_positions([starts(reference)[0] for reference in references])

    def error(structures) -> float:
        return float(
            np.median(
                [
                    bond_length_error(r.example.graph, s[None, : r.example.graph.num_atoms], r.positions)[0]
                    for r, s in zip(references, np.asarray(structures, dtype=np.float64), strict=True)
                ]
            )
        )

    errors = {"PM6": error(positions)}
    for checkpoint in ("multi-task", "consistency"):
        model = PCBridgeModel.from_pretrained(CHECKPOINTS / checkpoint)
        for steps in (0, 4):
            output = model.predict_structure(
                **graphs,
                positions=positions,
                method="refine",
                relaxation_steps=steps,
                generator=torch.Generator().manual_seed(0),
            )
            errors[f"{checkpoint}, {steps} steps"] = error(output.positions[:, 0])
    return errors


def test_consistency_and_relaxation_bring_bonds_closer_to_dft(refined):
    assert refined["consistency, 0 steps"] < 0.6 * refined["PM6"]
    assert refined["consistency, 0 steps"] < 0.6 * refined["multi-task, 0 steps"]
    # E itself is the teacher: relaxing on it does at least as well, whatever it starts from.
    assert refined["multi-task, 4 steps"] < 0.6 * refined["multi-task, 0 steps"]
    assert refined["multi-task, 4 steps"] <= refined["consistency, 0 steps"]


def test_the_drug_like_model_ends_mean_shift_by_two_steps_on_its_energy():
    model = PCBridgeModel.from_pretrained(CHECKPOINTS / "drug_like")
    processor = PCBridgeProcessor.from_pretrained(CHECKPOINTS / "drug_like")
    inputs = processor(["CC(=O)Nc1ccc(O)cc1", "CS(=O)(=O)Nc1ccccc1"], embed=True)

    def energy_and_forces(**options):
        positions = model.predict_structure(**inputs, method="mean_shift", **options).positions[:, 0]
        found = model.predict_energy(**{**inputs, "positions": positions})
        return found.energy, found.forces.norm(dim=(1, 2)), found.forces.norm(dim=-1).amax(-1)

    (energy, forces, _), (energy_before, forces_before, _) = energy_and_forces(), energy_and_forces(relaxation_steps=0)
    assert torch.equal(energy, energy_and_forces(relaxation_steps=2)[0])
    assert (energy < energy_and_forces(relaxation_steps=1)[0]).all()
    assert (energy < energy_before - 0.002).all() and (forces < 0.5 * forces_before).all()
    assert (energy_and_forces(relaxation_steps="converged")[2] <= 0.021).all()


def test_relaxation_lowers_the_forces_and_zero_steps_change_nothing():
    model = PCBridgeModel.from_pretrained(CHECKPOINTS / "consistency")
    inputs = PCBridgeProcessor.from_pretrained(CHECKPOINTS / "consistency")(["CCO", "c1ccoc1"])

    def sample(**options):
        return model.predict_structure(
            **inputs, num_samples=2, generator=torch.Generator().manual_seed(0), **options
        ).positions

    def rms_force(positions):
        repeated = {key: value.repeat_interleave(2, 0) for key, value in inputs.items()}
        return model.predict_energy(**repeated, positions=positions.flatten(0, 1)).forces.square().mean().sqrt()

    plain, relaxed = sample(), sample(relaxation_steps=4)
    assert torch.equal(plain, sample(relaxation_steps=0))
    assert rms_force(relaxed) < 0.3 * rms_force(plain)
    with pytest.raises(ValueError, match="relaxation_steps must be a whole number of at least 0"):
        small_model().predict_structure(**inputs, relaxation_steps=-1)


def test_the_readmes_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    shapes = capsys.readouterr().out
    assert shapes.count("torch.Size([2, 21, 3])") == 2


def test_qm9_checkpoint_brings_pm6_structures_to_dft():
    """Bundled molecules, most of them of its training data: that it works, not how well."""
    evaluation = EvaluationConfig(split="test", max_molecules=15)
    references, starts = load_references(evaluation), pm6_structures(evaluation)
    model = PCBridgeModel.from_pretrained(CHECKPOINTS / "qm9")
    assert model.config.energy_level_of_theory == "B3LYP/6-31G(2df,p)"
    graphs = pad_graphs([reference.example.graph for reference in references])
    positions = pad_positions([starts(reference)[0] for reference in references])
    refined = model.predict_structure(
        **graphs, positions=positions, method="mean_shift", num_inference_steps=40
    ).positions[:, 0]
    errors = [
        [bond_length_error(r.example.graph, x[None, : r.example.graph.num_atoms], r.positions)[0] for x in (start, end)]
        for r, start, end in zip(references, positions.double().numpy(), refined.double().numpy(), strict=True)
    ]
    before, after = np.median(errors, axis=0)
    assert after < 0.005 < before
    card = ModelCard.load(CHECKPOINTS / "qm9" / "README.md")
    assert "What it cannot do" in card.text and len(card.data.eval_results) > 10
    plots = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card.text)
    assert len(plots) == 2 and all((CHECKPOINTS / "qm9" / plot).exists() for plot in plots)


def test_the_drug_like_model_knows_unseen_fragments_and_its_card_says_what_trained_it():
    """B3LYP/6-31G* forces of ions, sulfur and the like, and of minima, torsions and displaced structures."""
    model = PCBridgeModel.from_pretrained(CHECKPOINTS / "drug_like").eval()
    model.config.check_forces_are_learned("a relaxation")
    rows = [example_from_row(row, ["B3LYP/6-31G*"], True) for row in load_bundled("fragments", "test")]
    assert len(rows) > 100 and {9, 15, 16, 17, 35} & {z for row in rows for z in row.graph.atomic_numbers.tolist()}
    errors = drug_like_release.errors_of_labels(model, "fragments")
    forces = [error["force MAE (eV/angstrom)"] for error in errors]
    assert np.median(forces) < 0.1  # 0.071
    text = ModelCard.load(CHECKPOINTS / "drug_like" / "README.md").text
    assert losses_section(drug_like_release.stages()) in text
    assert f"| `fragments` | {len(forces)} | {np.mean(forces):.3f} | {np.median(forces):.3f} |" in text


@pytest.mark.parametrize(
    ("smiles", "number"),
    [("C1=CC=C1", 1), ("c1ccc2c(c1)-c1ccccc12", 1), ("C1=CC=CC=CC=C1", 1), ("c1ccccc1", 0), ("c1ccc2cccc-2cc1", 0)],
)
def test_antiaromatic_rings_are_told(smiles, number):
    model = PCBridgeModel.from_pretrained(ROOT / "checkpoints" / "drug_like")
    [said] = model.beyond_training(**PCBridgeProcessor.of_config(model.config)([smiles]))
    assert sum("the antiaromatic ring" in phrase for phrase in said) == number


@pytest.mark.parametrize(
    ("smiles", "is_told"),
    [
        ("C1C23CC12C3", True),  # [1.1.1]propellane
        ("C1CC23CC2(C1)C3", False),  # [3.1.1], whose third ring is of five
        ("C1CC23C1(C2)C3", True),  # [2.1.1]
        ("C12C3C1C23", True),  # tetrahedrane
        ("C12C3C4C1C5C2C3C45", False),  # cubane
        ("C1C2CC12", False),
        ("C1CC1", False),
    ],
)
def test_bonds_that_small_rings_share_are_told(smiles, is_told):
    model = PCBridgeModel.from_pretrained(ROOT / "checkpoints" / "drug_like")
    [said] = model.beyond_training(**PCBridgeProcessor.of_config(model.config)([smiles]))
    assert any("rings of three or four atoms share a bond" in phrase for phrase in said) == is_told


def test_no_bond_in_training_was_in_three_small_rings():
    seen = {smiles for name in ("fragments", "drug_like", "pm6") for smiles in load_bundled(name, "train")["smiles"]}
    mols = [Chem.MolFromSmiles(smiles) for smiles in seen]
    polycyclic = [mol for mol in mols if sum(len(ring) <= 4 for ring in mol.GetRingInfo().AtomRings()) >= 3]
    assert len(seen) > 8000 and len(polycyclic) > 50
    assert not any(bonds_in_many_small_rings(graph_from_mol(Chem.AddHs(mol))) for mol in polycyclic)


@pytest.mark.parametrize(
    ("smiles", "is_told"),
    [
        ("[NH3+]CC(=O)[O-]", True),
        ("C[N+](C)(C)CC(=O)[O-]", True),
        ("C[N+](C)(C)CC([N+](=O)[O-])C(=O)[O-]", True),
        ("C[N+](=O)[O-]", False),  # neighbours
        ("C[n+]1ccn([O-])c1", False),  # one form of a molecule whose charges are neighbours
        ("CN=[N+]=[N-]", False),
        ("CC[NH3+]", False),
        ("[O-]C(=O)CC(=O)[O-]", False),
    ],
)
def test_charges_that_stand_apart_are_told(smiles, is_told):
    model = PCBridgeModel.from_pretrained(ROOT / "checkpoints" / "drug_like")
    [said] = model.beyond_training(**PCBridgeProcessor.of_config(model.config)([smiles]))
    assert any("charges stand apart" in phrase for phrase in said) == is_told


def test_hardly_a_label_had_charges_that_stand_apart():
    rows = [row for name in ("fragments", "pm6", "pm6_displaced") for row in load_bundled(name, "train")]
    charged = {row["smiles"] for row in rows if row["forces"] and "+" in row["smiles"]}
    assert len(charged) > 80
    graphs = {smiles: graph_from_mol(Chem.AddHs(mol_from_smiles(smiles)), True) for smiles in charged}
    assert [smiles for smiles, graph in graphs.items() if charges_apart(graph)] == ["NC(=[NH2+])C(=O)[O-]"]


def test_elements_without_a_label_at_the_models_own_level_are_told():
    model = PCBridgeModel.from_pretrained(ROOT / "checkpoints" / "drug_like")
    processor = PCBridgeProcessor.of_config(model.config)
    [iodide], [bromide] = (model.beyond_training(**processor([smiles])) for smiles in ("CI", "CBr"))
    assert iodide == ["no label at B3LYP/6-31G* had I, so only differences of its energies there mean anything"]
    assert bromide == []
