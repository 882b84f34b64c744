"""52 molecules that people try first: each gets a sound structure, or a reason; none ends in a traceback."""

from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.structure_checks import StructureChecks
from pcbridge.app.command_line import main

FILE = Path(__file__).parent / "data" / "real_molecules.smi"
MOLECULES = dict(reversed(line.split()) for line in FILE.read_text().splitlines() if not line.startswith("#"))
FEW = ["water", "Z-2-pentene", "Z-azomethane", "allene", "DMF", "S-2-butanol", "thiophene", "bicyclopentane"]
# What the smaller models have elements for.
ELEMENTS = "HCNOF"
FROM_NOISE = ["--model", "consistency", "--method", "ddim"]


def predicted(names: list[str], folder: Path, capsys, *options: str) -> tuple[dict[str, Chem.Mol], list[str]]:
    """The first structure of each molecule that came out, and what was said."""
    path, output = folder / "in.smi", folder / "out.sdf"
    path.write_text("".join(f"{MOLECULES[name]} {name}\n" for name in names))
    code = main(["predict", str(path), "-o", str(output), *options])
    said = capsys.readouterr().err.splitlines()
    records = Chem.SDMolSupplier(str(output), removeHs=False) if output.stat().st_size else []
    mols = {mol.GetProp("_Name"): mol for mol in records}
    assert code == (0 if len(mols) == len(names) else 1)
    return mols, said


def check(names: list[str], mols: dict[str, Chem.Mol], said: list[str]) -> None:
    for name in names:
        smiles = MOLECULES[name]
        mol = mol_from_smiles(smiles)
        if name in mols:
            structure = mols[name]
            graph = graph_from_mol(mol)
            assert StructureChecks(graph).faults(structure.GetConformer().GetPositions()) == [], name
            Chem.AssignStereochemistryFrom3D(structure)
            for atom, drawn in zip(structure.GetAtoms(), mol.GetAtoms(), strict=True):
                if drawn.GetChiralTag() == Chem.ChiralType.CHI_UNSPECIFIED:  # the phosphorus of ATP, any hand will do
                    atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
            assert Chem.MolToSmiles(Chem.RemoveHs(structure)) == Chem.MolToSmiles(Chem.RemoveHs(mol)), name
        else:
            (reason,) = [line for line in said if f": {smiles}: " in line]
            unknown = any(atom.GetSymbol() not in ELEMENTS for atom in mol.GetAtoms())
            assert "unsupported element" in reason if unknown else "no sound structure (" in reason


def test_a_few_of_them(tmp_path, capsys):
    for options, missing in ((FROM_NOISE, {"thiophene"}), (["--num_conformers", "2"], set())):
        mols, said = predicted(FEW, tmp_path, capsys, *options)
        check(FEW, mols, said)
        assert set(FEW) - set(mols) == missing  # what has sulfur


def test_what_rdkit_cannot_start_is_drawn_from_noise(tmp_path, capsys):
    """MMFF94 lets allenes turn, which a small step does not turn back."""
    mols, said = predicted(["2,3-pentadiene"], tmp_path, capsys, "--num_conformers", "1")
    check(["2,3-pentadiene"], mols, said)
    assert mols["2,3-pentadiene"].GetProp("origin") == "PCBridge, ddim"


def test_an_energy_is_no_reason_to_come_first(tmp_path, capsys):
    """The E isomer has the lower energy, and this model prefers it."""
    mols, said = predicted(["Z-2-pentene"], tmp_path, capsys, *FROM_NOISE, "--num_samples", "4", "--rank_by", "energy")
    check(["Z-2-pentene"], mols, said)
    assert len(mols) == 1


def test_a_molecule_without_a_sound_structure_fails_with_its_reason(tmp_path, capsys):
    mols, said = predicted(["hydrogen"], tmp_path, capsys, *FROM_NOISE)
    assert not mols and "no sound structure (PCBridge, ddim: the bond H0-H1 is too long" in "".join(said)
    assert "MMFF94 has no parameters, refined by PCBridge: the bond" in "".join(said)


@pytest.mark.parametrize("resonance_invariant", [False, True])
def test_their_structures_by_rdkit_are_sound(resonance_invariant):
    """The checks ask nothing that a force field does not give, of ten elements and ions."""
    for name, smiles in MOLECULES.items():
        if name in ("erythromycin", "atorvastatin") or "C=C=C" in smiles:  # slow; and MMFF94 lets allenes turn
            continue
        mol = mol_from_smiles(smiles)
        assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
        rdForceFieldHelpers.MMFFOptimizeMolecule(mol)
        checks = StructureChecks(graph_from_mol(mol, resonance_invariant))
        assert checks.faults(mol.GetConformer().GetPositions()) == [], name


@pytest.mark.slow
@pytest.mark.parametrize("model", ["drug_like", "consistency", "multi-task", "qm9"])
def test_all_of_them(model, tmp_path, capsys):
    assert len(MOLECULES) == 52
    options = ["--num_conformers", "5"] if model == "drug_like" else ["--method", "ddim"]
    mols, said = predicted(list(MOLECULES), tmp_path, capsys, "--model", model, *options)
    check(list(MOLECULES), mols, said)
    if model == "drug_like":
        assert set(mols) == set(MOLECULES)
    assert "Traceback" not in "".join(said)
