"""Labels of several levels of theory train one encoder, each by a head and reference energies of its own."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import FORMS, small_model
from test_training import small_config

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import collate, example_from_row
from dataset_scripts.schema import B3LYP_6_31GD, FEATURES
from modeling_pcbridge import LossSettings, PCBridgeConfig, PCBridgeModel
from modeling_pcbridge.graph_batch import GRAPH_KEYS
from pcbridge.app.default_model import released_checkpoint
from pcbridge.evaluation.batches import energies_and_forces
from pcbridge.training.config import SourceConfig, StageConfig
from pcbridge.training.initial_model import initial_model, with_levels_of_theory
from pcbridge.training.run import run

LEVELS = [B3LYP_6_31GD, "b"]
# What an atom of each element has less at level b, eV.
SHIFTS = {1: 1.5, 6: 20.0, 7: 30.0, 8: 40.0, 9: 50.0}


def at_b(row: dict) -> dict:
    """The row with its labels as those of level b: other by constants of the elements."""
    energy = row["energy"] - sum(SHIFTS[z] for z in row["atomic_numbers"])
    return row | {"energy": energy, "energy_level_of_theory": "b"}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [row for row in load_bundled("pm6", "train") if row["energy"] is not None][:200]


@pytest.fixture(scope="module")
def two_levels(rows, tmp_path_factory) -> SourceConfig:
    """The same molecules at both levels, in one folder."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "train").mkdir()
    table = pa.Table.from_pylist(rows + [at_b(row) for row in rows], schema=FEATURES.arrow_schema)
    pq.write_table(table, folder / "train" / "part.parquet")
    return SourceConfig(str(folder))


def config_of(source: SourceConfig, folder: Path = Path("unused"), **changes):
    model = {**small_config(folder).model, "energy_levels_of_theory": LEVELS}
    stage = StageConfig(20, 3e-3, 2, [source], LossSettings(force_weight=0.5, force_form="norm"))
    return small_config(folder, **{"stage1": stage, "model": model, **changes})


def test_reference_energies_take_up_what_levels_differ_by(rows, two_levels):
    model, data = initial_model(config_of(two_levels))
    own, other = model.energy_decoder.reference_energies.by_level
    for atomic_number in {z for row in rows for z in row["atomic_numbers"]}:
        assert (own - other)[atomic_number].item() == pytest.approx(SHIFTS[atomic_number], abs=1e-6)
    [examples] = data.examples([two_levels], "train")
    assert [example.level for example in examples] == [0] * len(rows) + [1] * len(rows)


def test_each_label_trains_the_head_of_its_level_and_the_encoder(rows):
    model = small_model(energy_levels_of_theory=LEVELS)
    batch = collate([example_from_row(at_b(row), LEVELS) for row in rows[:4]])
    model(**batch, loss_settings=LossSettings().only(energy_weight=1.0, force_weight=1.0)).loss.backward()
    for weight in (model.energy_decoder.mlp.up.weight, model.energy_decoder.mlp.down.weight):
        own, other = weight.grad.chunk(2)
        assert (own == 0).all() and other.abs().max() > 0
    assert model.encoder.pair_projection.filter_weight.grad.abs().max() > 0


def test_a_level_is_asked_for_by_name(rows):
    model = small_model(energy_levels_of_theory=LEVELS)
    model.energy_decoder.reference_energies.by_level[1, 1:] = -7.0
    batch = collate([example_from_row(rows[k], LEVELS) for k in (0, 50)])
    inputs = {key: batch[key] for key in (*GRAPH_KEYS, "positions")}
    own, other = (model.predict_energy(**inputs, level_of_theory=level) for level in LEVELS)
    assert torch.equal(own.energy, model.predict_energy(**inputs).energy)
    assert (own.energy - other.energy).abs().min() > 1 and (own.forces - other.forces).abs().max() > 1e-3
    # Rows of one batch may be at different levels.
    mixed = model(**batch | {"label_levels": torch.tensor([0, 1])}).energy
    torch.testing.assert_close(mixed, torch.stack([own.energy[0], other.energy[1]]), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="has not learned energies at 'PBE', only at B3LYP"):
        model.predict_energy(**inputs, level_of_theory="PBE")


def test_a_trained_model_gets_a_level_more_and_keeps_what_it_knows(rows):
    model = small_model(dtype=torch.float32)
    model.energy_decoder.reference_energies.by_level[0, 1:] = -3.0
    batch = collate([example_from_row(row, LEVELS) for row in rows[:3]])
    inputs = {key: batch[key] for key in (*GRAPH_KEYS, "positions")}
    extended = with_levels_of_theory(model, ["b", B3LYP_6_31GD]).eval()
    before = model.predict_energy(**inputs)
    after = extended.predict_energy(**inputs, level_of_theory=B3LYP_6_31GD)
    torch.testing.assert_close(after.energy, before.energy, rtol=0, atol=1e-4)
    # The new head starts as a copy; its reference energies are to be fitted.
    torch.testing.assert_close(extended.predict_energy(**inputs).forces, before.forces, rtol=0, atol=1e-4)
    assert (extended.energy_decoder.reference_energies.by_level[0] == 0).all()


