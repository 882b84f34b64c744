"""Fragments keep groups, charges and stereo; the choice is the greedy one; any library is read and bad ones named."""

import gzip
import json
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from dataset_scripts import chopping, library_counts
from dataset_scripts.bad_rows import BadRowError
from dataset_scripts.chopping import fragments_of
from dataset_scripts.fragment_choice import choose_fragments, in_order
from dataset_scripts.fragments import main, make_fragments
from dataset_scripts.library import LibraryRecord, constitution_hash, library_mol, read_library, sample_records
from dataset_scripts.library_counts import LibraryCounts, count_library
from modeling_pcbridge.atom_environments import environments_of_mol
from modeling_pcbridge.errors import InputError

DRUGS = {
    "atorvastatin": "CC(C)c1c(C(=O)Nc2ccccc2)c(-c2ccccc2)c(-c2ccc(F)cc2)n1CC[C@@H](O)C[C@@H](O)CC(=O)[O-]",
    "sildenafil": "CCCc1nn(C)c2c1nc([nH]c2=O)-c1cc(ccc1OCC)S(=O)(=O)N1CCN(C)CC1",
    "amoxicillin": "CC1(C)S[C@@H]2[C@H](NC(=O)[C@H](N)c3ccc(O)cc3)C(=O)N2[C@H]1C(=O)O",
    "zidovudine": "Cc1cn([C@H]2C[C@H](N=[N+]=[N-])[C@@H](CO)O2)c(=O)[nH]c1=O",
    "tamoxifen": "CC/C(=C(\\c1ccccc1)c1ccc(OCC[NH+](C)C)cc1)c1ccccc1",
    "metformin": "CN(C)C(=[NH2+])NC(N)=N",
    "fosfomycin": "C[C@@H]1O[C@@H]1P(=O)(O)[O-]",
    "losartan": "CCCCc1nc(Cl)c(CO)n1Cc1ccc(cc1)-c1ccccc1-c1nnn[n-]1",
    "nitrofurantoin": "O=C1CN(/N=C/c2ccc(o2)[N+](=O)[O-])C(=O)N1",
    "cystine": "[NH3+][C@@H](CSSC[C@H]([NH3+])C(=O)[O-])C(=O)[O-]",
}


def records(*smiles: str) -> list[LibraryRecord]:
    return [LibraryRecord(f"molecule {i}", text) for i, text in enumerate(smiles, start=1)]


def test_a_library_is_not_written_over_and_a_missing_folder_is_named_first(tmp_path):
    library = tmp_path / "library.smi"
    library.write_text("CCO\n")
    with pytest.raises(InputError, match="is the library itself"):
        make_fragments([library], tmp_path / ".." / tmp_path.name / "library.smi")
    with pytest.raises(InputError, match="there is no folder"):
        make_fragments([library], tmp_path / "x" / "fragments.smi")
    assert library.read_text() == "CCO\n"


def cut(smiles: str, max_heavy_atoms: int = 9) -> set[str]:
    return fragments_of(Chem.MolFromSmiles(smiles), max_heavy_atoms)


