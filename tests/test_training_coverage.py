"""What training data covered: gathered, carried by checkpoints, united, and said of molecules that go beyond it."""

import json
import sys
import warnings

import ase.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import small_model
from rdkit import Chem
from test_ase_calculator import embedded
from test_training import small_config

from dataset_scripts.bundled import load_bundled
from dataset_scripts.coverage import coverage_of
from dataset_scripts.schema import B3LYP_6_31GD, FEATURES, PM6
from dataset_scripts.sharded import ShardedExamples
from modeling_pcbridge import LossSettings, PCBridgeConfig, PCBridgeModel, PCBridgePipeline, PCBridgeProcessor
from modeling_pcbridge.ase_calculator import PCBridgeCalculator
from modeling_pcbridge.atom_environments import environments_of_graph, environments_of_mol
from modeling_pcbridge.beyond_training import atoms_beyond_training
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.training_coverage import ENVIRONMENT_RADIUS, TrainingCoverage
from pcbridge.app.command_line import main
from pcbridge.training.config import SourceConfig, StageConfig
from pcbridge.training.data import load_source
from pcbridge.training.learned import main as learned
from pcbridge.training.run import run

ROWS = slice(600, 640)  # some with labels, all of them PM6 minima


def environments(*molecules: str, resonance_invariant: bool = False) -> set[int]:
    mols = [mol_from_smiles(smiles) for smiles in molecules]
    return {h for mol in mols for h in environments_of_mol(mol, [ENVIRONMENT_RADIUS], resonance_invariant)[1]}


@pytest.fixture
def model() -> PCBridgeModel:
    """It knows ethanol and acetone."""
    coverage = TrainingCoverage(4, 4, frozenset([0]), frozenset(environments("CCO", "CC(C)=O")))
    return small_model(training_coverage=coverage.to_json(), supported_elements=[1, 6, 7, 8, 9])


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [load_bundled("pm6", "train")[index] for index in range(*ROWS.indices(10**6))]


def test_hashes_are_those_that_checkpoints_carry():
    found = environments_of_mol(Chem.MolFromSmiles("CCO"), [0, 1])
    assert found == {0: [234954896, 448305248, 2643683107], 1: [446125900, 260046734, 2880344970]}


def test_graphs_and_molecules_say_the_same_in_any_order_and_resonance_form():
    for smiles in ("CC(=O)Nc1ccc(O)cc1", "C[N+](=O)[O-]", "[NH3+]CC(=O)[O-]", "C#CC(F)(Cl)P(=O)(O)S"):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        order = np.random.default_rng(0).permutation(mol.GetNumAtoms()).tolist()  # hydrogens among the others
        shuffled = Chem.RenumberAtoms(mol, order)
        for invariant in (False, True):
            of_mol = environments_of_mol(shuffled, [0, 1, 2], invariant)
            assert of_mol == environments_of_graph(graph_from_mol(shuffled, invariant), [0, 1, 2])
            assert sorted(of_mol[2]) == sorted(environments_of_mol(Chem.MolFromSmiles(smiles), [2], invariant)[2])
    forms = ("CNC(C)=[NH2+]", "C[NH+]=C(C)N")
    assert environments(forms[0]) != environments(forms[1])
    assert environments(forms[0], resonance_invariant=True) == environments(forms[1], resonance_invariant=True)


def test_what_is_beyond_is_named_by_atoms(model):
    processor = PCBridgeProcessor.of_config(model.config)
    inputs = processor(["CCO", "CC(C)O", "CC[NH3+]", "CCCCO"])
    none, branched, charged, long = model.beyond_training(**inputs)
    assert none == []
    assert branched == ["4 of 4 heavy atoms (C0, C1, C2, O3) have surroundings that no training label had"]
    assert "no training molecule had its total charge of +1" in charged
    assert long[0] == "it has 5 heavy atoms, training structures up to 4 and labels up to 4"
    assert long[1].startswith("3 of 5 heavy atoms (C1, C2, C3)")
    graphs = [graph_from_mol(Chem.AddHs(Chem.MolFromSmiles(smiles))) for smiles in ("CCO", "CC(C)O", "CCCCO")]
    assert [atoms_beyond_training(model.config, graph) for graph in graphs] == [[], [0, 1, 2, 3], [1, 2, 3]]
    assert atoms_beyond_training(small_model().config, graphs[1]) == []  # it does not know
    [hydrogen] = model.beyond_training(**processor(["[H][H]"]))
    assert hydrogen[-1] == "it has no heavy atom, by whose surroundings molecules are compared"
    output = model.predict_structure(**inputs, num_inference_steps=2, max_attempts=1)
    assert output.beyond_training == [none, branched, charged, long]
    unknown = small_model().predict_structure(**processor(["CCO"]), num_inference_steps=2, max_attempts=1)
    assert unknown.beyond_training == [None]


