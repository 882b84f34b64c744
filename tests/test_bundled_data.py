"""The bundled data are what their card says: counts, checksums, units, splits without leakage."""

import hashlib
import json
from itertools import product

import numpy as np
import pytest
from rdkit import Chem

from dataset_scripts.bundled import CONFIG_NAMES, SPLITS_OF, load_bundled, parquet_path
from dataset_scripts.collator import collate, example_from_row
from dataset_scripts.schema import B3LYP_6_31G2DFP, B3LYP_6_31GD, FEATURES, GFN2_XTB, PM6
from dataset_scripts.splits import SPLITS, constitution_of, split_of


def test_files_match_their_checksums_and_counts():
    summary = json.loads(parquet_path("pm6", "train").with_name("summary.json").read_text())
    assert set(summary["files"]) == {path.name for path in parquet_path("pm6", "train").parent.glob("*.parquet")}
    for name, splits in SPLITS_OF.items():
        for split in splits:
            path = parquet_path(name, split)
            entry = summary["files"][path.name]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
            assert len(load_bundled(name, split)) == entry["rows"]


def test_splits_share_no_constitution():
    constitutions = {}
    for split in SPLITS:
        mols = [Chem.MolFromSmiles(row["smiles"]) for row in load_bundled("pm6", split)]
        constitutions[split] = {Chem.MolToSmiles(mol, isomericSmiles=False) for mol in mols}
    assert not constitutions["train"] & constitutions["test"]
    assert not constitutions["train"] & constitutions["validation"]
    assert not constitutions["validation"] & constitutions["test"]
    assert len(load_bundled("pm6", "test")) >= 300


def test_every_configuration_splits_the_same_molecules_alike():
    for split in SPLITS:
        names = [name for name in CONFIG_NAMES if split in SPLITS_OF[name]]
        ids = {name: set(load_bundled(name, split)["molecule_id"]) for name in names}
        assert ids["pm6"] == ids["dft_equilibrium"]
        assert ids["pm6_displaced"] <= ids["pm6"] and not ids["pm6_8_heavy_atoms"] & ids["pm6"]


