"""Rows as Parquet: nothing is lost, and coordinates take less room than as they come."""

import pyarrow.parquet as pq

from dataset_scripts.bundled import load_bundled
from dataset_scripts.tables import write_rows


def test_lists_of_numbers_are_split_by_byte(tmp_path):
    rows = load_bundled("pm6_displaced", "test").to_list()
    table = write_rows(tmp_path / "rows.parquet", rows)
    read = pq.read_table(tmp_path / "rows.parquet")
    assert read.equals(table) and read.schema.metadata == table.schema.metadata
    group = pq.ParquetFile(tmp_path / "rows.parquet").metadata.row_group(0)
    encodings = {(column := group.column(k)).path_in_schema: column.encodings for k in range(group.num_columns)}
    split = {path for path, of_column in encodings.items() if "BYTE_STREAM_SPLIT" in of_column}
    assert split == {"positions.list.element.list.element", "forces.list.element.list.element"}
    pq.write_table(table, tmp_path / "as_it_comes.parquet", compression="zstd")
    sizes = [(tmp_path / name).stat().st_size for name in ("rows.parquet", "as_it_comes.parquet")]
    assert sizes[0] < 0.8 * sizes[1]
