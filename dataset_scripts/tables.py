"""CSV, Parquet and SMILES files record by record, in constant memory, and rows to Parquet."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.schema import FEATURES
from dataset_scripts.text_files import open_text

# Rows of half a megabyte: few enough that the hub's viewer and a shuffled read open one group for one page.
_ROWS_PER_GROUP = 1000
# A cell may hold the positions of a large molecule.
csv.field_size_limit(2**24)


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """The records of a CSV file with a header, as texts.

    Raises:
        BadRowError: the file is damaged; a quote that is never closed would take all lines after it for one cell.
    """
    num_lines = 1  # with the header
    try:
        with open_text(path) as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                num_lines = reader.line_num
                yield row
    except csv.Error as error:
        raise BadRowError(f"{path}, from line {num_lines + 1} on", "damaged CSV file", error) from error


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


def parquet_options(schema: pa.Schema) -> dict:
    """Options of `pyarrow.parquet` by which lists of numbers take two thirds of the room, and less time to read.

    The first bytes of all numbers of a list of vectors stand together, then the second ones, and so on.
    """
    leaves = [_leaf(field.name, field.type) for field in schema]
    split = [path for path, kind in leaves if ".list." in path and pa.types.is_primitive(kind) and kind.bit_width == 32]
    others = [path for path, _ in leaves if path not in split]
    return {"compression": "zstd", "use_byte_stream_split": split, "use_dictionary": others}


def _leaf(path: str, kind: pa.DataType) -> tuple[str, pa.DataType]:
    """The column of a Parquet file that a column of numbers or lists of them is, and the type of its values."""
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path, kind


def write_rows(path: Path, rows: list[dict], metadata: dict[bytes, str] | None = None) -> pa.Table:
    """Write rows of `schema.FEATURES` as one Parquet file, with `metadata` beside the features; returns the table."""
    table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
    table = table.replace_schema_metadata({**table.schema.metadata, **(metadata or {})})
    with pq.ParquetWriter(path, table.schema, **parquet_options(table.schema)) as writer:
        if rows:  # `datasets` reads a file without row groups, but not an empty row group
            writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
    return table
