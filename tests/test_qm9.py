"""QM9 in all its forms gives the same rows, and all of it loads offline from qm9pack."""

import numpy as np
import pytest

from dataset_scripts.bundled import SPLITS, load_bundled
from dataset_scripts.prepare import prepare
from dataset_scripts.qm9 import published_split, row_of_qm9pack
from dataset_scripts.sources import SOURCES

# Water as qm9pack has it, "0." included.
WATER = {
    "XYZ_file": "dsgdb9nsd_000003.xyz",
    "Index": "3",
    "SMILES": "O",
    "Elements": "['O','H','H']",
    "XYZ_Ang": "[[-0.0343604951,0.9775395708,0.0076015923],[0.0647664923,0.0205721989,0.0015346341],"
    "[0.8717903737,1.3007924048,0.0006931336]]",
    "ZPVE_au": "0.021375",
    "InternalEnergy_0K_au": "-76.404702",
}


def bundled_rows() -> dict[str, dict]:
    rows = (row for split in SPLITS for row in load_bundled("dft_equilibrium", split))
    return {row["molecule_id"]: row for row in rows}


def assert_same_row(row: dict, expected: dict) -> None:
    assert row.keys() == expected.keys()
    np.testing.assert_allclose(row["positions"], expected["positions"], atol=1e-6)
    assert row["energy"] == pytest.approx(expected["energy"], abs=1e-6)
    for name in row.keys() - {"positions", "energy"}:
        assert row[name] == expected[name], name


def test_qm9pack_record_is_the_bundled_row():
    assert_same_row(row_of_qm9pack(WATER), bundled_rows()["qm9_000003"])


def test_published_split_has_the_published_sizes_and_is_fixed():
    indices = set(range(1, 130_832))
    split = published_split(indices)
    splits = [split(f"qm9_{index:06d}") for index in sorted(indices)]
    assert [splits.count(name) for name in SPLITS] == [110_000, 10_000, 10_831]
    # Anyone's numpy gives the same split.
    assert splits[:8] == ["train", "train", "train", "train", "train", "train", "train", "train"]


@pytest.mark.slow
def test_all_of_qm9_from_qm9pack(tmp_path):
    pytest.importorskip("qm9pack", reason="needs the qm9 extra")
    source = SOURCES["qm9pack"]
    summary = prepare(source, source.default_inputs(), tmp_path)
    assert sum(summary["rows"].values()) + sum(summary["skipped"].values()) == 130_831
    assert summary["skipped"] == {}
