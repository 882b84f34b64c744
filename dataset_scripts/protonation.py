"""The charged form of a molecule in water at pH 7.4, by a few rules: enough for charged groups to occur in data.

Carboxylic, sulfonic, phosphoric acids, tetrazoles and acylsulfonamides lose a proton; aliphatic amines, amidines,
guanidines and aminopyridines gain one, if no other gained charge is near. Not a prediction of pKa.
"""

from rdkit import Chem

# The first atom of each match gains or loses the proton.
_ACIDS = tuple(
    Chem.MolFromSmarts(smarts)
    for smarts in (
        "[OX2H1;$(O-C(=O)-[#6]),$(O-[CX3H1]=O)]",
        "[OX2H1;$(O-S=O)]",
        "[OX2H1;$(O-P=O);!$(O-P-[O-])]",
        "[nH1;$(n1nnnc1),$(n1nncn1)]",
        "[NX3H1;$(N(C=O)S(=O)=O)]",
    )
)
_BASES = tuple(
    Chem.MolFromSmarts(smarts)
    for smarts in (
        "[NX2;$(N=C[NX3]);!$(N-[!#6]);!$(N-C=[O,S,N]);!$(N=C[NX3]-[!#6]);!$(N=C-N-C=[O,S]);!$(N-C#N)]",
        "[NX3;!$(N-[!#6;!#1]);!$(N-[c,n]);!$(N-C=*);!$(N-C#*);!$(N-C(F)F)]",
        "[nX2;r6;$(n1aaaac1-[NX3;H2,$(N(C)C)]),$(n1aac([NX3;!$(N-C=O)])aa1)]",
    )
)
_LEAST_DISTANCE = 4  # bonds between two cations; a piperazine takes one proton


def charged_form(mol: Chem.Mol) -> Chem.Mol:
    """The molecule (hydrogens implicit) with the protons that it has at pH 7.4, by the rules above; a new one."""
    charged = Chem.RWMol(mol)
    distances = Chem.GetDistanceMatrix(mol)
    cations = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetFormalCharge() > 0]
    phosphorus_done: set[int] = set()
    for pattern in _ACIDS:
        for number, *_ in mol.GetSubstructMatches(pattern):
            atom = charged.GetAtomWithIdx(number)
            # Phosphates lose their second proton near pH 7: they keep it here.
            centres = {other.GetIdx() for other in atom.GetNeighbors() if other.GetAtomicNum() == 15}
            if atom.GetFormalCharge() == 0 and not centres & phosphorus_done:
                phosphorus_done |= centres
                _move_proton(atom, -1)
    for pattern in _BASES:
        for number, *_ in mol.GetSubstructMatches(pattern):
            atom = charged.GetAtomWithIdx(number)
            near = any(distances[number, other] < _LEAST_DISTANCE for other in cations)
            if atom.GetFormalCharge() == 0 and not near:
                cations.append(number)
                _move_proton(atom, +1)
    Chem.SanitizeMol(charged)
    return charged.GetMol()


def _move_proton(atom: Chem.Atom, gained: int) -> None:
    atom.SetNumExplicitHs(atom.GetTotalNumHs() + gained)
    atom.SetNoImplicit(True)
    atom.SetFormalCharge(atom.GetFormalCharge() + gained)