def without_stereo(smiles: set[str]) -> set[str]:
    return {Chem.MolToSmiles(Chem.MolFromSmiles(each), isomericSmiles=False) for each in smiles}


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("CC(=O)[O-]", {"C", "O=C[O-]", "CC(=O)[O-]"}),
        ("CC[NH3+]", {"C", "CC", "[NH4+]", "C[NH3+]", "CC[NH3+]"}),
        ("C[N+](=O)[O-]", {"C", "O=[NH+][O-]", "C[N+](=O)[O-]"}),
        ("CS(N)(=O)=O", {"CS(N)(=O)=O"}),
        ("COP(=O)(O)[O-]", {"C", "O=P([O-])(O)O", "COP(=O)([O-])O"}),
        ("CNC(N)=[NH2+]", {"C", "NC(N)=[NH2+]", "CNC(N)=[NH2+]"}),
        ("CN=[N+]=[N-]", {"C", "[N-]=[N+]=N", "CN=[N+]=[N-]"}),
        ("CSSC", {"C", "S", "CS", "SS", "CSS", "CSSC"}),
        ("Cn1cccc1", {"C", "c1cc[nH]c1", "Cn1cccc1"}),
        ("C[n+]1ccccc1", {"C", "c1cc[nH+]cc1", "C[n+]1ccccc1"}),
        ("C=CC=O", {"C=C", "C=O", "C=CC=O"}),
        ("C[N+](C)(C)[O-]", {"C", "[NH3+][O-]", "C[NH2+][O-]", "C[NH+](C)[O-]", "C[N+](C)(C)[O-]"}),
        ("c1ccccc1-c1ccccc1", {"c1ccccc1"}),
        ("C1CC2(C1)CC2", {"C1CC2(C1)CC2"}),
        ("CN1CCC1=O", {"C", "O=C1CCN1", "CN1CCC1=O"}),
    ],
)
def test_groups_and_rings_stay_whole_and_are_capped_by_hydrogen(smiles, expected):
    assert cut(smiles) == {Chem.CanonSmiles(each) for each in expected}


@pytest.mark.parametrize("name", DRUGS)
def test_fragments_are_parts_of_their_molecule_and_hold_their_own_fragments(name):
    mol = Chem.MolFromSmiles(DRUGS[name])
    found = fragments_of(mol, 9)
    assert len(found) > 1
    for smiles in found:
        fragment = Chem.MolFromSmiles(smiles)
        assert fragment.GetNumHeavyAtoms() <= 9 and "." not in smiles
        assert Chem.MolToSmiles(fragment) == smiles
        assert rdMolDescriptors.CalcNumRings(fragment) <= rdMolDescriptors.CalcNumRings(mol)
        assert all(atom.GetNumRadicalElectrons() == 0 for atom in fragment.GetAtoms())
        # Elements, charges, bond orders and aromaticity are the molecule's.
        assert mol.HasSubstructMatch(fragment, useChirality=True), smiles
        # Nothing else can be cut out of a part than out of the whole; a mark may be lost where the part is symmetric.
        assert without_stereo(fragments_of(fragment, 9)) <= without_stereo(found)
    assert fragments_of(mol, 4) == {s for s in found if Chem.MolFromSmiles(s).GetNumHeavyAtoms() <= 4}


def test_stereo_is_kept_where_the_centre_is_whole():
    assert "C[C@H](F)Cl" in cut("CC[C@H](F)Cl") and "C[C@@H](F)Cl" not in cut("CC[C@H](F)Cl")
    assert "C[C@@H](F)Cl" in cut("CC[C@@H](F)Cl")
    # The centre has lost its chlorine, and is none.
    assert {s for s in cut("CC[C@H](F)Cl") if "@" in s} == {"C[C@H](F)Cl", "CC[C@H](F)Cl"}
    assert "C/C=C\\C" in cut("CC/C=C\\CC") and "C/C=C/C" not in cut("CC/C=C\\CC")
    assert "C/C=C/C" in cut("CC/C=C/CC")
    # Without a substituent that decides, there is no mark.
    assert "CC=CC" in cut("C/C(Cl)=C/C")
    ring = cut("CCC[C@H]1CC[C@@H](F)O1")
    assert Chem.CanonSmiles("C[C@H]1CC[C@@H](F)O1") in ring and "C[C@H]1CCCO1" in ring


