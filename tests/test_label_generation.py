"""Labels made again agree with the bundled ones; interrupted output is taken up without loss. Needs the `qc` extra."""

import json

import numpy as np
import pytest

from dataset_scripts.build_bundled import read_labels
from dataset_scripts.bundled import SPLITS, load_bundled
from dataset_scripts.label_generation import displaced, label_row, read_lines


def bundled_rows(name: str) -> list[dict]:
    return [row for split in SPLITS for row in load_bundled(name, split)]


@pytest.mark.slow
@pytest.mark.parametrize("molecule_id", ["qm9_000002", "qm9_000003", "qm9_000005"])
def test_labels_agree_with_the_bundled_ones(molecule_id):
    pytest.importorskip("pyscf")
    row = next(row for row in bundled_rows("pm6") if row["molecule_id"] == molecule_id)
    label = label_row(row, "pm6")
    assert label["energy_ev"] == pytest.approx(row["energy"], abs=1e-3)
    np.testing.assert_allclose(label["forces_ev_ang"], row["forces"], atol=1e-2)


def test_displacements_are_the_same_on_every_run_and_of_a_stated_width():
    positions = np.zeros((200, 3))
    assert (displaced(positions, "a") == displaced(positions, "a")).all()
    assert (displaced(positions, "a") != displaced(positions, "b")).any()
    widths = [displaced(positions, f"molecule {i}").std() for i in range(30)]
    assert {min((0.03, 0.06, 0.1), key=lambda w: abs(w - width)) for width in widths} == {0.03, 0.06, 0.1}
    assert all(min(abs(w - width) for w in (0.03, 0.06, 0.1)) < 0.008 for width in widths)


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "labels.jsonl"
    whole = [{"molecule_id": "a", "geometry": "pm6"}, {"molecule_id": "b", "geometry": "pm6"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in whole) + '{"molecule_id": "c", "geo')
    assert read_lines(path) == whole
    assert path.read_text().endswith("\n") and read_lines(path) == whole
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_generated_lines_are_read_as_labels(tmp_path):
    path = tmp_path / "labels.jsonl"
    good = {"molecule_id": "qm9_000042", "geometry": "pm6", "energy_ev": -1.0}
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, {**good, "error": "did not converge"})))
    assert read_labels(path) == [{**good, "qm9_index": 42}]
