"""All data sources by name, and streaming their rows straight from the original files."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import IterableDataset

from dataset_scripts import pcqm4mv2, pubchemqc, qm9, spice
from dataset_scripts.bad_rows import OnError, rows_of_records
from dataset_scripts.schema import FEATURES
from dataset_scripts.tables import read_csv, read_parquet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawSource:
    """How the files of a data set become rows; docs/data.md describes each.

    Attributes:
        name: in `SOURCES` and in messages.
        read: from a file to its records, in order. Cheap, so that finished records can be passed over.
        parse: from a record to its row, in the project's units; raises `RowError`.
        default_inputs: the files, where they come with a package.
        published_split: from the input files to a function of the molecule id, where the source has a usual split.
        license: the hub's identifier, where the source states one.
    """

    name: str
    read: Callable[[Path], Iterator[Any]]
    parse: Callable[[Any], dict]
    default_inputs: Callable[[], list[Path]] | None = None
    published_split: Callable[[list[Path]], Callable[[str], str]] | None = None
    license: str | None = None


_CC_BY, _CC0 = "cc-by-4.0", "cc0-1.0"
_SOURCES = (
    RawSource(
        "qm9", qm9.read_xyz_archive, qm9.row_of_xyz, published_split=qm9.published_split_of_files, license=_CC_BY
    ),
    RawSource(
        "qm9_sdf",
        qm9.read_sdf_and_csv,
        qm9.row_of_sdf_and_csv,
        published_split=qm9.published_split_of_files,
        license=_CC_BY,
    ),
    RawSource("qm9_hub", read_parquet, qm9.row_of_hub, license=_CC_BY),
    RawSource(
        "pubchemqc_b3lyp", pubchemqc.read_archive, partial(pubchemqc.row_of_file, method="B3LYP@PM6"), license=_CC_BY
    ),
    RawSource(
        "pubchemqc_b3lyp_hub",
        pubchemqc.read_hub_shard,
        partial(pubchemqc.row_of_hub_record, has_energy=True),
        license=_CC_BY,
    ),
    RawSource("pubchemqc_pm6", pubchemqc.read_archive, partial(pubchemqc.row_of_file, method="PM6"), license=_CC_BY),
    RawSource(
        "pubchemqc_pm6_hub",
        pubchemqc.read_hub_shard,
        partial(pubchemqc.row_of_hub_record, has_energy=False),
        license=_CC_BY,
    ),
    RawSource(
        "pcqm4mv2",
        pcqm4mv2.read_sdf_archive,
        pcqm4mv2.row_of_record,
        published_split=pcqm4mv2.published_split,
        license=_CC_BY,
    ),
    RawSource("spice", spice.read_conformations, spice.row_of_conformation, license=_CC0),
    RawSource(
        "spice_pubchem", spice.read_conformations, partial(spice.row_of_conformation, subset="PubChem"), license=_CC0
    ),
    RawSource(
        "qm9pack", read_csv, qm9.row_of_qm9pack, qm9.qm9pack_files, qm9.published_split_of_qm9pack, license=_CC_BY
    ),
)
SOURCES = {source.name: source for source in _SOURCES}


def stream_source(source: RawSource, inputs: list[Path], on_error: OnError = "raise") -> IterableDataset:
    """The rows of original files, in file order, as they are read.

    For a first look, and for sets that are read once; repeated records come repeatedly, and what was left out is
    counted in a log message at the end. Training wants shuffled rows and a quick resume, for
    which `dataset_scripts.prepare` writes shards.

    Raises:
        BadRowError: while iterating, a damaged record, with on_error="raise".
    """
    return IterableDataset.from_generator(
        _rows, features=FEATURES, gen_kwargs={"inputs": list(inputs), "source": source, "on_error": on_error}
    )


def _rows(inputs: list[Path], source: RawSource, on_error: OnError) -> Iterator[dict]:
    skipped: Counter[str] = Counter()
    for path in inputs:
        yield from rows_of_records(source.read(path), source.parse, on_error, skipped)
    for reason, count in skipped.most_common():
        logger.warning("%s: left out %d records: %s", source.name, count, reason)