def test_environments_are_equal_where_elements_charges_degrees_and_bonds_are():
    """Against an independent description, over all atoms of some molecules."""

    def described(atom: Chem.Atom, radius: int) -> tuple:
        own = (atom.GetSymbol(), atom.GetTotalNumHs(), atom.GetFormalCharge(), atom.GetDegree())
        if radius == 0:
            return own
        around = [
            (str(mol.GetBondBetweenAtoms(atom.GetIdx(), other.GetIdx()).GetBondType()), described(other, radius - 1))
            for other in atom.GetNeighbors()
        ]
        return (own, tuple(sorted(around)))

    pairs = {1: set(), 2: set()}
    for smiles in DRUGS.values():
        mol = Chem.MolFromSmiles(smiles)
        for radius, hashes in environments_of_mol(mol, (1, 2)).items():
            pairs[radius] |= {(described(atom, 1), h) for atom, h in zip(mol.GetAtoms(), hashes, strict=True)}
    assert len(pairs[1]) == len({left for left, _ in pairs[1]}) == len({right for _, right in pairs[1]}) > 80
    assert len({right for _, right in pairs[2]}) > len(pairs[1])
    assert environments_of_mol(Chem.MolFromSmiles("C"), (1, 2)) != environments_of_mol(Chem.MolFromSmiles("O"), (1, 2))


def test_hydrogens_that_were_isotopes_and_bonds_of_metals_are_told_apart_from_atoms():
    counts = count_library(records("[2H]OC([2H])C", "CN(C)(C)->O", "OCC"), 9, (1,))
    assert counts.failures == {"bond type DATIVE is not supported": 1}
    assert (counts.num_molecules, counts.num_atoms) == (2, 6)
    assert [count.num_atoms for count in counts.environments[1].values()] == [2, 2, 2]


def naive_choice(counts: LibraryCounts, num: int) -> list[str]:
    chosen, covered = [], {radius: set() for radius in counts.radii}
    having = {s: environments_of_mol(Chem.MolFromSmiles(s), counts.radii) for s in counts.fragments}
    for radius in counts.radii:
        weights = {environment: count.num_atoms for environment, count in counts.environments[radius].items()}
        while len(chosen) < num:
            gains = {
                s: sum(weights.get(environment, 0) for environment in set(having[s][radius]) - covered[radius])
                for s in having
            }
            best = min(
                gains,
                key=lambda s: (-gains[s], Chem.MolFromSmiles(s).GetNumHeavyAtoms(), -counts.fragments[s], s),
            )
            if not gains[best]:
                break
            chosen.append(best)
            for other in counts.radii:
                covered[other] |= set(having[best][other])
    return chosen


def test_the_choice_is_the_greedy_one_and_coverage_is_what_it_says():
    counts = count_library(records(*DRUGS.values()), 9, (1, 2))
    chosen = choose_fragments(counts, 60)
    assert [fragment.smiles for fragment in chosen] == naive_choice(counts, 60)
    for num in (1, 20, len(chosen)):
        for radius in (1, 2):
            covered = {
                environment
                for fragment in chosen[:num]
                for environment in environments_of_mol(Chem.MolFromSmiles(fragment.smiles), [radius])[radius]
            }
            hashes = [h for s in DRUGS.values() for h in environments_of_mol(Chem.MolFromSmiles(s), [radius])[radius]]
            assert chosen[num - 1].coverage[radius] == pytest.approx(sum(h in covered for h in hashes) / len(hashes))
    first, *_ = chosen
    assert first.num_molecules == sum(first.smiles in cut(smiles) for smiles in DRUGS.values())
    assert all(a.coverage[1] <= b.coverage[1] and a.coverage[2] <= b.coverage[2] for a, b in pairwise(chosen))


def test_given_fragments_cover_what_they_share_with_the_library():
    counts = count_library(records("CCO", "CCN"), 9, (0, 1))
    found = in_order(["FC(F)F", "CCCO", "CCCO", "CCO", "CCN"], counts)
    assert [fragment.coverage[1] for fragment in found] == pytest.approx([0, 3 / 6, 3 / 6, 4 / 6, 1])
    assert [fragment.num_molecules for fragment in found] == [0, 0, 0, 1, 1]


def test_workers_and_chunks_change_nothing(monkeypatch):
    library = records(*DRUGS.values(), "C1", *DRUGS.values(), "[CH3]")
    whole = count_library(library, 7, (1,))
    monkeypatch.setattr(library_counts, "_CHUNK_SIZE", 3)
    assert count_library(library, 7, (1,)) == whole
    assert count_library(library, 7, (1,), workers=2) == whole
    assert whole.num_molecules == 20 and whole.failures == {"RDKit cannot parse it": 1, "unpaired electrons": 1}


