"""The one row format of every data source: what a row holds, in which units, and what may be absent."""

from datasets import Features, List, Value

MMFF94 = "MMFF94"
PM6 = "PM6"
B3LYP_6_31GD = "B3LYP/6-31G*"
B3LYP_6_31G2DFP = "B3LYP/6-31G(2df,p)"
GFN2_XTB = "GFN2-xTB"
WB97M_D3BJ_DEF2_TZVPPD = "wB97M-D3(BJ)/def2-TZVPPD"

_VECTORS = List(List(Value("float32"), length=3))

FEATURES = Features(
    {
        # Source and number within it, e.g. "qm9_000042".
        "molecule_id": Value("string"),
        # Canonical isomeric SMILES without explicit hydrogens: for people, similarity and de-duplication.
        "smiles": Value("string"),
        # SMILES with every atom, hydrogens included, numbered 1..N in the order of the arrays below.
        "mapped_smiles": Value("string"),
        "atomic_numbers": List(Value("uint8")),
        # Elementary charges.
        "total_charge": Value("int8"),
        # (N, 3), angstrom.
        "positions": _VECTORS,
        # The method whose minimum `positions` is; null when the structure is not a minimum. Only rows with a
        # value here may train the structure decoder.
        "equilibrium_level_of_theory": Value("string"),
        # Total electronic energy at `positions`, eV; null when not computed.
        "energy": Value("float64"),
        # (N, 3), eV/angstrom, minus the gradient of `energy`; null when not computed.
        "forces": _VECTORS,
        # The method of `energy` and `forces`; null when both are absent.
        "energy_level_of_theory": Value("string"),
    }
)
