"""The drug-like bundles: nothing that models are tested on, no molecule in two splits, labels are what they say."""

import json
import shutil
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from dataset_scripts import bundled
from dataset_scripts.build_bundled import build_lines
from dataset_scripts.bundled import SPLITS_OF, load_bundled, parquet_path
from dataset_scripts.collator import example_from_row
from dataset_scripts.drug_like import Exclusion
from dataset_scripts.large_molecules import choose
from dataset_scripts.library import constitution_hash
from dataset_scripts.packed_labels import read_packed_labels
from dataset_scripts.schema import B3LYP_6_31GD, GFN2_XTB, PM6
from dataset_scripts.splits import SPLITS, constitution_of, split_of

EXCLUDED = Path(__file__).parent / "data" / "excluded_sha256.txt"
RAW_LABELS = parquet_path("pm6", "test").parents[1] / "raw_labels"
NAMES = ("fragments", "drug_like", "drug_like_pm6", "large_labelled")


@cache
def hash_of(smiles: str) -> str:
    return constitution_hash(Chem.MolFromSmiles(smiles))


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], list[dict]]:
    return {(name, split): list(load_bundled(name, split)) for name in NAMES for split in SPLITS_OF[name]}


def test_nothing_that_models_are_tested_on_is_in_any_split_of_any_configuration(rows):
    exclusion, listed = Exclusion.of_file(EXCLUDED), set(EXCLUDED.read_text().split())
    assert len(listed) > 600
    seen = {row["smiles"] for part in rows.values() for row in part}
    assert len(seen) > 100 and not [smiles for smiles in seen if Chem.MolFromSmiles(smiles) in exclusion]
    neutral = ("pm6", "pm6_8_heavy_atoms")  # the other configurations have the molecules of pm6
    seen = {smiles for name in neutral for split in SPLITS for smiles in load_bundled(name, split)["smiles"]}
    assert len(seen) > 20_000 and not [smiles for smiles in seen if hash_of(smiles) in listed]
    # That the list works: a drug of FlexiSol, in a form that is not listed itself.
    assert Chem.MolFromSmiles("CC(C)Cc1ccc(cc1)C(C)C(=O)[O-]") in exclusion


def test_splits_are_by_constitution_and_share_no_molecule(rows):
    splits = defaultdict(set)
    for (_, split), part in rows.items():
        for row in part:
            constitution = constitution_of(Chem.MolFromSmiles(row["smiles"]))
            assert split_of(constitution) == split
            splits[row["molecule_id"]].add(split)
            splits[constitution].add(split)
    assert all(len(where) == 1 for where in splits.values())


def test_fragments_are_labelled_at_minima_and_away_from_them(rows):
    of_molecule = defaultdict(list)
    for split in SPLITS:
        for row in rows["fragments", split]:
            assert row["energy_level_of_theory"] == B3LYP_6_31GD
            assert row["equilibrium_level_of_theory"] in (GFN2_XTB, None)
            of_molecule[row["molecule_id"]].append(row)
    elements = {number for of in of_molecule.values() for number in of[0]["atomic_numbers"]}
    assert elements == {1, 6, 7, 8, 9, 15, 16, 17, 35}  # 6-31G* has no iodine
    assert {-1, 0, 1} <= {of[0]["total_charge"] for of in of_molecule.values()}
    for name in ("hydrogen", "water", "ammonia", "methane", "hydrogen_sulfide", "phosphine"):
        assert 2 <= len(of_molecule[name]) <= 4
    above = defaultdict(list)
    for of in of_molecule.values():
        minimum = [row for row in of if row["equilibrium_level_of_theory"]]
        # The smallest have three turned structures in place of one.
        is_small = sum(number > 1 for number in of[0]["atomic_numbers"]) <= 5
        assert len(minimum) <= 1 and len(of) <= (6 if is_small else 4)
        for row in of:
            # Grids leave net forces of some .05 eV/angstrom.
            assert np.abs(np.sum(row["forces"], axis=0)).max() < 0.3
            example_from_row(row, [B3LYP_6_31GD])
            if minimum:
                above[bool(row["equilibrium_level_of_theory"])].append(row["energy"] - minimum[0]["energy"])
    # B3LYP's own minimum lies a little below; everything else above.
    assert min(above[False]) > -0.5 and np.mean(above[False]) > 0.3
    water = {row["equilibrium_level_of_theory"]: row for row in of_molecule["water"]}[GFN2_XTB]
    assert water["energy"] == pytest.approx(-76.409 * 27.2114, abs=0.05)
    assert np.linalg.norm(np.subtract(*water["positions"][:2])) == pytest.approx(0.96, abs=0.01)