@pytest.mark.parametrize("levels", [["b", B3LYP_6_31GD], ["c", "b"], [B3LYP_6_31GD, "c"]])
def test_levels_keep_their_heads_in_another_order_and_beside_others(rows, levels):
    """Also where there are as many levels as before."""
    model = small_model(dtype=torch.float32, energy_levels_of_theory=LEVELS, **FORMS["extensive"]).eval()
    model.energy_decoder.reference_energies.by_level[0, 1:] = -3.0
    model.energy_decoder.reference_energies.by_level[1, 1:] = -7.0
    batch = collate([example_from_row(row, LEVELS) for row in rows[:3]])
    inputs = {key: batch[key] for key in (*GRAPH_KEYS, "positions")}
    other = with_levels_of_theory(model, levels).eval()
    for level in set(levels) & set(LEVELS):
        before, after = (each.predict_energy(**inputs, level_of_theory=level) for each in (model, other))
        torch.testing.assert_close(after.energy, before.energy, rtol=0, atol=1e-4)
        torch.testing.assert_close(after.forces, before.forces, rtol=0, atol=1e-4)


def test_training_goes_on_where_a_checkpoint_is_right_already(rows, two_levels, tmp_path):
    """A new level is a known one but for constants of the elements, and of the known one fluorine was forgotten."""
    model = PCBridgeModel.from_pretrained(released_checkpoint())
    references = model.energy_decoder.reference_energies.by_level[0]
    fluorine = references[9].item()
    references[9] = 0.0
    model.save_pretrained(tmp_path)
    changed, _ = initial_model(
        small_config(
            tmp_path,
            stage1=config_of(two_levels).stage1,
            init_from=str(tmp_path),
            model={"energy_levels_of_theory": [B3LYP_6_31GD, "b"]},
        )
    )
    assert changed.energy_decoder.reference_energies.by_level[0, 9].item() == pytest.approx(fluorine, abs=0.1)
    resonance_invariant = changed.config.resonance_invariant
    for level, labelled in ((B3LYP_6_31GD, rows), ("b", [at_b(row) for row in rows])):
        batch = collate([example_from_row(row, LEVELS, resonance_invariant) for row in labelled])
        inputs = {key: batch[key] for key in (*GRAPH_KEYS, "positions")}
        predicted = changed.predict_energy(**inputs, level_of_theory=level).energy
        errors = predicted - torch.tensor([row["energy"] for row in labelled])
        assert errors.abs().mean() < 0.15  # eV; fitted beside the copied head, level b was off by more than one


def test_a_level_is_the_last_one_and_a_difference(rows):
    model = small_model(energy_levels_of_theory=LEVELS, level_differences=True, **FORMS["extensive"])
    batch = collate([example_from_row(row, LEVELS) for row in rows[:4]])
    inputs = {key: batch[key] for key in (*GRAPH_KEYS, "positions")}
    own, last = (model.predict_energy(**inputs, level_of_theory=level) for level in LEVELS)
    # Without the heads of the first level its energies and forces are those of the last one.
    with torch.no_grad():
        model.energy_decoder.mlp.down.weight[0] = model.energy_decoder.mlp.down.bias[0] = 0.0
        model.energy_decoder.torsions.weights.weight[:3] = model.energy_decoder.torsions.weights.bias[:3] = 0.0
        bends = model.energy_decoder.out_of_plane.weights
        bends.weight[:2] = bends.bias[:2] = 0.0
    without = model.predict_energy(**inputs)
    torch.testing.assert_close(without.energy, last.energy, rtol=0, atol=1e-9)
    torch.testing.assert_close(without.forces, last.forces, rtol=0, atol=1e-9)
    assert (without.energy - own.energy).abs().min() > 1e-3
    # So labels at the last level train what the first one stands on, and labels at the first one train both.
    for level, trains_own in ((0, True), (1, False)):
        model.zero_grad()
        labels = batch | {"label_levels": torch.full((4,), level)}
        model(**labels, loss_settings=LossSettings().only(energy_weight=1.0, force_weight=1.0)).loss.backward()
        own_gradient, last_gradient = model.energy_decoder.mlp.down.weight.grad
        assert last_gradient.abs().max() > 0 and bool(own_gradient.abs().max() > 0) == trains_own


@pytest.mark.parametrize("levels", [["c", B3LYP_6_31GD, "b"], [B3LYP_6_31GD, "b", "c"], [B3LYP_6_31GD, "c"]])
def test_differences_of_levels_are_kept_where_levels_are_added(rows, levels):
    sizes = {"level_differences": True, **FORMS["extensive"]}
    model = small_model(dtype=torch.float32, energy_levels_of_theory=LEVELS, **sizes).eval()
    batch = collate([example_from_row(row, LEVELS) for row in rows[:3]])
    inputs = {key: batch[key] for key in (*GRAPH_KEYS, "positions")}
    extended = with_levels_of_theory(model, levels).eval()
    for level in set(levels) & set(LEVELS):
        before, after = (each.predict_energy(**inputs, level_of_theory=level).forces for each in (model, extended))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    only = small_model(dtype=torch.float32, energy_levels_of_theory=["b"], **sizes).eval()
    two = with_levels_of_theory(only, ["b", "c"]).eval()
    before = only.predict_energy(**inputs).forces
    for level in ("b", "c"):
        after = two.predict_energy(**inputs, level_of_theory=level).forces
        torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"B3LYP/6-31G\* as b and a difference, so b, or a level that is new"):
        with_levels_of_theory(model, ["c", B3LYP_6_31GD])