def test_larger_molecules_are_minima_without_energies_in_the_same_splits():
    constitutions = []
    for split in SPLITS:
        rows = load_bundled("pm6_8_heavy_atoms", split)
        assert all(sum(z > 1 for z in numbers) == 8 for numbers in rows["atomic_numbers"])
        assert set(rows["equilibrium_level_of_theory"]) == {PM6} and set(rows["energy"]) == {None}
        molecules = [Chem.MolFromSmiles(smiles) for smiles in rows["smiles"][:: len(rows) // 300]]
        assert {split_of(constitution_of(molecule)) for molecule in molecules} == {split}
        constitutions.append({Chem.MolToSmiles(molecule, isomericSmiles=False) for molecule in molecules})
        for row in rows.select(range(20)):
            example = example_from_row(row, [B3LYP_6_31GD])
            lengths = np.linalg.norm(example.positions[:, None] - example.positions, axis=-1)[example.graph.bonded]
            assert lengths.min() > 0.8 and lengths.max() < 1.75
    assert len(set.union(*constitutions)) == sum(map(len, constitutions))


def test_levels_of_theory_travel_with_the_labels():
    for row in load_bundled("pm6", "validation"):
        assert row["equilibrium_level_of_theory"] == PM6
        assert (row["energy"] is None) == (row["energy_level_of_theory"] is None) == (row["forces"] is None)
    for row in load_bundled("pm6_displaced", "validation"):
        assert row["equilibrium_level_of_theory"] is None and row["energy_level_of_theory"] == B3LYP_6_31GD
    for row in load_bundled("dft_equilibrium", "validation"):
        assert row["equilibrium_level_of_theory"] == B3LYP_6_31G2DFP and row["forces"] is None
        # Another level than the model's: not a label for it.
        assert example_from_row(row, [B3LYP_6_31GD]).energy is None


def test_forces_at_minima_of_the_models_level_are_zero_and_others_absent():
    row = next(iter(load_bundled("dft_equilibrium", "test")))
    minimum = example_from_row(row, [row["equilibrium_level_of_theory"]])
    np.testing.assert_array_equal(minimum.forces, np.zeros((len(row["positions"]), 3)))
    assert example_from_row(row, ["B3LYP/6-31G*"]).forces is None
    moved = row | {"equilibrium_level_of_theory": None}
    assert example_from_row(moved, [row["energy_level_of_theory"]]).forces is None


def test_units_by_known_molecules():
    """Water at the PM6 minimum: B3LYP/6-31G* has -76.41 hartree, an O-H bond is .95 to .97 angstrom."""
    rows = [row for split in SPLITS for row in load_bundled("pm6", split)]
    water = next(row for row in rows if row["smiles"] == "O")
    assert water["energy"] == pytest.approx(-76.41 * 27.2114, abs=0.5)
    positions = np.array(water["positions"])
    assert 0.93 < np.linalg.norm(positions[1] - positions[0]) < 0.98
    # A displaced structure lies above its minimum by eV, and its forces point back on average.
    minima = {row["molecule_id"]: row for row in rows}
    above, work = [], []
    for row in load_bundled("pm6_displaced", "train"):
        start = minima[row["molecule_id"]]
        above.append(row["energy"] - start["energy"])
        work.append((np.array(row["forces"]) * (np.array(start["positions"]) - np.array(row["positions"]))).sum())
    assert min(above) > 0 and 2.0 < np.mean(above) < 3.5
    assert np.mean(work) > np.mean(above)


def test_rows_have_the_columns_of_the_schema():
    assert load_bundled("pm6_displaced", "test").features == FEATURES


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no bundled configuration 'pm7'; there are pm6"):
        load_bundled("pm7", "train")
    with pytest.raises(ValueError, match="pm6 has no split 'dev'; it has train, validation, test"):
        load_bundled("pm6", "dev")
    with pytest.raises(ValueError, match="large_labelled has no split 'train'; it has test"):
        load_bundled("large_labelled", "train")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"positions": [[0.0, 0.0, 0.0]]}, "positions have shape"),
        ({"energy": float("nan")}, "the energy is nan"),
        ({"forces": [[float("inf"), 0.0, 0.0]] * 3}, "forces are not all finite"),
        ({"atomic_numbers": [8, 1, 6]}, "atomic_numbers differ"),
        ({"mapped_smiles": "C("}, "cannot parse"),
    ],
)
def test_bad_rows_are_named(change, reason):
    rows = [row for split in SPLITS for row in load_bundled("pm6", split)]
    water = next(row for row in rows if row["smiles"] == "O")
    with pytest.raises(ValueError, match=f"molecule qm9_000003: .*{reason}"):
        example_from_row(water | change, [B3LYP_6_31GD])


def test_collate_marks_absent_labels_and_never_gives_an_empty_slice():
    rows = list(load_bundled("pm6", "train"))
    unlabelled = next(row for row in rows if row["energy"] is None)
    batch = collate([example_from_row(unlabelled, [B3LYP_6_31GD])])
    assert not batch["has_energy"].any() and not batch["has_forces"].any()
    assert batch["label_rows"].labelled == slice(0, 1)
    displaced = next(iter(load_bundled("pm6_displaced", "train")))
    batch = collate([example_from_row(displaced, [B3LYP_6_31GD])])
    assert batch["label_rows"].structures == slice(0, 1) and not batch["is_equilibrium"].any()


def test_no_label_is_outside_its_slice():
    """Labels of another level leave rows with nothing: before the labelled ones, not among them."""
    sources = [("pm6", B3LYP_6_31GD), ("pm6_displaced", B3LYP_6_31GD), ("pm6_displaced", PM6), ("pm6", GFN2_XTB)]
    examples = [example_from_row(next(iter(load_bundled(name, "train"))), [level]) for name, level in sources]
    assert sorted((e.is_equilibrium, e.is_labelled) for e in examples) == sorted(product((False, True), repeat=2))
    batch = collate(examples)
    assert batch["label_rows"] == (slice(1, 3), slice(2, 4))
    assert batch["has_energy"].tolist() == [False, True, True, False]
    assert batch["is_equilibrium"].tolist() == [False, False, True, True]