def test_tables_are_bounded_and_the_rarest_go(monkeypatch):
    monkeypatch.setattr(library_counts, "_CHUNK_SIZE", 1)
    monkeypatch.setattr(library_counts, "MAX_TABLE_LENGTH", 6)
    counts = count_library(records(*["CCO"] * 5, "CCCCl", "c1ccsc1", "CBr"), 9, (1,))
    assert len(counts.fragments) <= 6 and max(map(len, counts.environments.values())) <= 6
    assert counts.fragments["CCO"] == 5 and "c1ccsc1" not in counts.fragments
    assert counts.least_counts["fragments"] > 1
    assert counts.num_molecules == 8


def test_large_molecules_end(monkeypatch):
    peptide = "N" + "C(CC(N)O)C(=O)N" * 60 + "C"
    monkeypatch.setattr(chopping, "MAX_SETS_PER_MOLECULE", 100)
    assert 10 < len(cut(peptide)) <= 100


def test_libraries_are_read_from_every_kind_of_file(tmp_path):
    smiles = "CCO ethanol\n# a comment\nc1ccccc1\n"
    (tmp_path / "a.smi").write_text(smiles)
    (tmp_path / "a.smi.gz").write_bytes(gzip.compress(smiles.encode()))
    table = "ID,SMILES,value\nethanol,CCO,1\n,c1ccccc1,2\n"
    (tmp_path / "a.csv").write_text("\ufeff" + table)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    pq.write_table(pa.table({"name": ["ethanol", None], "Smiles": ["CCO", "c1ccccc1"]}), tmp_path / "a.parquet")
    blocks = [Chem.MolToMolBlock(Chem.AddHs(Chem.MolFromSmiles(s))) for s in ("CCO", "c1ccccc1")]
    (tmp_path / "a.sdf").write_text(f"ethanol{blocks[0]}$$$$\n{blocks[1]}$$$$\n")
    for path in sorted(tmp_path.iterdir()):
        found = list(read_library(path))
        assert [record.name for record in found] == ["ethanol", f"{path.name}, molecule 2"]
        assert [Chem.MolToSmiles(library_mol(record)) for record in found] == ["CCO", "c1ccccc1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no SMILES"),
        ("C1CC", "RDKit cannot parse it"),
        ("[CH3]", "unpaired electrons"),
        ("C[Si](C)C", "element Si is not asked for"),
        ("*C", "a dummy atom"),
        ("[H][H]", "no heavy atom"),
        ("CCN.CCO", "several components are the largest"),
        ("no\n\n\nblock\n", "RDKit cannot parse it"),
        ("CC\u00e9", "characters that are not ASCII"),
    ],
)
def test_bad_molecules_are_named_with_the_reason(text, reason):
    with pytest.raises(BadRowError, match=f"^mine: {reason}"):
        library_mol(LibraryRecord("mine", text))


def test_of_a_salt_the_largest_component_is_taken_without_labels():
    mol = library_mol(LibraryRecord("salt", "[Na+].[13CH3:5]C(=O)[O-].O.O"))
    assert Chem.MolToSmiles(mol) == "CC(=O)[O-]"
    assert Chem.MolToSmiles(library_mol(LibraryRecord("twice", "CCN.CCN"))) == "CCN"
    assert Chem.MolToSmiles(library_mol(LibraryRecord("deuterated", "[2H]C([2H])([2H])Oc1ccccc1"))) == "COc1ccccc1"
    assert constitution_hash(Chem.MolFromSmiles("C[C@H](F)O")) == constitution_hash(Chem.MolFromSmiles("CC(F)O"))