def test_labels_of_levels_that_the_model_has_not_are_told(two_levels, caplog):
    config = config_of(two_levels, model=small_config(Path("unused")).model)
    [examples] = initial_model(config)[1].examples([two_levels], "train")
    assert "the labels of 200 rows are at b, not at B3LYP/6-31G* as the model's" in caplog.text
    assert sum(example.is_labelled for example in examples) == 200
    with pytest.raises(ValueError, match="no training row has an energy at c"):
        initial_model(config_of(two_levels, model=config.model | {"energy_levels_of_theory": [B3LYP_6_31GD, "c"]}))


def test_a_run_at_two_levels_and_one_that_adds_a_level(two_levels, tmp_path):
    run(config_of(two_levels, tmp_path / "two"))
    trained = PCBridgeModel.from_pretrained(tmp_path / "two" / "stage1")
    assert trained.config.energy_levels_of_theory == LEVELS
    run(config_of(two_levels, tmp_path / "one", model=small_config(tmp_path).model))
    more = config_of(two_levels, tmp_path / "more", init_from=str(tmp_path / "one" / "stage1"))
    model, _ = initial_model(more)
    own, other = model.energy_decoder.reference_energies.by_level
    assert (own - other)[6].item() == pytest.approx(SHIFTS[6], abs=0.5)
    with pytest.raises(ValueError, match=r"dispersion of .* cannot be changed"):
        initial_model(replace(more, model=more.model | {"dispersion": "d3bj"}))
    bent, _ = initial_model(replace(more, model=more.model | {"out_of_plane_terms": True}))
    assert bent.config.out_of_plane_terms and bent.energy_decoder.out_of_plane is not None
    # Heads that were apart: E at the last level stays, the first one begins as it, but for constants of the elements.
    apart = config_of(two_levels, init_from=str(tmp_path / "two" / "stage1"))
    joined, data = initial_model(replace(apart, model=apart.model | {"level_differences": True}))
    row = data.examples([two_levels], "train")[0][0]
    on_last, before = (
        energies_and_forces(each, [row.graph], [row.positions], 1, LEVELS[1]) for each in (joined, trained)
    )
    on_own = energies_and_forces(joined, [row.graph], [row.positions], 1)
    assert on_last[0] == pytest.approx(before[0], abs=1e-4) and on_own[1][0] == pytest.approx(on_last[1][0], abs=1e-4)
    shift = sum(SHIFTS[number] for number in row.graph.atomic_numbers.tolist())
    assert on_own[0][0] - on_last[0][0] == pytest.approx(shift, abs=1.0)
    assert run(replace(more, seed=1))["histories"]["stage1"][-1]["loss"] > 0


def test_configurations_from_before_there_were_several_levels():
    config = PCBridgeConfig.from_dict({"model_type": "pcbridge", "energy_level_of_theory": "PBE"})
    assert config.energy_levels_of_theory == ["PBE"] and config.energy_level_of_theory == "PBE"
    assert "energy_level_of_theory" not in config.to_dict()
    with pytest.raises(ValueError, match="one or more different names"):
        PCBridgeConfig(energy_levels_of_theory=["a", "a"])


def test_calculator_and_command_line_name_the_level(rows, processor, tmp_path, capsys):
    from ase import Atoms

    from modeling_pcbridge.ase_calculator import PCBridgeCalculator
    from pcbridge.app.command_line import main

    model = small_model(dtype=torch.float32, energy_levels_of_theory=LEVELS)
    model.energy_decoder.reference_energies.by_level[1, 1:] = -7.0
    atoms = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    energies = []
    for level in LEVELS:
        atoms.calc = PCBridgeCalculator(model, level_of_theory=level)
        assert atoms.calc.level_of_theory == level
        energies.append(atoms.get_potential_energy())
    assert abs(energies[0] - energies[1]) > 10
    # The command writes sound structures only, which an untrained model has none of.
    trained = PCBridgeModel.from_pretrained(released_checkpoint())
    with_levels_of_theory(trained, ["B3LYP/6-31G*", "b"]).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "water.smi").write_text("O water\n")
    command = ["predict", str(tmp_path / "water.smi"), "--model", str(tmp_path / "model"), "--steps", "2"]
    assert main([*command, "--level_of_theory", "b", "--output", str(tmp_path / "water.sdf")]) == 0
    assert "PCBridge of b" in (tmp_path / "water.sdf").read_text()
    with pytest.raises(SystemExit):
        main([*command, "--level_of_theory", "PBE"])
    assert "has not learned energies at 'PBE'" in capsys.readouterr().err
