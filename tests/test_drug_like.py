"""The drug-like sets: charged forms, what is excluded in every form, the order of labelling, the whole selection."""

import gzip
import json
from pathlib import Path

import pytest
from rdkit import Chem

from dataset_scripts.drug_like import Exclusion, label_order, main, select
from dataset_scripts.fragment_choice import choose_fragments
from dataset_scripts.library import LibraryRecord, constitution_hash
from dataset_scripts.library_counts import count_library
from dataset_scripts.protonation import charged_form

RAW_LABELS = Path(__file__).parents[1] / "dataset_scripts" / "raw_labels"


@pytest.mark.parametrize(
    ("drawn", "charged"),
    [
        ("CC(=O)O", "CC(=O)[O-]"),
        ("OC=O", "O=C[O-]"),
        ("CC(=O)OC", "COC(C)=O"),
        ("CS(=O)(=O)O", "CS(=O)(=O)[O-]"),
        ("COP(=O)(O)O", "COP(=O)([O-])O"),
        ("Cc1nnn[nH]1", "Cc1nnn[n-]1"),
        ("CC(=O)NS(C)(=O)=O", "CC(=O)[N-]S(C)(=O)=O"),
        ("CCN", "CC[NH3+]"),
        ("CN(C)C", "C[NH+](C)C"),
        ("CNC(C)=O", "CNC(C)=O"),
        ("Nc1ccccc1", "Nc1ccccc1"),
        ("CNS(C)(=O)=O", "CNS(C)(=O)=O"),
        ("CN1CCN(C)CC1", "CN1CC[NH+](C)CC1"),
        ("NCCCCN", "[NH3+]CCCC[NH3+]"),
        ("CNC(N)=N", "CNC(N)=[NH2+]"),
        ("CC(=O)NC(N)=N", "CC(=O)NC(=N)N"),
        ("Nc1ccncc1", "Nc1cc[nH+]cc1"),
        ("c1ccncc1", "c1ccncc1"),
        ("c1c[nH]cn1", "c1c[nH]cn1"),
        ("NCC(=O)O", "[NH3+]CC(=O)[O-]"),
        ("CONC", "CNOC"),
        ("CNN", "CNN"),
        ("C=CN", "C=CN"),
        ("N#CN", "N#CN"),
        ("N[C@@H](C)C(=O)O", "C[C@H]([NH3+])C(=O)[O-]"),
    ],
)
def test_charged_forms(drawn, charged):
    mol = Chem.MolFromSmiles(drawn)
    assert Chem.MolToSmiles(charged_form(mol)) == Chem.CanonSmiles(charged)
    assert Chem.MolToSmiles(mol) == Chem.CanonSmiles(drawn)  # not changed itself
    assert Chem.MolToSmiles(charged_form(charged_form(mol))) == Chem.CanonSmiles(charged)


def test_what_is_excluded_is_so_in_every_form(tmp_path):
    listed = tmp_path / "hashes.txt"
    listed.write_text(constitution_hash(Chem.MolFromSmiles("N[C@@H](C)C(=O)O")) + "\n")
    exclusion = Exclusion.of_file(listed)
    for smiles in ("CC(N)C(=O)O", "C[C@@H](N)C(=O)O", "C[C@H]([NH3+])C(=O)[O-]", "CC(N)C(=O)[O-]"):
        assert Chem.MolFromSmiles(smiles) in exclusion
    assert Chem.MolFromSmiles("CC(N)C=O") not in exclusion
    assert Chem.MolFromSmiles("CC(N)C(=O)O") not in Exclusion.of_file(None)
    listed.write_text("CC(N)C(=O)O\n")
    with pytest.raises(ValueError, match="'CC\\(N\\)C\\(=O\\)O' is no SHA-256"):
        Exclusion.of_file(listed)


def test_small_and_frequent_fragments_are_labelled_first():
    library = [LibraryRecord(str(i), smiles) for i, smiles in enumerate(["CCc1ccccc1"] * 6 + ["CC(=O)NC1CCCCC1"] * 9)]
    counts = count_library(library, 9, (1, 2))
    chosen = choose_fragments(counts, 20)
    order = label_order(chosen, counts, Exclusion([]), 30)
    assert len(set(order)) == len(order) and {fragment.smiles for fragment in chosen} <= set(order)
    # The first of all is not the one that covers most, which is the largest.
    assert chosen[0].smiles in order[:6] and order[0] != chosen[0].smiles
    assert order.index("C") < order.index("CC") < order.index("O=CNC1CCCCC1") + 10
    without = label_order(chosen, counts, Exclusion([constitution_hash(Chem.MolFromSmiles("CC"))]), 30)
    assert [smiles for smiles in order if smiles != "CC"] == without


