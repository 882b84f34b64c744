"""Predictions as columns of a data set: those of the command, with nulls and a reason where there is none."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher

from pcbridge.app.command_line import main
from pcbridge.app.dataset_map import BatchPredictor
from pcbridge.app.prediction_settings import PredictionSettings

SETTINGS = PredictionSettings(num_conformers=2)


@pytest.fixture(scope="module")
def predict_batch() -> BatchPredictor:
    return BatchPredictor("drug_like", SETTINGS)


def test_rows_are_what_the_command_writes_first_and_bad_ones_come_first_without_harm(predict_batch, tmp_path):
    dataset = Dataset.from_dict({"smiles": ["nonsense", None, "[Og]", "CCO", "C[CH2]"], "mark": [1, 2, 3, 4, 5]})
    predicted = dataset.map(
        predict_batch, batched=True, batch_size=1, features=predict_batch.features(dataset.features)
    )
    assert predicted["mark"] == dataset["mark"]
    assert [row["energy"] is None for row in predicted] == [True, True, True, False, True]
    reasons = ["cannot parse", "empty", "unsupported element Og", None, "radical"]
    for row, reason in zip(predicted, reasons, strict=True):
        assert row["failure"] is None if reason is None else reason in row["failure"]
    (tmp_path / "in.smi").write_text("CCO\n")
    options = ["--num_conformers", "2", "--model", "drug_like", "--output", str(tmp_path / "out.parquet")]
    assert main(["predict", str(tmp_path / "in.smi"), *options]) == 0
    written = pq.read_table(tmp_path / "out.parquet").to_pylist()[0]
    for name in ("positions", "forces", "energy"):
        np.testing.assert_allclose(predicted[3][name], written[name], atol=1e-5)
    assert predicted[3]["atomic_numbers"] == written["atomic_numbers"] == [6, 6, 8, 1, 1, 1, 1, 1, 1]


def test_columns_that_are_missing_or_would_be_lost_are_refused(predict_batch):
    with pytest.raises(ValueError, match="no column 'smiles'; it has SMILES"):
        predict_batch({"SMILES": ["CCO"]})
    with pytest.raises(ValueError, match="has a column 'energy' already"):
        predict_batch({"smiles": ["CCO"], "energy": [-1.0]})


def test_a_map_is_found_again_only_for_the_same_model_and_settings(predict_batch):
    assert Hasher.hash(predict_batch) == Hasher.hash(BatchPredictor("drug_like", SETTINGS))
    others = [BatchPredictor("drug_like", PredictionSettings(num_conformers=3)), BatchPredictor("qm9", SETTINGS)]
    assert Hasher.hash(predict_batch) not in [Hasher.hash(other) for other in others]
