"""Lines of `label_generation` as one small Parquet file, and back, so that a repository can hold and continue them.

    pcbridge data pack b3lyp.jsonl raw_labels/fragments_b3lyp.parquet
    pcbridge data pack --unpack raw_labels/fragments_b3lyp.parquet b3lyp.jsonl

Nothing is lost: positions and forces have six decimals in the lines and are whole numbers of millionths in the file, a
fifth of the size. Packing into a file that is there adds the lines that it does not have.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.label_generation import read_lines
from dataset_scripts.options import underscored
from dataset_scripts.tables import parquet_options
from modeling_pcbridge.errors import InputError

_MILLIONTHS = ("positions", "forces")
_VECTORS = pa.list_(pa.int32())  # 3N numbers
_SCHEMA = pa.schema(
    {
        "molecule_id": pa.string(),
        "geometry": pa.string(),
        "level": pa.string(),
        "input": pa.string(),
        "error": pa.string(),
        "smiles": pa.string(),
        "mapped_smiles": pa.string(),
        "atomic_numbers": pa.list_(pa.uint8()),
        "total_charge": pa.int8(),
        "positions": _VECTORS,
        "equilibrium_level_of_theory": pa.string(),
        "energy": pa.float64(),
        "forces": _VECTORS,
        "energy_level_of_theory": pa.string(),
    }
)
_TASK = ("molecule_id", "geometry", "level", "input")


def pack_labels(inputs: Iterable[Path], output: Path) -> int:
    """Add the finished lines of JSON-lines files to a packed file, in their order; returns how many are new.

    Raises:
        ValueError: no such input, a line is not one of `label_generation`, or there is another label of the same task.
    """
    lines = read_packed_labels(output) if output.exists() else []
    known = {tuple(line[key] for key in _TASK): line for line in lines}
    num_before = len(lines)
    for path in inputs:
        if not path.exists():
            raise InputError(f"there is no {path}")
        for number, line in enumerate(read_lines(path), start=1):
            if missing := [key for key in _TASK if key not in line]:
                raise InputError(f"{path}, line {number}: no {missing[0]}, so it is not of label_generation")
            task = tuple(line[key] for key in _TASK)
            before = known.get(task)
            if before is None or ("error" in before and "error" not in line):  # retried
                known[task] = line
            elif before != line and "error" not in line:
                raise InputError(f"{path}, line {number}: {output} has another label of {line['molecule_id']!r}")
    table = pa.Table.from_pylist([_packed(line) for line in known.values()], schema=_SCHEMA)
    new = output.with_name(output.name + ".new")
    pq.write_table(table, new, compression_level=19, row_group_size=10_000, **parquet_options(_SCHEMA))
    new.replace(output)
    return len(known) - num_before


def read_packed_labels(path: Path) -> list[dict]:
    """The lines of a packed file, as `label_generation.read_lines` gives those of JSON lines.

    Raises:
        BadRowError: the file is damaged or none of `pack_labels`.
    """
    try:
        table = pq.read_table(path, schema=_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise BadRowError(str(path), "no file of packed labels", error) from error
    return [_unpacked(row) for row in table.to_pylist()]


def unpack_labels(path: Path, output: Path) -> int:
    """Write the lines of a packed file as JSON lines, which `label_generation` continues; returns how many.

    Raises:
        ValueError: there is an output.
    """
    if output.exists():
        raise InputError(f"{output} exists; labels are added to a packed file, not to lines")
    lines = read_packed_labels(path)
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def _packed(line: dict) -> dict:
    def millionths(vectors: list[list[float]] | None) -> list[int] | None:
        return None if vectors is None else [round(x * 1e6) for vector in vectors for x in vector]

    return line | {key: millionths(line.get(key)) for key in _MILLIONTHS}


def _unpacked(row: dict) -> dict:
    if row["error"] is not None:
        return {key: row[key] for key in (*_TASK, "error")}
    for key in _MILLIONTHS:
        if row[key] is not None:
            values = [value / 1e6 for value in row[key]]
            row[key] = [values[i : i + 3] for i in range(0, len(values), 3)]
    del row["error"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, nargs="+", help="JSON lines to pack, or one packed file")
    parser.add_argument("output", type=Path)
    parser.add_argument("--unpack", action="store_true", help="write the lines of a packed file")
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    if arguments.unpack and len(arguments.inputs) > 1:
        parser.error("--unpack takes one packed file")
    with errors_as_sentences():
        if arguments.unpack:
            print(f"{unpack_labels(arguments.inputs[0], arguments.output):,} lines")
        else:
            print(f"{pack_labels(arguments.inputs, arguments.output):,} new lines")


if __name__ == "__main__":
    main()
