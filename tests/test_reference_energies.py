"""Energies of different levels of theory agree once the references of the elements are exchanged."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_scripts.bundled import load_bundled, parquet_path
from dataset_scripts.collator import example_from_row
from dataset_scripts.reference_energies import (
    at_level_of_theory,
    fit_by_level_of_theory,
    fit_reference_energies,
    fit_to_files,
)
from dataset_scripts.schema import B3LYP_6_31G2DFP, B3LYP_6_31GD
from pcbridge.training.data import reference_energies_of


@pytest.fixture(scope="module")
def pairs() -> list[tuple[dict, dict]]:
    """The same molecules at PM6 minima with B3LYP/6-31G*, and at DFT minima with B3LYP/6-31G(2df,p)."""
    labelled = {row["molecule_id"]: row for row in load_bundled("pm6", "train") if row["energy"] is not None}
    return [
        (labelled[row["molecule_id"]], row)
        for row in load_bundled("dft_equilibrium", "train")
        if row["molecule_id"] in labelled
    ]


def test_two_basis_sets_of_real_molecules_agree(pairs):
    references = fit_by_level_of_theory(row for pair in pairs for row in pair)
    assert references.keys() == {B3LYP_6_31GD, B3LYP_6_31G2DFP}
    before = [large["energy"] - small["energy"] for small, large in pairs]
    shifted = [at_level_of_theory(large, B3LYP_6_31GD, references) for _, large in pairs]
    after = [row["energy"] - small["energy"] for row, (small, _) in zip(shifted, pairs, strict=True)]
    assert np.mean(np.abs(before)) > 0.7
    assert np.mean(np.abs(after)) < 0.1
    # With the other level's name the model takes the label.
    assert example_from_row(shifted[0], B3LYP_6_31GD).energy == shifted[0]["energy"]


def test_training_fits_the_same_energies_to_its_examples(pairs):
    rows = [small for small, _ in pairs]
    examples = [example_from_row(row, B3LYP_6_31GD) for row in rows]
    assert reference_energies_of(examples) == pytest.approx(fit_by_level_of_theory(rows)[B3LYP_6_31GD], abs=1e-6)


def test_forces_stay_and_unknown_elements_make_the_energy_absent():
    references = {"a": {1: -10.0, 8: -100.0}, "b": {1: -13.0, 8: -90.0}}
    row = {"atomic_numbers": [8, 1, 1], "energy": -125.0, "forces": [[1.0] * 3] * 3, "energy_level_of_theory": "a"}
    shifted = at_level_of_theory(row, "b", references)
    assert shifted["energy"] == pytest.approx(-121.0) and shifted["forces"] == row["forces"]
    assert at_level_of_theory(shifted, "a", references) == row
    assert at_level_of_theory(row | {"atomic_numbers": [8, 1, 9]}, "b", references)["energy"] is None
    assert at_level_of_theory(row | {"energy_level_of_theory": None}, "b", references)["energy"] == -125.0
    assert at_level_of_theory(row, "c", references)["energy"] is None
    with pytest.raises(ValueError, match="no energy"):
        fit_reference_energies([], [])


def _minimum(molecule_id: str, smiles: str, atomic_numbers: list[int], energy: float, level: str) -> dict:
    names = {"molecule_id": molecule_id, "smiles": smiles, "atomic_numbers": atomic_numbers}
    return names | {"energy": energy, "energy_level_of_theory": level, "equilibrium_level_of_theory": level}


def test_the_difference_of_levels_is_of_the_same_molecules_only(tmp_path, caplog):
    """b is a but for a constant an atom. Names that two folders share do not make two molecules one."""
    constants = {1: -1.0, 6: 2.0, 9: 5.0, 17: 7.0}
    alkane = {n: [6] * n + [1] * (2 * n + 2) for n in range(1, 200)}

    def row(number: int, n: int, level: str, halogen: int | None = None) -> dict:
        atoms = alkane[n] if halogen is None else [*alkane[n][:-1], halogen]
        energy = -10.0 * len(atoms) - n**1.5  # with what no constants of the elements describe
        energy += sum(constants[z] for z in atoms) if level == "b" else 0.0
        return _minimum(f"train_{number}", f"{'C' * n}{halogen or ''}", atoms, energy, level)

    in_a = [row(n, n, "a") for n in range(1, 150)] + [row(n, n, "a", halogen=9) for n in range(150, 160)]
    in_b = [row(n, 150 - n, "b") for n in range(1, 150)] + [row(n, n, "b", halogen=17) for n in range(150, 160)]
    for name, rows in (("a", in_a), ("b", in_b)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    # No molecule is there twice by name and SMILES but one, so each level has its own fit, chlorine included.
    assert fit_to_files(paths, "a")["b"].keys() == {1, 6, 17} and not caplog.records
    in_b = [row(n, n, "b") for n in range(1, 150)] + in_b[149:]
    pq.write_table(pa.Table.from_pylist(in_b), tmp_path / "b.parquet")
    references = fit_to_files(paths, "a")
    shifted = at_level_of_theory(in_b[5], "a", references)
    assert shifted["energy"] == pytest.approx(in_a[5]["energy"], abs=1e-6)
    # Of chlorine only b is known.
    assert at_level_of_theory(in_b[-1], "a", references)["energy"] is None
    assert "atomic numbers [17] are in no molecule" in caplog.text


def test_files_without_energies_and_where_rows_are_cut_change_nothing(tmp_path):
    labelled = parquet_path("dft_equilibrium", "train")
    whole = fit_to_files([labelled], B3LYP_6_31G2DFP, max_rows=3000)
    unlabelled = [parquet_path("pm6_8_heavy_atoms", split) for split in ("validation", "test")]
    assert fit_to_files([*unlabelled, labelled], B3LYP_6_31G2DFP, max_rows=3000) == whole
    rows = load_bundled("dft_equilibrium", "train")
    for number in range(4):
        rows.shard(4, number, contiguous=True).to_parquet(tmp_path / f"{number}.parquet")
    assert fit_to_files(sorted(tmp_path.glob("*.parquet")), B3LYP_6_31G2DFP, max_rows=3000) == whole
    # A part of the minima is from all files: seven heavy atoms are in the last.
    few = fit_to_files(sorted(tmp_path.glob("*.parquet")), B3LYP_6_31G2DFP, max_rows=200)[B3LYP_6_31G2DFP]
    assert few.keys() == whole[B3LYP_6_31G2DFP].keys()
    assert few[6] == pytest.approx(whole[B3LYP_6_31G2DFP][6], abs=0.3)
