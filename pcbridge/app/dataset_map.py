"""Predictions as new columns of a data set that has a column of SMILES, by `datasets.Dataset.map`.

predict_batch = BatchPredictor("drug_like")
dataset.map(predict_batch, batched=True, batch_size=64, features=predict_batch.features(dataset.features))
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from datasets import Features, Value
from rdkit import rdBase

from modeling_pcbridge.beyond_training import beyond_as_text
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.rdkit_molecules import atomic_numbers_of, mol_from_smiles
from pcbridge.model_identity import sha256_of

from .default_model import find_model
from .molecule_files import PARQUET_FEATURES, Prediction, RawRecord
from .predict_library import pipeline_of_process
from .predict_records import load_pipeline, predict
from .prediction_settings import PredictionSettings

_NEW_COLUMNS = (
    *("atomic_numbers", "positions", "energy", "forces"),
    *("energy_level_of_theory", "origin", "beyond_training", "failure"),
)
_BATCH_SIZE = 64  # structures at once


class BatchPredictor:
    """What `pcbridge predict` writes first of each molecule, in one row: of an ensemble the lowest conformer.

    Rows that fail have nulls and the reason in `failure`, and do not end the map. The other new columns are those of
    the Parquet files of the command: `atomic_numbers` (N,), hydrogens included, `positions` (N, 3) in angstrom,
    `energy` in eV, `forces` (N, 3) in eV/angstrom, `energy_level_of_theory`, `origin` and `beyond_training`.

    Args:
        model: a released model, a checkpoint folder or a hub name; None: the default of the command.
        settings: what is predicted.
        smiles_column: of the data set.
        device: None is a GPU where there is one.

    Raises:
        OSError, ValueError: there is no sound checkpoint.
    """

    def __init__(
        self,
        model: str | None = None,
        settings: PredictionSettings | None = None,
        smiles_column: str = "smiles",
        device: str | None = None,
    ):
        self.model, self.device, self.smiles_column = model, device, smiles_column
        self.settings = settings or PredictionSettings()
        # All that tells this function from another, by which `map` finds what it did before.
        pipeline = load_pipeline(find_model(model), device, self.settings.dispersion)
        self.model_sha256 = sha256_of(pipeline.model)

    def features(self, before: Features) -> Features:
        """Of the data set with the new columns; without them a first batch that fails as a whole has no types."""
        types = {**PARQUET_FEATURES, "failure": Value("string")}
        return Features({**before, **{name: types[name] for name in _NEW_COLUMNS}})

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list]:
        """The new columns of some rows.

        Raises:
            InputError: the rows have no column of that name, or one of the new ones already.
        """
        if self.smiles_column not in batch:
            raise InputError(f"the data set has no column {self.smiles_column!r}; it has {', '.join(batch)}")
        if there := [name for name in _NEW_COLUMNS if name in batch]:
            raise InputError(f"the data set has a column {there[0]!r} already; rename it")
        raw = [
            RawRecord(str(row), "", str(smiles), partial(mol_from_smiles, smiles))
            for row, smiles in enumerate(batch[self.smiles_column])
        ]
        pipeline = pipeline_of_process(self.model, self.device, self.settings.dispersion, self.model_sha256)
        rows: list[dict[str, Any]] = [dict.fromkeys(_NEW_COLUMNS) for _ in raw]
        with rdBase.BlockLogs():
            records = [record.parsed() for record in raw]
            for predictions, failures in predict(pipeline, records, self.settings, _BATCH_SIZE):
                for prediction in predictions:
                    if prediction.sample == 0:
                        rows[int(prediction.molecule.place)] |= _columns(prediction)
                for failure in failures:
                    rows[int(failure.place)]["failure"] = failure.error
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _columns(prediction: Prediction) -> dict[str, Any]:
    return {
        "atomic_numbers": atomic_numbers_of(prediction.molecule.mol),
        "positions": prediction.positions,
        "energy": prediction.energy,
        "forces": prediction.forces,
        "energy_level_of_theory": prediction.level_of_theory,
        "origin": prediction.origin,
        "beyond_training": beyond_as_text(prediction.beyond_training),
    }