def test_rows_teach_what_they_hold(rows, tmp_path):
    paths = [tmp_path / f"{number}.parquet" for number in range(2)]
    for path, some in zip(paths, (rows[:30], rows[30:]), strict=True):
        pq.write_table(pa.Table.from_pylist(some, FEATURES.arrow_schema), path)
    labelled = [row["smiles"] for row in rows if row["energy"] is not None]
    assert 0 < len(labelled) < len(rows)
    for invariant in (False, True):
        examples = ShardedExamples(paths, [B3LYP_6_31GD], resonance_invariant=invariant)
        found = coverage_of(examples)
        # The graphs that the model sees have the same surroundings.
        graphs = [example.graph for example in examples if example.is_labelled]
        hashes = [environments_of_graph(graph, [ENVIRONMENT_RADIUS])[ENVIRONMENT_RADIUS] for graph in graphs]
        assert found.by_labels.labelled_environments == {each for of_graph in hashes for each in of_graph}
        expected = environments(*labelled, resonance_invariant=invariant)
        assert found.by_labels.labelled_environments == expected and not found.by_structures.labelled_environments
        assert found.by_structures.largest_structure >= found.by_labels.largest_labelled > 0
        assert found.has_forces and found.by_labels.total_charges == {0}
    # At the level of the minima forces are zeros, which say nothing of where energies fall.
    found = coverage_of(ShardedExamples(paths, [PM6]))
    assert not found.has_forces
    assert found.by_labels.labelled_environments == environments(*(row["smiles"] for row in rows))
    # Minima that serve their labels only teach no structures.
    assert coverage_of(ShardedExamples(paths, [PM6], structures=False)).by_structures == TrainingCoverage()


def test_training_says_what_it_taught_and_fine_tuning_adds_to_it(tmp_path, rows, monkeypatch):
    def trained(folder: str, source: SourceConfig, force_weight: float, **changes) -> PCBridgeConfig:
        losses = LossSettings(force_weight=force_weight)
        stage = StageConfig(10, 1e-3, 2, [source], losses)
        run(small_config(tmp_path / folder, stage1=stage, **changes))
        return PCBridgeModel.from_pretrained(tmp_path / folder / "stage1").config

    few, others = SourceConfig("pm6", only_labelled=True, max_rows=12), SourceConfig("pm6_displaced", max_rows=60)
    first = trained("first", few, 0.0)
    labelled = [row for row in load_bundled("pm6", "train") if row["energy"] is not None][:12]
    assert first.coverage.labelled_environments == environments(*(row["smiles"] for row in labelled))
    assert first.coverage.largest_labelled == max(sum(z > 1 for z in row["atomic_numbers"]) for row in labelled)
    assert first.has_learned_forces is False
    second = trained("second", others, 0.5, init_from=str(tmp_path / "first/stage1"))
    alone = coverage_of(load_source(others, "train", [B3LYP_6_31GD]))
    assert second.coverage == first.coverage | alone.by_labels and second.coverage != first.coverage
    assert second.has_learned_forces is True

    # A checkpoint from before says nothing, nor does what is fine-tuned from it, until the command is run.
    path = tmp_path / "first/stage1/config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if "learned" not in k and k != "training_coverage"}))
    tuned = trained("third", others, 0.5, init_from=str(tmp_path / "first/stage1"))
    assert tuned.coverage is None and tuned.has_learned_forces is True
    source = json.dumps([{"name": few.name, "only_labelled": True, "max_rows": 12}])
    options = [f"--stage1.sources={source}", "--stage1.losses.force_weight=0", "--stage2=null"]
    monkeypatch.setattr(sys, "argv", ["learned", str(path.parent), *options])
    learned()
    again = PCBridgeModel.from_pretrained(path.parent).config
    assert again.coverage == first.coverage and again.has_learned_forces is False


