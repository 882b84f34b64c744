"""Turn the original files of a data source into Parquet shards in the project's schema, split by molecule.

    python -m dataset_scripts.prepare qm9pack --output data/qm9
    python -m dataset_scripts.prepare pubchemqc_b3lyp --input Compound_*.tar.xz --output data/pubchemqc --on_error skip
    python -m dataset_scripts.prepare own --input mine.xyz --output data/mine --energy_level_of_theory "B3LYP/6-31G*"

Records are taken in blocks; each block gives one shard a split, `OUTPUT/{split}/{input}-{block}.parquet`. A killed run
goes on after its last whole block; several processes may work on different inputs of one output. What was left out
is counted by reason in `OUTPUT/summary.json`; `OUTPUT/README.md` is the card by which `datasets.load_dataset(OUTPUT)`
and the Hugging Face Hub read the rows. Of rows of one input with the same molecule_id and structure the first
is kept.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rdkit import Chem, RDLogger
from tqdm.auto import tqdm

from dataset_scripts.bad_rows import rows_of_records
from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.dataset_card import write_card
from dataset_scripts.options import underscored
from dataset_scripts.own_data import own_source
from dataset_scripts.raw_sources import SOURCES, RawSource
from dataset_scripts.splits import SPLITS, constitution_of, split_of
from dataset_scripts.tables import write_rows
from modeling_pcbridge.errors import InputError

# Enough rows for compression and few enough to be held and shuffled in memory when streaming (10 to 40 MB).
RECORDS_PER_SHARD = 10_000
_METADATA_KEY = b"pcbridge"
# Files of up to their product are compared whole on a second run, of larger ones so many pieces.
_PIECES_COMPARED, _PIECE_BYTES = 64, 2**20


def prepare(
    source: RawSource,
    inputs: list[Path],
    output: Path,
    split: str = "constitution",
    on_error: str = "raise",
    records_per_shard: int = RECORDS_PER_SHARD,
) -> dict:
    """Write the shards that are not there yet.

    Args:
        source: a value of `dataset_scripts.raw_sources.SOURCES`, or `dataset_scripts.own_data.own_source(...)`.
        inputs: original files with different names.
        output: folder of the shards.
        split: "constitution" (`splits.split_of`), "published" (the source's usual split), or "train" (all of it).
        on_error: what to do with damaged records.
        records_per_shard: block length.

    Returns:
        The summary, also in output/summary.json: rows by split, skipped records by reason.

    Raises:
        BadRowError: a damaged record, with on_error="raise". Whole blocks before it are kept.
        InputError: two inputs share a name, or the shards in `output` were made with other settings; after all else is
            done, that an input has no record.
    """
    if len({path.name for path in inputs}) < len(inputs):
        raise InputError("inputs share a file name, so their shards would too")
    split_of_row = _splitter(source, inputs, split)
    for split_name in SPLITS:
        (output / split_name).mkdir(parents=True, exist_ok=True)
    empty = []
    for path in inputs:
        settings = {
            "source": source.name,
            "input": path.name,
            "input_bytes": path.stat().st_size,
            "input_sha256": _fingerprint(path),
            "split": split,
            "on_error": on_error,
            "records_per_shard": records_per_shard,
        }
        if not _prepare_input(source, path, output, split_of_row, settings):
            empty.append(str(path))
    summary = _write_summary(output)
    if any(summary["rows"].values()):
        write_card(output, {"default": {split: f"{split}/*.parquet" for split in SPLITS}}, license=source.license)
    if empty:
        raise InputError(f"there is no record in {', '.join(empty)}")
    return summary


def _splitter(source: RawSource, inputs: list[Path], split: str) -> Callable[[dict], str]:
    if split == "train":
        return lambda row: "train"
    if split == "constitution":
        return lambda row: split_of(constitution_of(Chem.MolFromSmiles(row["smiles"])))
    if split == "published" and source.published_split is not None:
        of_molecule = source.published_split(inputs)
        return lambda row: of_molecule(row["molecule_id"])
    raise InputError(f"the source has no split {split!r}")


def _prepare_input(
    source: RawSource, path: Path, output: Path, split_of_row: Callable[[dict], str], settings: dict
) -> int:
    """Write the blocks of an input that are not there; returns the number of its records."""
    records = source.read(path)
    seen: set[bytes] = set()
    total = 0
    with tqdm(desc=path.name, unit=" records") as progress:
        for block in count():
            shards = {split: output / split / f"{path.name}-{block:05d}.parquet" for split in SPLITS}
            block_records = islice(records, settings["records_per_shard"])
            if shards["train"].exists():
                num_records = _pass_over(block_records, shards, settings, seen)
            else:
                num_records = _write_block(source, block_records, shards, split_of_row, settings, seen)
            progress.update(num_records)
            total += num_records
            if num_records < settings["records_per_shard"]:
                break
    return total


def _fingerprint(path: Path) -> str:
    """SHA-256 of the file, or of pieces evenly over a large one, which may be hundreds of gigabytes."""
    stride = max(_PIECE_BYTES, path.stat().st_size // _PIECES_COMPARED)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, path.stat().st_size, stride):
            file.seek(start)
            digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


_KEY_COLUMNS = ["molecule_id", "positions", "energy_level_of_theory"]


def _key(row: dict) -> bytes:
    """What tells rows apart: a molecule may come in several structures, and these with labels at several levels."""
    positions = np.asarray(row["positions"], dtype=np.float32)
    name = f"{row['molecule_id']}\0{row['energy_level_of_theory']}\0"
    return hashlib.blake2b(name.encode() + positions.tobytes(), digest_size=16).digest()


def _pass_over(records: Iterator, shards: dict[str, Path], settings: dict, seen: set[bytes]) -> int:
    """Read the records of a finished block without parsing them; returns their number."""
    metadata = _read_metadata(shards["train"])
    before = metadata["settings"]
    if changed := [key for key in settings if before.get(key) != settings[key]]:
        changes = ", ".join(f"{key} {before.get(key)}, not {settings[key]}" for key in changed)
        raise InputError(f"{shards['train']} was made with {changes}; give another output folder, or remove it")
    for shard in shards.values():
        seen.update(map(_key, pq.read_table(shard, columns=_KEY_COLUMNS).to_pylist()))
    deque(rows_of_records(records, lambda record: record, settings["on_error"], Counter()), maxlen=0)
    return metadata["records"]


def _write_block(
    source: RawSource,
    records: Iterator,
    shards: dict[str, Path],
    split_of_row: Callable[[dict], str],
    settings: dict,
    seen: set[bytes],
) -> int:
    """Parse a block and write its shards; returns the number of records."""
    skipped: Counter[str] = Counter()
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for row in rows_of_records(records, source.parse, settings["on_error"], skipped):
        if (key := _key(row)) in seen:
            skipped["duplicated molecule_id, structure and level"] += 1
            continue
        seen.add(key)
        rows[split_of_row(row)].append(row)
    num_records = sum(map(len, rows.values())) + skipped.total()
    if not num_records:
        return 0  # no shard, so that an empty file can be filled
    metadata = {"settings": settings, "records": num_records, "skipped": dict(skipped)}
    # The train shard carries the counts and comes last: a block is finished when it is there.
    for split in sorted(SPLITS, key=lambda split: split == "train"):
        unfinished = shards[split].with_suffix(f".tmp{os.getpid()}")
        write_rows(unfinished, rows[split], {_METADATA_KEY: json.dumps(metadata)})
        unfinished.replace(shards[split])
    return num_records


def _read_metadata(shard: Path) -> dict:
    return json.loads(pq.read_schema(shard).metadata[_METADATA_KEY])


def _write_summary(output: Path) -> dict:
    """Counts over all shards that are there."""
    rows = {
        split: sum(pq.read_metadata(shard).num_rows for shard in sorted((output / split).glob("*.parquet")))
        for split in SPLITS
    }
    skipped: Counter[str] = Counter()
    for shard in sorted((output / "train").glob("*.parquet")):
        skipped.update(_read_metadata(shard)["skipped"])
    summary = {"rows": rows, "skipped": dict(sorted(skipped.items()))}
    unfinished = output / f"summary.tmp{os.getpid()}"
    unfinished.write_text(json.dumps(summary, indent=2) + "\n")
    unfinished.replace(output / "summary.json")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=[*SOURCES, "own"])
    parser.add_argument("--input", type=Path, nargs="+", help="original files; not for sources that are packages")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", choices=("constitution", "published", "train"), default="constitution")
    parser.add_argument("--on_error", choices=("raise", "skip"), default="raise", help="for damaged records")
    parser.add_argument("--equilibrium_level_of_theory", help="of own data: the method whose minima the structures are")
    parser.add_argument("--energy_level_of_theory", help="of own data: the method of energies and forces")
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    if arguments.source == "own":
        source = own_source(arguments.equilibrium_level_of_theory, arguments.energy_level_of_theory)
    else:
        source = SOURCES[arguments.source]
    inputs = arguments.input
    if inputs is None:
        if source.default_inputs is None:
            parser.error(f"{arguments.source} needs --input")
        inputs = source.default_inputs()
    for path in inputs:
        if not path.exists():
            parser.error(f"there is no {path}")
    RDLogger.DisableLog("rdApp.*")
    with errors_as_sentences():
        summary = prepare(source, inputs, arguments.output, arguments.split, arguments.on_error)
    print(json.dumps(summary, indent=2))
    if not any(summary["rows"].values()):
        parser.exit(1, "no record of the input gave a row\n")
    if summary["rows"]["train"] == 0:
        print("no row to train on: with few molecules, --split train leaves none to chance", file=sys.stderr)


if __name__ == "__main__":
    main()
