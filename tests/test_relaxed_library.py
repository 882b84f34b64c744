"""Structures of a library relaxed on a model's energy: minima of E, with the reason for each that is left out."""

import logging
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import example_from_row
from modeling_pcbridge import PCBridgeModel
from pcbridge.app.default_model import released_checkpoint
from pcbridge.evaluation.batches import energies_and_forces
from pcbridge.training import relaxed_library
from pcbridge.training.config import SourceConfig
from pcbridge.training.data import load_source


def test_rows_are_minima_of_the_energy_and_train(tmp_path, monkeypatch, capsys):
    model = PCBridgeModel.from_pretrained(released_checkpoint("consistency")).eval()
    rows = load_bundled("pm6", "validation").select(range(6))
    relaxed, left_out = relaxed_library.relaxed_rows(model, rows)
    assert len(relaxed) + left_out.total() == 6 and len(relaxed) >= 4
    level = "PCBridge of B3LYP/6-31G*"
    assert {(r["energy"], r["forces"], r["equilibrium_level_of_theory"]) for r in relaxed} == {(None, None, level)}
    graphs = [example_from_row(row, ()).graph for row in relaxed]
    _, forces = energies_and_forces(model, graphs, [np.array(row["positions"]) for row in relaxed], 8)
    assert max(np.linalg.norm(force, axis=-1).max() for force in forces) < relaxed_library.MAX_FORCE + 1e-3

    monkeypatch.setattr(relaxed_library, "read_minima", lambda source, split: rows)
    command = ["relaxed_library", "--model", str(released_checkpoint("consistency")), "--sources", "pm6"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path)])
    relaxed_library.main()
    assert f"pm6, train: {len(relaxed)} rows" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "train" / "pm6.parquet").num_rows == len(relaxed)
    examples = load_source(SourceConfig(str(tmp_path)), "train", ["B3LYP/6-31G*"])
    assert all(example.is_equilibrium and example.energy is None for example in examples)
    relaxed_library.main()  # what is there is not done again
    assert capsys.readouterr().out == ""


def test_an_unknown_source_and_a_model_without_forces_have_their_sentence(tmp_path, monkeypatch, caplog, capsys):
    caplog.set_level(logging.ERROR)
    for model, source, reason in (
        ("consistency", str(tmp_path), "neither a bundled configuration"),
        ("qm9", "pm6", "relaxing a library needs forces"),
    ):
        command = ["relaxed_library", "--model", str(released_checkpoint(model)), "--sources", source, "--output", "x"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            relaxed_library.main()
        assert stopped.value.code == 1 and reason in capsys.readouterr().err
