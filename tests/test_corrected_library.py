"""Structures of a library moved to a model's own level of theory, with the reason for each that is left out."""

import logging
import shutil
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rdkit import Chem

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import example_from_row, mol_from_row
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.diffusion import centre
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.graph_batch import GraphBatch
from modeling_pcbridge.molecular_graph import is_bond
from pcbridge.app.command_line import main
from pcbridge.app.default_model import released_checkpoint
from pcbridge.evaluation.batches import padded_batches
from pcbridge.training import corrected_library
from pcbridge.training.config import SourceConfig
from pcbridge.training.data import load_source

OWN, OTHER = "B3LYP/6-31G*", "GFN2-xTB"


@pytest.fixture(scope="module")
def model() -> PCBridgeModel:
    return PCBridgeModel.from_pretrained(released_checkpoint("drug_like")).eval()


@pytest.fixture(scope="module")
def minima() -> tuple[GraphBatch, torch.Tensor]:
    """Three GFN2-xTB minima, padded."""
    examples = [
        example_from_row(row, (), resonance_invariant=True)
        for row in load_bundled("drug_like", "validation").select(range(3))
    ]
    model = PCBridgeModel.from_pretrained(released_checkpoint("drug_like"))
    return next(padded_batches(model, [e.graph for e in examples], [e.positions for e in examples], 8))


def test_bonds_move_to_where_the_force_is_the_error_that_the_levels_share(model, minima):
    """Along bonds F_own at the end is F_other at the start, which only the model's error keeps from being zero."""
    graph, positions = minima
    moved = model.correct_structure(positions, OTHER, **graph.inputs)
    _, error = model.detached_energy_and_forces(graph, positions, OTHER)
    bonds = is_bond(graph.pair_types)

    def along_bonds(at: torch.Tensor) -> torch.Tensor:
        left = model.detached_energy_and_forces(graph, at)[1] - error
        units = torch.nn.functional.normalize(at[:, :, None] - at[:, None], dim=-1)
        return ((left[:, :, None] - left[:, None]) * units).sum(-1)[bonds].square().mean().sqrt()

    before, after = along_bonds(positions), along_bonds(moved)
    assert before > 0.2 and after < before / 4
    moves = (moved - centre(positions, graph.atom_mask)).norm(dim=-1).amax(-1)
    assert ((moves > 0.01) & (moves < 0.3)).all(), moves


def test_levels_that_agree_move_nothing(model, minima, monkeypatch):
    graph, positions = minima
    ours = model.detached_energy_and_forces
    monkeypatch.setattr(
        model, "detached_energy_and_forces", lambda graph, positions, level=None: ours(graph, positions)
    )
    moved = model.correct_structure(positions, OTHER, **graph.inputs)
    torch.testing.assert_close(moved, centre(positions, graph.atom_mask), atol=1e-5, rtol=0)


def test_levels_that_a_model_does_not_know_have_their_sentence(model, minima):
    graph, positions = minima
    for level in (OWN, "PM6"):
        with pytest.raises(InputError, match=f"minima of '.*' cannot be moved to .*; .* the way from {OTHER}"):
            model.correct_structure(positions, level, **graph.inputs)
    one_level = PCBridgeModel.from_pretrained(released_checkpoint("consistency"))
    for level in (OTHER, None):
        with pytest.raises(InputError, match="the way from no other level"):
            one_level.correct_structure(positions, level, **graph.inputs)


def test_the_method_and_the_command_correct_minima(model, minima, tmp_path, capsys):
    graph, positions = minima
    expected = model.correct_structure(positions, **graph.inputs)
    output = model.predict_structure("correct", positions=positions, num_samples=1, **graph.inputs)
    torch.testing.assert_close(output.positions[:, 0], expected)
    assert output.is_sound.all()

    mols = [mol_from_row(row) for row in load_bundled("drug_like", "validation").select(range(3))]
    with Chem.SDWriter(str(tmp_path / "gfn2.sdf")) as writer:
        for mol in mols:
            writer.write(mol)
    command = ["predict", str(tmp_path / "gfn2.sdf"), "--method", "correct", "-o", str(tmp_path / "own.sdf")]
    assert main([*command, "--model", "drug_like"]) == 0
    for mol, structure in zip(Chem.SDMolSupplier(str(tmp_path / "own.sdf"), removeHs=False), expected, strict=True):
        num_atoms = mol.GetNumAtoms()
        written = torch.tensor(mol.GetConformer().GetPositions(), dtype=torch.float32)
        torch.testing.assert_close(written, structure[:num_atoms], atol=1e-3, rtol=0)
    with pytest.raises(SystemExit):
        main([*command, "--model", "consistency"])
    assert "minima of another level cannot be moved to B3LYP/6-31G*" in capsys.readouterr().err


