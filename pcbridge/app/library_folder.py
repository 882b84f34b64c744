"""The output of a library: a folder of shards, each of which is there whole or not at all.

| file | what |
| --- | --- |
| `run.json` | the settings, which a run that goes on must share |
| `part-00000.sdf` (`.parquet`, `.xyz`) | the structures of the first records of the input, then of the next ones |
| `failures-00000.csv` | those of these records that failed; no file where none did |

A shard covers a fixed range of records. It is written under another name, after its failures, and renamed when it is
whole: what has its name is finished, and nothing else is known of a run.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset_scripts.file_lock import lock
from modeling_pcbridge.errors import InputError

_SETTINGS = "run.json"
_HEADER = ("record", "place", "name", "input", "reason")
# Record number, from 1 in the whole input, its place, its name, what the input says, and the reason.
FailureRow = tuple[int, str, str, str, str]


class LibraryFolder:
    """A folder that `open_library` has made ours.

    Args:
        path: it is there.
        file_format: of the shards, which is the end of their names.
    """

    def __init__(self, path: Path, file_format: str):
        self.path, self.file_format = path, file_format

    def has(self, shard: int) -> bool:
        """Whether a shard is finished."""
        return self._shard(shard).exists()

    def num_failures(self, shard: int) -> int:
        """How many records of a finished shard failed."""
        path = self._failures(shard)
        if not path.exists():
            return 0
        with path.open(newline="", encoding="utf-8") as file:
            return sum(1 for _ in csv.reader(file)) - 1

    def write(self, shard: int, contents: bytes, failures: list[FailureRow]) -> None:
        """Finish a shard."""
        if failures:
            text = io.StringIO()
            csv.writer(text).writerows([_HEADER, *failures])
            _write_whole(self._failures(shard), text.getvalue().encode())
        else:  # of a run that was killed before the shard was finished
            self._failures(shard).unlink(missing_ok=True)
        _write_whole(self._shard(shard), contents)

    def _shard(self, shard: int) -> Path:
        return self.path / f"part-{shard:05d}.{self.file_format}"

    def _failures(self, shard: int) -> Path:
        return self.path / f"failures-{shard:05d}.csv"


@contextmanager
def open_library(path: Path, file_format: str, settings: dict) -> Iterator[LibraryFolder]:
    """The folder, made if it is not there, for this process alone.

    Args:
        settings: all that the shards depend on; what JSON has.

    Raises:
        InputError: the folder holds something else or a run with other settings, or another process is writing to it.
        OSError: it cannot be made or written to.
    """
    path.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        lock(descriptor, path)
        _check_or_write_settings(path, settings)
        yield LibraryFolder(path, file_format)
    finally:
        os.close(descriptor)


def _check_or_write_settings(path: Path, settings: dict) -> None:
    file = path / _SETTINGS
    if not file.exists():
        if others := sorted(other.name for other in path.iterdir() if not other.name.startswith(_SETTINGS)):
            raise InputError(f"{path} holds other files, {others[0]} for one; give a new folder")
        _write_whole(file, (json.dumps(settings, indent=2) + "\n").encode())
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); give a new folder") from error
    changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    if changed:
        changes = ", ".join(f"{key} {before.get(key)}, not {settings.get(key)}" for key in changed)
        raise InputError(f"{path} was begun with {changes}; give a new folder, or remove it")


def _write_whole(path: Path, contents: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