def test_drug_like_molecules_are_minima_of_a_stated_size(rows):
    found = [row for split in SPLITS for row in rows["drug_like", split]]
    assert len({row["molecule_id"] for row in found}) == len({row["smiles"] for row in found}) == len(found)
    assert sum(sum(number > 1 for number in row["atomic_numbers"]) >= 8 for row in found) >= 12_000
    for row in found:
        least = 4 if row["molecule_id"].startswith("rare_library_") else 8
        assert least <= sum(number > 1 for number in row["atomic_numbers"]) <= 45
        assert row["equilibrium_level_of_theory"] == row["energy_level_of_theory"] == GFN2_XTB
        assert row["energy"] < -100 and row["forces"] is None
    assert sum(row["total_charge"] != 0 for row in found) > 0.05 * len(found)
    example = example_from_row(found[0], [GFN2_XTB])
    np.testing.assert_array_equal(example.forces, np.zeros_like(example.positions))


def test_pm6_minima_are_those_of_drug_like_molecules_below_their_gfn2_minima(rows):
    moved = []
    for split in SPLITS:
        gfn2 = {row["molecule_id"]: row for row in rows["drug_like", split]}
        for row in rows["drug_like_pm6", split]:
            start = gfn2[row["molecule_id"]]
            assert row["mapped_smiles"] == start["mapped_smiles"] and row["total_charge"] == start["total_charge"]
            assert row["equilibrium_level_of_theory"] == PM6
            # A heat of formation is no energy that the model learns.
            assert row["energy"] is None and row["forces"] is None and row["energy_level_of_theory"] is None
            ends, lengths = example_from_row(row, [GFN2_XTB]).graph.bonded.nonzero(), []
            for positions in (np.array(of["positions"]) for of in (row, start)):
                lengths.append(np.linalg.norm(positions[ends[0]] - positions[ends[1]], axis=-1))
            moved.append(np.abs(lengths[0] - lengths[1]).mean())
    assert len(moved) >= 3000 and 0.005 < np.mean(moved) < 0.03 and max(moved) < 0.1


def test_large_molecules_are_labelled_at_one_level_and_trained_on_nowhere(rows):
    of_molecule = defaultdict(list)
    for row in rows["large_labelled", "test"]:
        assert 12 <= sum(number > 1 for number in row["atomic_numbers"]) <= 20
        assert row["energy_level_of_theory"] == B3LYP_6_31GD
        example_from_row(row, [B3LYP_6_31GD])
        of_molecule[row["molecule_id"]].append(row)
    assert len(of_molecule) >= 60
    for of in of_molecule.values():
        found = {row["equilibrium_level_of_theory"]: row for row in of}
        assert len(found) == len(of)
        assert np.abs(np.sum(found[GFN2_XTB]["forces"], axis=0)).max() < 0.3  # grids leave some
        if B3LYP_6_31GD in found:
            assert -1 < found[B3LYP_6_31GD]["energy"] - found[GFN2_XTB]["energy"] < 0
    elements = {number for of in of_molecule.values() for number in of[0]["atomic_numbers"]}
    assert {1, 6, 7, 8, 17} <= elements <= {1, 6, 7, 8, 9, 15, 16, 17, 35}
    assert any(of[0]["total_charge"] for of in of_molecule.values())

    hashes = {hash_of(of[0]["smiles"]) for of in of_molecule.values()}
    assert len(hashes) == len(of_molecule) and not hashes & set(EXCLUDED.read_text().split())
    trained = {
        smiles
        for name, splits in SPLITS_OF.items()
        for split in splits
        if split != "test"
        for smiles in load_bundled(name, split)["smiles"]
    }
    assert len(trained) > 20_000
    assert not hashes & set(map(hash_of, trained))


