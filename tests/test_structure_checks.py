"""What the checks of structures accept and refuse: real minima, and each way of breaking one."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolTransforms

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import mol_from_row
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.rdkit_structures import etkdg_conformers
from modeling_pcbridge.structure_checks import StructureChecks


def embedded(smiles: str) -> Chem.Mol:
    mol = mol_from_smiles(smiles)
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    rdForceFieldHelpers.MMFFOptimizeMolecule(mol)
    return mol


def faults(mol: Chem.Mol, of: str | None = None, resonance_invariant: bool = False) -> str:
    """Of the structure of `mol`, as one of its own graph or of another SMILES with the same atoms."""
    graph = graph_from_mol(mol if of is None else mol_from_smiles(of), resonance_invariant)
    return "; ".join(StructureChecks(graph).faults(mol.GetConformer().GetPositions()))


@pytest.mark.parametrize("resonance_invariant", [False, True])
@pytest.mark.parametrize("name", ["dft_equilibrium", "pm6", "fragments"])
def test_minima_of_quantum_chemistry_are_sound(name, resonance_invariant):
    rows = [row for row in load_bundled(name, "test") if row["equilibrium_level_of_theory"] is not None]
    assert len(rows) >= 20
    for row in rows:
        graph = graph_from_mol(mol_from_row(row), resonance_invariant)
        assert StructureChecks(graph).faults(np.array(row["positions"])) == [], row["smiles"]


@pytest.mark.parametrize(
    "pair",
    [
        ("CC/C=C\\C", "CC/C=C/C"),
        ("C/N=N\\C", "C/N=N/C"),
        ("C[C@H](N)CO", "C[C@@H](N)CO"),
        ("C[S@](=O)CC", "C[S@@](=O)CC"),
        ("C/C=C/C=C\\C", "C/C=C\\C=C\\C"),
        ("C/C=C/C(=O)[O-]", "C/C=C\\C(=O)[O-]"),
    ],
)
def test_each_isomer_is_told_from_the_other(pair):
    for resonance_invariant in (False, True):
        for smiles, other in (pair, pair[::-1]):
            mol = embedded(smiles)
            assert faults(mol, smiles, resonance_invariant) == ""
            found = faults(mol, other, resonance_invariant)
            assert "handedness" in found or "E/Z mark" in found


def twisted(smiles: str, torsion: tuple[int, int, int, int], by: float) -> Chem.Mol:
    mol = embedded(smiles)
    conformer = mol.GetConformer()
    rdMolTransforms.SetDihedralDeg(conformer, *torsion, rdMolTransforms.GetDihedralDeg(conformer, *torsion) + by)
    return mol


@pytest.mark.parametrize("smiles", ["C[P@](CC)c1ccccc1", "C[N@]1C[C@@H]1C", "C[S@](=O)CC", "C[S@+](CC)CCC"])
def test_centres_with_a_lone_pair_have_a_handedness(smiles):
    mol = mol_from_smiles(smiles)
    graph = graph_from_mol(mol)
    assert len(graph.stereo_quadruples) >= 1
    [positions] = etkdg_conformers(mol, 1, seed=0)
    checks = StructureChecks(graph)
    assert checks.faults(positions) == []
    assert "has the wrong handedness" in checks.faults(-positions)[0]


# A biaryl with four ortho substituents, one bond of the axis drawn upwards (wU) or downwards (wD).
BIARYL = (
    "Cc1cccc(Cl)c1-c1c(F)cccc1Br |(0.75,-2.5981,;1.5,-1.299,;3,-1.299,;3.75,0,;3,1.299,;1.5,1.299,;0.75,2.5981,;"
    "0.75,0,;-0.75,0,;-1.5,1.299,;-0.75,2.5981,;-3,1.299,;-3.75,0,;-3,-1.299,;-1.5,-1.299,;-0.75,-2.5981,),{}:7.6|"
)


def test_atropisomers_have_a_handedness():
    """ETKDG honours the mark by code of its own."""
    one, other = (mol_from_smiles(BIARYL.format(wedge)) for wedge in ("wU", "wD"))
    order = np.random.default_rng(0).permutation(one.GetNumAtoms()).tolist()
    for mol in (one, other, Chem.RenumberAtoms(one, order)):
        checks = StructureChecks(graph_from_mol(mol))
        [positions] = etkdg_conformers(mol, 1, seed=0)
        assert checks.faults(positions) == []
        assert "the stereo centre or axis" in checks.faults(-positions)[0]
    assert "wrong handedness" in StructureChecks(graph_from_mol(other)).faults(etkdg_conformers(one, 1, seed=0)[0])[0]


@pytest.mark.parametrize("resonance_invariant", [False, True])
@pytest.mark.parametrize(
    ("smiles", "torsion", "what"),
    [("CC=CC", (0, 1, 2, 3), "double bond"), ("CC(=O)NC", (0, 1, 3, 4), "amide bond")],
)
def test_twisted_bonds_are_found(smiles, torsion, what, resonance_invariant):
    assert faults(twisted(smiles, torsion, 15), resonance_invariant=resonance_invariant) == ""
    found = faults(twisted(smiles, torsion, 80), resonance_invariant=resonance_invariant)
    assert f"the {what}" in found and "twisted" in found


@pytest.mark.parametrize("resonance_invariant", [False, True])
def test_flat_allenes_are_found(resonance_invariant):
    allene = embedded("C=C=C")
    positions = allene.GetConformer().GetPositions()
    assert faults(allene, resonance_invariant=resonance_invariant) == ""
    axis = positions[2] - positions[0]
    axis /= np.linalg.norm(axis)
    for atom in (5, 6):  # the hydrogens of the other end, turned by 90 degrees about the axis
        arm = positions[atom] - positions[2]
        turned = np.cross(axis, arm) + axis * (axis @ arm)
        allene.GetConformer().SetAtomPosition(atom, positions[2] + turned)
    assert "cumulene C0-C1-C2 is twisted by 90" in faults(allene, resonance_invariant=resonance_invariant)


@pytest.mark.parametrize("resonance_invariant", [False, True])
@pytest.mark.parametrize(
    "smiles",
    ["c1ccccc1", "c1cc[nH]c1", "c1ccoc1", "c1cnc[nH]1", "c1c[nH+]c[nH]1", "O=c1cccc[nH]1", "O=c1cc[nH]c(=O)[nH]1"],
)
def test_folded_aromatic_rings_are_found(smiles, resonance_invariant):
    """RDKit's aromatic bonds are double and single ones in a resonance-invariant graph."""
    mol = embedded(smiles)
    assert faults(mol, resonance_invariant=resonance_invariant) == ""
    conformer, [ring] = mol.GetConformer(), mol.GetRingInfo().AtomRings()
    positions = conformer.GetPositions()
    normal = np.linalg.svd(positions - positions.mean(0))[2][2]
    for place, index in enumerate(ring):  # up and down in turn, with what hangs there
        atom = mol.GetAtomWithIdx(index)
        for moved in (atom, *(other for other in atom.GetNeighbors() if other.GetDegree() == 1)):
            shift = 0.35 * (-1) ** place * normal
            conformer.SetAtomPosition(moved.GetIdx(), positions[moved.GetIdx()] + shift)
    assert "the aromatic ring of" in faults(mol, resonance_invariant=resonance_invariant)