@pytest.mark.parametrize(
    "damage",
    [
        {"labelled_environments": "0123456"},
        {"labelled_environments": "0x234567"},
        {"labelled_environments": [1]},
        {"total_charges": "0"},
        {"largest_labelled": -1},
        {"largest_structure": True},
        {"more": 1},
    ],
)
def test_a_damaged_coverage_is_refused(damage):
    whole = TrainingCoverage(1, 2, frozenset([0]), frozenset([5])).to_json()
    assert PCBridgeConfig(training_coverage=whole).coverage.labelled_environments == {5}
    with pytest.raises(ValueError, match="training_coverage"):
        PCBridgeConfig(training_coverage=whole | damage)


def test_every_way_in_says_it_once(model, tmp_path, capsys):
    (tmp_path / "in.smi").write_text("CCCO propanol\nCCCCCCCCF fluorooctane\n")  # of ethanol any two superpose
    of_size = "it has 9 heavy atoms, training structures up to 7 and labels up to 7"
    for kind in ("sdf", "xyz", "parquet"):
        path = tmp_path / f"out.{kind}"
        all_of_two = ["--num_conformers", "2", "--energy_window", "1000", "--rmsd_threshold", "0"]
        options = ["--model", "consistency", *all_of_two, "--steps", "10"]
        main(["predict", str(tmp_path / "in.smi"), "-o", str(path), *options])
        errors = capsys.readouterr().err
        assert errors.count("beyond what trained the model") == 1
        assert f"line 2: CCCCCCCCF: beyond what trained the model: {of_size}" in errors
        if kind == "parquet":
            in_file = pq.read_table(path)["beyond_training"].to_pylist()
        elif kind == "xyz":
            in_file = [atoms.info["beyond_training"] for atoms in ase.io.read(path, ":")]
        else:
            in_file = [mol.GetProp("beyond_training") for mol in Chem.SDMolSupplier(str(path))]
        assert in_file[:2] == ["nothing"] * 2 and all(each.startswith(of_size) for each in in_file[2:])
        assert len(in_file) >= 3
    said = "(C1, F2) have surroundings that no training label had"
    model.float()
    pipe = PCBridgePipeline(model, processor=PCBridgeProcessor.of_config(model.config), device="cpu")
    known, new = pipe(["CCO", "CCF"], num_inference_steps=2, max_attempts=1)
    assert known["beyond_training"] == [] and said in new["beyond_training"][0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for smiles in ("CCO", "CCF"):
            _, atoms = embedded(smiles)
            atoms.calc = PCBridgeCalculator(model)
            atoms.get_forces()
            atoms.rattle(0.01)
            atoms.get_forces()
    about = [str(each.message) for each in caught if "beyond what trained" in str(each.message)]
    assert len(about) == 1 and about[0].startswith("CCF is beyond") and said in about[0]


def test_relaxation_by_a_model_without_forces_is_refused_unless_forced():
    model = small_model(has_learned_forces=False)
    mol, _ = embedded("CCO")
    inputs = PCBridgeProcessor()([mol])
    with pytest.raises(ValueError, match="relax_structure needs forces"):
        model.relax_structure(**inputs)
    assert model.relax_structure(**inputs, max_evaluations=1, allow_unlearned_forces=True).positions.isfinite().all()
    options = {"method": "mean_shift", "num_inference_steps": 1, "relaxation_steps": 1}
    with pytest.raises(ValueError, match=r"\(relaxation_steps\) needs forces"):
        model.predict_structure(**inputs, **options)
    assert model.predict_structure(**inputs, **options, allow_unlearned_forces=True).positions.isfinite().all()
    model.config.num_relaxation_steps = 1  # which such a model leaves out
    model.predict_structure(**inputs, method="mean_shift", num_inference_steps=1)