def test_rows_are_written_once_and_train(model, tmp_path, monkeypatch, capsys):
    rows = load_bundled("drug_like", "validation").select(range(4))
    at_pm6 = [row | {"equilibrium_level_of_theory": "PM6"} for row in rows.select(range(1))]
    corrected, left_out = corrected_library.corrected_rows(model, [*rows, *at_pm6])
    assert len(corrected) == 4 and left_out == {f"at PM6, for which the model has no head beside {OWN}": 1}
    sizes = [len(row["atomic_numbers"]) for row in corrected]
    assert all(one <= next_one for one, next_one in pairwise(sizes))
    level = f"{OWN} by PCBridge from {OTHER}"
    assert {(r["energy"], r["forces"], r["equilibrium_level_of_theory"]) for r in corrected} == {(None, None, level)}
    before = {row["molecule_id"]: np.array(row["positions"]) for row in rows}
    moves = [np.abs(np.array(r["positions"]) - before[r["molecule_id"]]).max() for r in corrected]
    assert min(moves) > 1e-3

    monkeypatch.setattr(corrected_library, "read_minima", lambda source, split: rows)
    command = ["corrected_library", "--model", str(released_checkpoint("drug_like")), "--sources", "drug_like"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path)])
    corrected_library.main()
    assert "drug_like, train: 4 rows; left out: none" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "train" / "drug_like.parquet").num_rows == 4
    examples = load_source(SourceConfig(str(tmp_path)), "train", [OWN])
    assert all(example.is_equilibrium and example.energy is None for example in examples)
    corrected_library.main()  # what is there is not done again
    assert capsys.readouterr().out == ""
    again = tmp_path / "copy"
    shutil.copytree(released_checkpoint("drug_like"), again)  # what counts is the model, not where it lies
    monkeypatch.setattr(sys, "argv", [*command, "--model", str(again), "--output", str(tmp_path)])
    corrected_library.main()
    other = PCBridgeModel.from_pretrained(again)
    other.energy_decoder.reference_energies.energies[1] += 1.0
    other.save_pretrained(again)
    for others, reason in (
        (["--by", "relax"], "was made with"),
        (["--model", str(again)], "was made with"),
        (["--sources", "drug_like", "elsewhere/drug_like"], "would have the same shard"),
    ):
        monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path), *others])
        with pytest.raises(SystemExit):
            corrected_library.main()
        assert reason in capsys.readouterr().err


def test_an_unknown_source_and_a_model_without_forces_have_their_sentence(tmp_path, monkeypatch, caplog, capsys):
    caplog.set_level(logging.ERROR)
    for model, source, reason in (
        ("drug_like", str(tmp_path), "neither a bundled configuration"),
        ("qm9", "pm6", "correcting a library needs forces"),
    ):
        command = [
            "corrected_library",
            "--model",
            str(released_checkpoint(model)),
            "--sources",
            source,
            "--output",
            "x",
        ]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            corrected_library.main()
        assert stopped.value.code == 1 and reason in capsys.readouterr().err


def test_relaxed_rows_are_minima_of_the_model(model, monkeypatch):
    rows = [*load_bundled("drug_like", "validation").select(range(3)), load_bundled("drug_like_pm6", "validation")[0]]
    relaxed, left_out = corrected_library.corrected_rows(model, rows, 2, by="relax")
    levels = [row["equilibrium_level_of_theory"] for row in relaxed]
    assert levels == [f"{OWN} by PCBridge from {level}" for level in (OTHER, OTHER, OTHER, "PM6")] and not left_out
    examples = [example_from_row(row, (), resonance_invariant=True) for row in relaxed]
    for graph, positions in padded_batches(model, [e.graph for e in examples], [e.positions for e in examples], 8):
        _, forces = model.energy_and_forces(graph, positions)
        assert forces.norm(dim=-1).max() < 0.03
    relax = partial(model.relax_structure, max_evaluations=3)
    monkeypatch.setattr(model, "relax_structure", relax)
    assert corrected_library.corrected_rows(model, rows, by="relax") == ([], {"its relaxation did not converge": 4})
