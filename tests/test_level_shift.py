"""Training on labels of several levels of theory: energies shifted to the model's level, forces as they are."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_training import small_config

from dataset_scripts.bundled import load_bundled
from dataset_scripts.schema import B3LYP_6_31G2DFP, B3LYP_6_31GD, FEATURES
from modeling_pcbridge import PCBridgeConfig, PCBridgeModel
from pcbridge.training.config import SourceConfig, StageConfig, TrainingConfig
from pcbridge.training.data import TrainingData
from pcbridge.training.level_shift import level_shift
from pcbridge.training.run import initial_model, run
from train_accelerate import parse

PER_ELEMENT = {"b": {1: 0.5, 6: -3.0, 7: 7.0, 8: 11.0, 9: 2.5}, "c": {1: -9.0, 6: 1.0, 7: 0.25, 8: -4.0, 9: 30.0}}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """PM6 minima with energies and forces at B3LYP/6-31G*, of every bundled element."""
    labelled = load_bundled("pm6", "train").filter(lambda row: row["energy"] is not None)
    return list(labelled.select(range(0, len(labelled), 8)))


def at(level: str, row: dict) -> dict:
    """The row as a level that differs by constants of the elements would have it."""
    energy = row["energy"] + sum(PER_ELEMENT[level][z] for z in row["atomic_numbers"])
    return row | {"energy": energy, "energy_level_of_theory": level}


def write(folder: Path, **splits: list[dict]) -> str:
    for split, rows in splits.items():
        (folder / split).mkdir(parents=True)
        table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
        pq.write_table(table, folder / split / "part-0.parquet")
    return str(folder)


def config_of(*sources: SourceConfig, **changes) -> TrainingConfig:
    return small_config(Path("unused"), stage1=StageConfig(2, 1e-3, 1, list(sources)), **changes)


def model_of(level: str) -> PCBridgeModel:
    return PCBridgeModel(PCBridgeConfig.from_preset("mini", energy_level_of_theory=level))


def test_levels_that_differ_by_constants_of_the_elements_agree_exactly(rows, tmp_path):
    """Two other levels in one folder; validation rows, which no reference was fitted to, agree as well."""
    own = write(tmp_path / "own", train=rows[:-10])
    changed = [at(level, row) for row in rows[:-10] for level in "bc"]
    other = write(tmp_path / "other", train=changed, validation=[at("c", row) for row in rows[-10:]])
    source = SourceConfig(other, only_labelled=True, other_levels="shift")
    config = config_of(SourceConfig(own), source)
    model = model_of(B3LYP_6_31GD)
    [train] = TrainingData(config, model).examples([source], "train")
    [validation] = TrainingData(config, model).examples([source], "validation")
    train = pickle.loads(pickle.dumps(train))  # as a worker process gets it
    for examples, originals in ((train, [row for row in rows[:-10] for _ in "bc"]), (validation, rows[-10:])):
        assert len(examples) == len(originals)
        for example, row in zip(examples, originals, strict=True):
            assert example.energy == pytest.approx(row["energy"], abs=1e-7)
            np.testing.assert_array_equal(example.forces, np.asarray(row["forces"], dtype=np.float32))


def test_minima_and_displaced_structures_of_a_level_are_shifted_alike():
    """The strain of a displaced structure is kept: nothing is fitted to displaced structures."""
    names = ("pm6", "pm6_displaced", "dft_equilibrium")
    # Naming one of the bundled configurations is enough.
    shift = level_shift(["pm6_displaced"], B3LYP_6_31G2DFP, {})
    minima, displaced, dft = ({row["molecule_id"]: row for row in load_bundled(name, "train")} for name in names)
    errors, before = [], []
    for name in displaced.keys() & minima.keys():
        shifted, strained = shift(minima[name])["energy"], shift(displaced[name])["energy"]
        assert strained - shifted == pytest.approx(displaced[name]["energy"] - minima[name]["energy"], abs=1e-7)
        errors.append(shifted - dft[name]["energy"])
        before.append(minima[name]["energy"] - dft[name]["energy"])
    assert len(errors) > 700
    # Fitted to the difference of the same molecules at both levels. Fitted to each level on its own, where only the
    # smaller molecules have the first, the mean error is .1 eV.
    assert abs(np.mean(errors)) < 0.01
    assert np.mean(np.abs(errors)) < 0.15 * np.mean(np.abs(before))


def test_without_rows_at_the_models_level_its_own_reference_energies_count(rows, tmp_path):
    source = SourceConfig(write(tmp_path / "b", train=[at("b", row) for row in rows]), other_levels="shift")
    config = config_of(source)
    model = model_of("a")
    with pytest.raises(ValueError, match="no training row has an energy"):
        initial_model(config_of(source, model={"energy_level_of_theory": "a"}))
    table = model.energy_decoder.reference_energies.energies
    table[[1, 6, 7, 8]] = torch.tensor([-10.0, -1000.0, -1500.0, -2000.0], dtype=table.dtype)
    [examples] = TrainingData(config, model).examples([source], "train")
    residuals = []
    for example, row in zip(examples, rows, strict=True):
        if 9 in row["atomic_numbers"]:  # fluorine has no reference
            assert example.energy is None and example.forces is not None
        else:
            residuals.append(example.energy - table[torch.tensor(row["atomic_numbers"])].sum().item())
    assert 0 < len(residuals) < len(rows)
    # What is left of least squares, over all rows but the few with fluorine: nothing that the elements explain.
    assert abs(np.mean(residuals)) < 0.05


def test_a_level_without_minima_keeps_only_forces(rows, tmp_path, caplog):
    """Fitted to displaced structures the shift would take their strain off."""
    displaced = [at("b", row) | {"equilibrium_level_of_theory": None} for row in rows[:5]]
    source = SourceConfig(write(tmp_path / "displaced", train=displaced), other_levels="shift")
    config = config_of(source, SourceConfig("dft_equilibrium"))
    [examples] = TrainingData(config, model_of(B3LYP_6_31G2DFP)).examples([source], "train")
    assert all(example.energy is None and example.forces is not None for example in examples)
    assert "no energy of a minimum at b" in caplog.text


def test_a_run_with_shifted_labels(rows, tmp_path):
    folder = write(tmp_path / "b", train=[at("b", row) for row in rows[:40]])
    own = write(tmp_path / "own", train=rows[:40])
    sources = parse([f"--stage1.sources=[{{name: {folder}, other_levels: shift}}, {{name: {own}}}]"]).stage1.sources
    config = small_config(tmp_path / "out", stage1=StageConfig(2, 1e-3, 1, sources))
    [record] = run(config)["histories"]["stage1"]
    assert record["energy_loss"] < 100  # dropped labels would give none, energies left at level b some thousands
