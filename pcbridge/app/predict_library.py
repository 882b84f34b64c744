"""Predicting a library of any size into a folder, by all cores or a cluster, in constant memory.

The input is read as a stream, twice: to count and fingerprint it, and to cut it into shards of so many records each. A
shard is a task, which parses its records, predicts them in batches of similar size and returns the finished file. Only
the shards that keep the workers busy are in memory, and the main process alone writes. A run that was killed goes on
when it is started again: shards that are there are passed over unparsed.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rdkit import RDLogger
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from dataset_scripts.parallel import WorkerDiedError, results_of
from modeling_pcbridge import PCBridgePipeline
from modeling_pcbridge.errors import InputError
from pcbridge.model_identity import sha256_of

from .default_model import find_model
from .library_folder import LibraryFolder, open_library
from .molecule_files import Failure, Molecule, Record, open_writer, raw_records
from .predict_records import load_pipeline, predict
from .prediction_settings import PredictionSettings


@dataclass(frozen=True)
class LibraryTask:
    """What all shards of a run share, as workers need it.

    Attributes:
        model: as its user named it.
        model_sha256: of its weights and configuration, the same for all workers.
        device: None is a GPU where there is one.
        settings: what is predicted; the seed is of the run, from which every shard makes one of its own.
        file_format: of the shards: "sdf", "parquet" or "xyz".
        batch_size: structures at once.
    """

    model: str | None
    model_sha256: str
    device: str | None
    settings: PredictionSettings
    file_format: str
    batch_size: int


@dataclass(frozen=True)
class LibraryInput:
    """A file of molecules and how it is read, see `raw_records`."""

    path: Path
    file_format: str
    smiles_column: str
    timeout: float

    def records(self) -> Iterator[Record]:
        """From the beginning, unparsed."""
        return raw_records(str(self.path), self.file_format, self.smiles_column, self.timeout)

    def identity(self, num_records: int) -> dict:
        """What a run that goes on must find again."""
        with self.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "input_sha256": sha256,
            "num_records": num_records,
            "input_format": self.file_format,
            "smiles_column": self.smiles_column,
        }


def predict_library(
    library: LibraryInput,
    output: Path,
    task: LibraryTask,
    shard_size: int,
    workers: int,
    scheduler: str | None = None,
) -> tuple[int, int]:
    """Predict all records that are not in the folder yet; their structures and their failures go there.

    Args:
        library: what is predicted for.
        output: the folder, see `library_folder`.
        task: what is done with a shard.
        shard_size: records of a shard.
        workers, scheduler: as of `dataset_scripts.parallel.results_of`.

    Returns:
        How many molecules there are, and how many of them failed or lack structures.

    Raises:
        InputError: no record, or a folder of another run.
        WorkerDiedError: there is not enough memory for a shard; the others are done.
    """
    num_records = sum(1 for _ in library.records())
    if not num_records:
        raise InputError(f"there is no molecule in {library.path}")
    of_task = {"model_sha256": task.model_sha256, "output_format": task.file_format, "shard_size": shard_size}
    identity = library.identity(num_records) | of_task | asdict(task.settings)
    with (
        open_library(output, task.file_format, identity) as folder,
        tqdm(total=num_records, unit="molecule", file=sys.stderr, smoothing=0.05) as bar,
    ):
        num_failed = _predict_missing(folder, library.records(), task, shard_size, workers, scheduler, bar)
    return num_records, num_failed


def _predict_missing(
    folder: LibraryFolder,
    records: Iterator[Record],
    task: LibraryTask,
    shard_size: int,
    workers: int,
    scheduler: str | None,
    bar: tqdm,
) -> int:
    """How many records failed, now and before."""
    num_failed = 0

    def missing_shards() -> Iterator[tuple[int, list[Record], LibraryTask]]:
        nonlocal num_failed
        for shard in count():
            some = list(islice(records, shard_size))
            if not some:
                return
            if folder.has(shard):
                num_failed += folder.num_failures(shard)
                bar.initial += len(some)  # the rate is of this run
                bar.update(len(some))
            else:
                yield shard, some, task

    def write(shard: int, some: list[Record], result: tuple[bytes, list[Failure]]) -> None:
        nonlocal num_failed
        contents, failures = result
        number = {record.place: k for k, record in enumerate(some, start=shard * shard_size + 1)}
        rows = [(number[f.place], f.place, f.name, f.text, f.error) for f in failures]
        folder.write(shard, contents, rows)
        num_failed += len(failures)
        bar.set_postfix(failed=num_failed, refresh=False)
        bar.update(len(some))

    died: list[tuple[int, list[Record]]] = []
    for (shard, some, _), result in results_of(predict_shard, missing_shards(), workers, scheduler):
        if isinstance(result, WorkerDiedError):
            died.append((shard, some))
        else:
            write(shard, some, result)
    for shard, some in died:
        write(shard, some, _without_fatal_records(shard, some, task, workers, scheduler))
    return num_failed


def _without_fatal_records(
    shard: int, records: list[Record], task: LibraryTask, workers: int, scheduler: str | None
) -> tuple[bytes, list[Failure]]:
    """The result of a shard that its workers died of: the records that do it are failures.

    Raises:
        WorkerDiedError: each is harmless by itself, so that there is not enough memory for all.
    """

    def tasks_of_one(some: list[Record]) -> Iterator[tuple[Record, Any]]:
        alone = ((shard, [record], task) for record in some)
        return ((of[0], result) for (_, of, _), result in results_of(predict_shard, alone, workers, scheduler))

    suspects = [record for record, result in tasks_of_one(records) if isinstance(result, WorkerDiedError)]
    # Some only waited at a worker that died of another one.
    fatal = {
        record.place: str(result)
        for suspect in suspects
        for record, result in tasks_of_one([suspect])
        if isinstance(result, WorkerDiedError)
    }
    harmless = [record.failed(fatal[record.place]) if record.place in fatal else record for record in records]
    [(_, result)] = results_of(predict_shard, [(shard, harmless, task)], workers, scheduler)
    if isinstance(result, WorkerDiedError):
        raise result
    return result


def predict_shard(shard: int, records: list[Record], task: LibraryTask) -> tuple[bytes, list[Failure]]:
    """The file of a shard and what failed of it, both in the order of `records`.

    Raises:
        InputError: the model is not that of the run.
    """
    RDLogger.DisableLog("rdApp.*")
    disable_progress_bar()
    pipeline = pipeline_of_process(task.model, task.device, task.settings.dispersion, task.model_sha256)
    if pipeline.device.type == "cpu":
        torch.set_num_threads(1)  # every core has a process of its own
    settings = replace(task.settings, seed=_seed_of_shard(task.settings.seed, shard))
    place = {record.place: k for k, record in enumerate(records)}
    by_size = sorted((record.parsed() for record in records), key=_size)
    predictions, failures = [], []
    for done, failed in predict(pipeline, by_size, settings, task.batch_size):
        predictions += done
        failures += failed
    predictions.sort(key=lambda prediction: place[prediction.molecule.place])
    failures.sort(key=lambda failure: place[failure.place])
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "shard"
        with open_writer(str(path), task.file_format) as write:
            if predictions:
                write(predictions)
        return path.read_bytes(), failures


@lru_cache(maxsize=1)
def pipeline_of_process(model: str | None, device: str | None, dispersion: bool, model_sha256: str) -> PCBridgePipeline:
    """Loaded once a process; raises InputError where the model is another one, on a remote worker for instance."""
    pipeline = load_pipeline(find_model(model), device, dispersion)
    if sha256_of(pipeline.model) != model_sha256:
        raise InputError(f"a worker has another model {model} than the run")
    return pipeline


def _size(record: Record) -> int:
    """Atoms; molecules of similar sizes share a batch with little padding."""
    return record.mol.GetNumAtoms() if isinstance(record, Molecule) else 0


def _seed_of_shard(seed: int, shard: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {shard}".encode()).digest()[:7], "big")