def test_the_command_writes_fragments_report_and_picture(tmp_path, capsys, monkeypatch):
    library, output = tmp_path / "library.smi", tmp_path / "out.smi"
    bad = "C1CC broken\n[Na+].[Cl-] salt\nCCN.CCO mixture\n"
    library.write_text("".join(f"{smiles} {name}\n" for name, smiles in DRUGS.items()) + bad)
    monkeypatch.setattr("sys.argv", ["fragments", str(library), "--output", str(output), "--num", "12"])
    main()
    printed = capsys.readouterr().out
    assert "10 molecules cut, 3 left out" in printed
    report = json.loads(output.with_suffix(".json").read_text())
    for radius in ("1", "2"):
        shares = [report["fragments"][number - 1]["coverage"][radius] for number in (1, 3, 10, 12)]
        assert " ".join(f"{share:8.1%}" for share in shares) in printed
        assert report["uncovered"][radius][0]["smiles"] in printed
    lines = output.read_text().splitlines()
    assert lines == [f"{f['smiles']} {f['name']}" for f in report["fragments"]] and len(lines) == 12
    assert report["failures"]["RDKit cannot parse it"] == {
        "count": 1,
        "examples": ["broken: RDKit cannot parse it (C1CC)"],
    }
    assert "element Na is not asked for" in report["failures"] or "several components" in str(report["failures"])
    assert report["uncovered"]["1"][0]["share"] > 0
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    # The same fragment has the same name in another library.
    again = make_fragments([library], tmp_path / "again.smi", num=3, radius=[2], seed=1, sample=5)
    names = {f["smiles"]: f["name"] for f in report["fragments"]}
    assert all(names.get(f["smiles"], f["name"]) == f["name"] for f in again["fragments"])


def test_what_cannot_be_done_is_one_clear_error(tmp_path, monkeypatch, capsys):
    library, output = tmp_path / "a.smi", tmp_path / "out.smi"
    library.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"a\.smi has no molecules"):
        make_fragments([library], output)
    library.write_text("C1 a\n")
    with pytest.raises(ValueError, match=r"no molecule of .*a\.smi can be used"):
        make_fragments([library], output)
    for option in ("num", "max_heavy_atoms", "workers", "sample"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1"):
            make_fragments([library], output, **{option: 0})
    with pytest.raises(ValueError, match="radius must be different numbers"):
        make_fragments([library], output, radius=[1, 1])
    with pytest.raises(ValueError, match="no element 'Xx'"):
        make_fragments([library], output, elements=["C", "Xx"])
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"a\.xlsx: not one of \.smi"):
        make_fragments([tmp_path / "a.xlsx"], output)
    (tmp_path / "a.csv").write_text("name,formula\nwater,H2O\n")
    with pytest.raises(ValueError, match=r"a\.csv: no column 'smiles', only name, formula"):
        make_fragments([tmp_path / "a.csv"], output)
    cut_off = tmp_path / "a.csv.gz"
    cut_off.write_bytes(gzip.compress(b"smiles\n" + b"CCO\n" * 500)[:-10])
    with pytest.raises(ValueError, match="damaged gzip file"):
        make_fragments([cut_off], output)
    (tmp_path / "b.csv").write_text('smiles\nCCO\nCCN\n"CCC\n' + "CCO\n" * 9)
    with pytest.raises(ValueError, match=r"b\.csv, from line 4 on: damaged CSV file"):
        make_fragments([tmp_path / "b.csv"], output)
    for name, what in (("out.json", "would be written over by the report"), (".", "is a folder")):
        with pytest.raises(ValueError, match=what):
            make_fragments([library], tmp_path / name)
    assert not output.exists()
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["fragments", str(library), "--output", str(output), "--num", "0"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "fragments: num must be at least 1, not 0\n"


def test_a_sample_is_fair_and_the_same_for_the_same_seed():
    library = records(*"C" * 100)
    assert sample_records(library, 10, 3) == sample_records(iter(library), 10, 3)
    assert len(set(sample_records(library, 10, 3))) == 10 and sample_records(library, 200, 0) == library
    times = Counter(record for seed in range(300) for record in sample_records(library, 10, seed))
    assert len(times) == 100 and min(times.values()) > 10 and max(times.values()) < 60
