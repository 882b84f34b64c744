"""CSV, Parquet and SMILES files record by record, in constant memory."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.text_files import open_text

# A cell may hold the positions of a large molecule.
csv.field_size_limit(2**24)


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """The records of a CSV file with a header, as texts."""
    with open_text(path) as file:
        yield from read_csv_lines(file, str(path))


def read_csv_lines(lines: Iterable[str], name: str) -> Iterator[dict[str, str]]:
    """The records of the lines of a CSV file with a header, as texts; `name` is the file's, for errors."""
    try:
        yield from csv.DictReader(lines)
    except csv.Error as error:
        raise BadRowError(name, "damaged CSV file", error) from error


def read_smiles(lines: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """Line number, SMILES and name ("" without one) of each line of a SMILES file; `#` starts a comment line."""
    for number, line in enumerate(lines, start=1):
        smiles, name, *_ = [*line.strip().split(maxsplit=1), "", ""]
        if match := re.match(r"(\|[^|]*\|)\s*(.*)", name):  # a CXSMILES extension
            smiles, name = f"{smiles} {match[1]}", match[2]
        if smiles and not smiles.startswith("#"):
            yield number, smiles, name


def read_parquet(path: Path) -> Iterator[dict]:
    """The records of a Parquet file.

    Raises:
        BadRowError: the file is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise BadRowError(str(path), "damaged Parquet file", error) from error