def test_the_large_molecules_are_chosen_by_their_rule():
    lines = (RAW_LABELS / "large_molecules.smi").read_text().splitlines()
    listed, exclusion = [line.split()[0] for line in lines], Exclusion.of_file(EXCLUDED)
    assert choose(sorted(listed), exclusion) == listed
    sizes = [Chem.MolFromSmiles(smiles).GetNumHeavyAtoms() for smiles in listed]
    assert sizes == sorted(sizes) and set(sizes) == set(range(12, 21)) and len(listed) >= 60
    charges = {Chem.GetFormalCharge(Chem.MolFromSmiles(smiles)) for smiles in listed}
    assert charges == {-1, 0, 1}
    # Of molecules of every split those of the test split, without what is listed, iodine, chains and small ones.
    others = [row["smiles"] for split in SPLITS for row in load_bundled("drug_like", split)]
    chosen = [Chem.MolFromSmiles(smiles) for smiles in choose(others, exclusion)]
    assert len(chosen) > 20 and {split_of(constitution_of(mol)) for mol in chosen} == {"test"}
    assert not any(choose([smiles], exclusion) for smiles in ("CCCCCCCCCCCCO", "CCCc1ccc(O)c(I)c1", "c1ccccc1O"))
    named = Exclusion([constitution_hash(chosen[0])])
    assert Chem.MolToSmiles(chosen[0]) not in choose(others, named)


def test_a_molecule_of_another_split_is_refused(tmp_path):
    assert split_of("CCO") == "train"
    line = {"molecule_id": "ethanol", "geometry": "given", "level": "b3lyp", "smiles": "CCO"}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="ethanol is of the split train, which large_labelled does not have"):
        build_lines("large_labelled", tmp_path / "lines.jsonl", Exclusion(()))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The bundled set, where its files may be written anew: the card is of all of them."""
    for pattern in ("*.parquet", "summary.json"):
        for path in parquet_path("pm6", "train").parent.glob(pattern):
            shutil.copyfile(path, tmp_path / path.name)
    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "raw"), [("fragments", "fragments_b3lyp"), ("large_labelled", "large_b3lyp")])
def test_what_is_built_from_raw_labels_is_built_again_byte_for_byte(name, raw, folder):
    summary = json.loads((folder / "summary.json").read_text())
    paths = [parquet_path(name, split) for split in SPLITS_OF[name]]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    build_lines(name, RAW_LABELS / f"{raw}.parquet", Exclusion.of_file(EXCLUDED))
    assert [path.read_bytes() for path in paths] == before
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_what_is_listed_is_left_out_and_counted(folder):
    summary = json.loads((folder / "summary.json").read_text())
    for split in SPLITS:
        parquet_path("fragments", split).unlink()
    listed = Exclusion([constitution_hash(Chem.MolFromSmiles("O"))])
    kept = build_lines("fragments", RAW_LABELS / "fragments_b3lyp.parquet", listed)
    assert (
        sum(file["rows"] for file in kept["files"].values())
        == sum(file["rows"] for name, file in summary["files"].items() if name.startswith("fragments-"))
        - kept["rejected_fragments"]["a molecule that models are tested on"]
    )
    with pytest.raises(ValueError, match="lines of another level than gfn2 or gfn2_program: b3lyp"):
        build_lines("drug_like", RAW_LABELS / "fragments_b3lyp.parquet", listed)


def test_lines_are_added_to_the_rows_that_are_there(folder):
    before = {split: list(load_bundled("drug_like", split)) for split in SPLITS}
    counts = json.loads((folder / "summary.json").read_text())["rejected_drug_like"]
    level = {"geometry": "minimum", "level": "gfn2_program"}
    new = before["train"][0] | {"molecule_id": "new", "smiles": "CCO"} | level
    repeated = before["train"][0] | {"molecule_id": "repeated"} | level
    failed = {"molecule_id": "failed", "error": "xtb did not reach a minimum"} | level
    lines = [before["train"][1] | level, repeated, new, failed]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    exclusion = Exclusion.of_file(EXCLUDED)
    built = build_lines("drug_like", folder / "lines.jsonl", exclusion, add=True)
    assert list(load_bundled("drug_like", "test")) == before["test"]
    after = list(load_bundled("drug_like", "train"))
    assert after[:-1] == before["train"] and after[-1]["molecule_id"] == "new"
    counts["xtb did not reach a minimum"] += 1
    counts["a molecule that an earlier row has under another name"] += 1
    assert built["rejected_drug_like"] == counts


@pytest.mark.parametrize("name", ["fragments", "large"])
def test_labels_were_made_at_the_minima_that_are_kept(name):
    minima = {line["molecule_id"]: line for line in read_packed_labels(RAW_LABELS / f"{name}_gfn2_minima.parquet")}
    labels = [line for line in read_packed_labels(RAW_LABELS / f"{name}_b3lyp.parquet") if "error" not in line]
    assert {line["level"] for line in labels} == {"b3lyp"}
    for line in labels:
        if line["geometry"] == "given":
            assert line["positions"] == minima[line["molecule_id"]]["positions"]