@pytest.mark.parametrize(
    ("smiles", "positions", "fault"),
    [
        ("O", [[0, 0, 0], [0.96, 0, 0], [-0.96, 0, 0]], "the angle H1-O0-H2 is 180 degrees"),
        ("N", [[0, 0, 0], [1.01, 0, 0], [-0.505, 0.875, 0], [-0.505, -0.875, 0]], "N0 is flat"),
        ("P", [[0, 0, 0], [1.4, 0, 0], [-0.7, 1.212, 0], [-0.7, -1.212, 0]], "P0 is flat"),
    ],
)
def test_what_symmetry_holds_at_a_saddle_point_is_found(smiles, positions, fault):
    assert StructureChecks(graph_from_mol(mol_from_smiles(smiles))).faults(np.array(positions)) == [fault]


@pytest.mark.parametrize("resonance_invariant", [False, True])
@pytest.mark.parametrize("smiles", ["C1=CSc2ccccc2S1", "c1ccc2c(c1)Nc1ccccc1S2"])
def test_rings_that_fold_by_nature_are_sound(smiles, resonance_invariant):
    assert faults(embedded(smiles), resonance_invariant=resonance_invariant) == ""


@pytest.mark.parametrize("resonance_invariant", [False, True])
@pytest.mark.parametrize("smiles", ["CN=[N+]=[N-]", "CC=[N+]=[N-]", "CSC#N", "C[N+]#[C-]", "CC#N", "C=C=C"])
def test_bent_sp_atoms_are_found(smiles, resonance_invariant):
    mol = embedded(smiles)
    assert faults(mol, resonance_invariant=resonance_invariant) == ""
    [(i, j, k), *_] = [m for m in mol.GetSubstructMatches(Chem.MolFromSmarts("[*:1]~[C,N;D2:2]~[*:3]")) if m[1] != 0][
        -1:
    ]
    rdMolTransforms.SetAngleDeg(mol.GetConformer(), i, j, k, 120.0)
    assert "is 120 degrees" in faults(mol, resonance_invariant=resonance_invariant)


def test_water_of_27_degrees_and_broken_bonds_are_found():
    water = np.array([[0, 0, 0], [0.96, 0, 0], [0.96 * np.cos(np.radians(27)), 0.96 * np.sin(np.radians(27)), 0]])
    checks = StructureChecks(graph_from_mol(mol_from_smiles("O")))
    assert checks.faults(water) == ["H1 and H2 are too close (0.45 angstrom)"]
    assert "the bond O0-H1 is too long" in checks.faults(water * 2)[0]
    assert checks.faults(water * np.nan) == ["positions are not finite"]


@pytest.mark.parametrize(
    "smiles", ["C12C3C4C1C5C2C3C45", "C1C2CC1C2", "N#CC#N", "[O-][n+]1ccccc1", "O=C1CCN1", "CN1CC1=O"]
)
def test_strained_molecules_are_sound(smiles):
    assert faults(embedded(smiles)) == ""