def test_a_library_without_a_good_molecule_is_one_clear_error(tmp_path, monkeypatch, capsys, caplog):
    library, output = tmp_path / "l.smi", tmp_path / "out"
    library.write_text("C[Si](C)(C)C tms\nOB(O)c1ccccc1\nC[Si](C)C\n")
    monkeypatch.setattr("sys.argv", ["drug_like", "--library", str(library), "--output", str(output)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == f"drug_like: no molecule of {library} can be used\n"
    assert "left out 2 molecules: element Si is not asked for (" in caplog.text
    assert "left out 1 molecules: element B is not asked for (l.smi, molecule 2: " in caplog.text
    assert not output.exists()


def test_the_selection(tmp_path):
    library, drugs, first, listed, output = (tmp_path / name for name in ("l.csv.gz", "d.smi", "f.smi", "h", "out"))
    smiles = [f"{'C' * n}NC(=O)c1ccc(O)cc1" for n in range(1, 30)]
    library.write_bytes(gzip.compress("\n".join(["SMILES", *smiles]).encode()))
    drugs.write_text("CC(C)Cc1ccc(cc1)C(C)C(=O)O ibuprofen\n[Na+].CC(C)NCC(O)COc1cccc2ccccc12 salt\nC1 bad\nO=O o\n")
    first.write_text("O water\nCC ethane\n")
    listed.write_text(constitution_hash(Chem.MolFromSmiles("CC(C)Cc1ccc(cc1)C(C)C(=O)O")))
    summary = select(library, [drugs], output, first=first, exclude=listed, sample=20, num=15)
    written = {path.name: [line.split() for line in path.read_text().splitlines()] for path in output.glob("*.smi")}
    assert {name.removesuffix(".smi"): len(lines) for name, lines in written.items()} == {
        key: count for key, count in summary.items() if key != "records_left_out"
    }
    assert summary["records_left_out"] == 1
    kept = {Chem.CanonSmiles(line[0]) for line in written["library.smi"]}
    assert Chem.CanonSmiles("CC(C)NCC(O)COc1cccc2ccccc12") in kept  # both forms of what is not excluded
    assert Chem.CanonSmiles("CC(C)[NH2+]CC(O)COc1cccc2ccccc12") in kept
    assert not any("Cc1ccc(C(C)C(=O)" in smiles for smiles in kept)
    assert [line[0] for line in written["to_label.smi"]][:2] == ["O", "CC"]
    assert ["O=O"] not in [line[:1] for line in written["to_label.smi"]]
    sizes = [Chem.MolFromSmiles(line[0]).GetNumHeavyAtoms() for line in written["molecules.smi"]]
    assert min(sizes) >= 8 and max(sizes) <= 45
    assert json.loads((output / "fragments.json").read_text())["molecules"] == len(kept)
    before = {path.name: path.read_bytes() for path in output.glob("*.smi")}
    assert select(library, [drugs], output, first=first, exclude=listed, sample=20, num=15) == summary
    assert {path.name: path.read_bytes() for path in output.glob("*.smi")} == before


def test_the_small_molecules_are_what_they_are_called():
    lines = [line.split() for line in (RAW_LABELS / "small_molecules.smi").read_text().splitlines() if line[0] != "#"]
    mols = [Chem.MolFromSmiles(smiles) for smiles, _ in lines]
    assert len({Chem.MolToSmiles(mol) for mol in mols}) == len({name for _, name in lines}) == len(lines) > 200
    assert all(atom.GetNumRadicalElectrons() == 0 for mol in mols for atom in mol.GetAtoms())
    elements = {atom.GetSymbol() for mol in mols for atom in mol.GetAtoms()}
    assert elements == {"H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I"}
    assert sum(mol.GetNumHeavyAtoms() <= 3 for mol in mols) > 130
    assert sum(Chem.GetFormalCharge(mol) != 0 for mol in mols) > 40
    others = [
        Chem.MolFromSmiles(line.split()[0]) for line in (RAW_LABELS / "unusual_molecules.smi").read_text().splitlines()
    ]
    assert {mol.GetNumHeavyAtoms() for mol in others} == {2, 3} and not any(
        atom.GetNumRadicalElectrons() for mol in others for atom in mol.GetAtoms()
    )
    assert len({Chem.MolToSmiles(mol) for mol in [*mols, *others]}) == len(mols) + len(others)
