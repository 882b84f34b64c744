"""From molecules as people have them to the padded tensors of the model."""

from collections.abc import Sequence

import numpy as np
from rdkit import Chem
from transformers import BatchFeature, ProcessorMixin

from .configuration_pcbridge import PCBridgeConfig
from .errors import InputError
from .graph_batch import GRAPH_KEYS, pad_graphs, pad_positions
from .molecular_graph import graph_from_mol
from .rdkit_molecules import atomic_numbers_of, mol_from_positions, mol_from_smiles
from .rdkit_structures import rdkit_structures

_EMBEDDING_SECONDS = 10.0  # per molecule


class PCBridgeProcessor(ProcessorMixin):
    """Turns SMILES, RDKit molecules or (atomic numbers, positions, charge) into the inputs of `PCBridgeModel`.

    Hydrogens are always explicit. Atoms are in the order of RDKit's `AddHs` of the SMILES, or of the given molecule.

    Args:
        supported_elements: atomic numbers that the model has learned; others are refused.
        supported_total_charges: total charges that it has learned; others are refused. None: all are taken.
        resonance_invariant: whether its graphs describe all resonance forms, see `graph_from_mol`.
    """

    _auto_class = "AutoProcessor"  # what is saved carries this code, for trust_remote_code=True

    def __init__(
        self,
        supported_elements: Sequence[int] = (1, 6, 7, 8, 9),
        supported_total_charges: Sequence[int] | None = None,
        resonance_invariant: bool = False,
    ):
        super().__init__()
        self.supported_elements = [int(z) for z in supported_elements]
        charges = supported_total_charges
        self.supported_total_charges = None if charges is None else sorted(int(charge) for charge in charges)
        self.resonance_invariant = bool(resonance_invariant)

    @classmethod
    def of_config(cls, config: PCBridgeConfig) -> "PCBridgeProcessor":
        """The processor of a model with this configuration."""
        return cls(config.supported_elements, config.supported_total_charges, config.resonance_invariant)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        # A folder that lacks a processor's file holds a model all the same, whose config says what its graphs are.
        fields, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if not fields:
            fields = cls.of_config(PCBridgeConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)).to_dict()
        return fields, unused

    @classmethod
    def get_attributes(cls) -> list[str]:
        return []  # no tokenizer or image processor inside

    def __call__(self, molecules, embed: bool = False) -> BatchFeature:
        """Featurise a list of molecules, or a single one.

        Args:
            molecules: each a SMILES string, an RDKit molecule (its first conformer gives positions), or a tuple
                (atomic numbers, positions in angstrom) or (atomic numbers, positions, total charge).
            embed: give molecules without positions those of RDKit, ETKDGv3 and MMFF94, which the methods of
                `predict_structure` that start from positions take.

        Returns:
            The tensors of `GraphBatch`, and `positions` (B, N, 3) when the molecules have them. Feed it to
            `predict_energy` or `predict_structure` with `**`.

        Raises:
            ValueError: naming the molecule and the reason: nothing given, unparsable, disconnected or radical input,
                an element or a total charge that the model has not learned, positions that are not finite or of the
                wrong shape, a single atom, implicit hydrogens beside a conformer, a drawing in place of a 3D structure,
                positions for some molecules only, or nothing that RDKit can embed.
        """
        is_one = is_single(molecules)
        molecules = [molecules] if is_one else list(molecules)
        if not molecules:
            raise InputError("no molecules given")
        graphs, positions = [], []
        for index, molecule in enumerate(molecules):
            try:
                mol, coordinates = self._read(molecule)
                if embed and coordinates is None:
                    coordinates = _embedded(mol)
                graphs.append(graph_from_mol(mol, self.resonance_invariant))
                self._check(mol, coordinates)
            except (TypeError, ValueError) as error:
                number = "the molecule" if is_one else f"molecule {index + 1} of {len(molecules)}"
                raise InputError(f"{number} ({describe(molecule)}): {error}") from error
            positions.append(coordinates)

        batch = pad_graphs(graphs)
        given = [coordinates for coordinates in positions if coordinates is not None]
        if given:
            if len(given) < len(graphs):
                having = [coordinates is not None for coordinates in positions]
                without = having.index(False)
                raise InputError(
                    f"molecule {having.index(True) + 1} has positions but molecule {without + 1} "
                    f"({describe(molecules[without])}) has none; give positions for all molecules or for none"
                )
            batch["positions"] = pad_positions(given)
        return BatchFeature(batch)

    @property
    def model_input_names(self) -> list[str]:
        return [*GRAPH_KEYS, "positions"]

    def _read(self, molecule) -> tuple[Chem.Mol, np.ndarray | None]:
        if isinstance(molecule, str):
            return mol_from_smiles(molecule), None
        if isinstance(molecule, Chem.Mol):
            molecule = Chem.Mol(molecule)
            Chem.SanitizeMol(molecule)  # one graph per molecule, however its aromatic bonds were written
            if molecule.GetNumConformers() == 0:
                return Chem.AddHs(molecule), None
            if any(atom.GetTotalNumHs() > 0 for atom in molecule.GetAtoms()):
                raise InputError(
                    "it has a conformer but implicit hydrogens; call Chem.AddHs(mol, addCoords=True) first"
                )
            if not molecule.GetConformer().Is3D() and molecule.GetNumAtoms() > 1:
                raise InputError("its conformer is a drawing in two dimensions; embed it, or remove it")
            return molecule, molecule.GetConformer().GetPositions().astype(np.float32)
        if isinstance(molecule, (tuple, list)) and len(molecule) in (2, 3):
            atomic_numbers = np.asarray(molecule[0])
            coordinates = np.asarray(molecule[1], dtype=np.float32)
            total_charge = 0 if len(molecule) == 2 else molecule[2]
            if len(atomic_numbers) == 0:
                raise InputError("the molecule has no atoms")
            if not np.issubdtype(atomic_numbers.dtype, np.number):
                raise InputError("atomic numbers must be numbers, such as 6 for carbon")
            if total_charge is None or total_charge != int(total_charge):
                raise InputError(f"the total charge must be a whole number, not {total_charge!r}")
            if coordinates.shape != (len(atomic_numbers), 3):
                raise InputError(f"positions have shape {coordinates.shape}, not ({len(atomic_numbers)}, 3)")
            if not np.isfinite(coordinates).all():
                raise InputError("positions are not all finite")
            self._check_elements(atomic_numbers)
            self._check_total_charge(int(total_charge))
            return mol_from_positions(atomic_numbers.tolist(), coordinates, int(total_charge)), coordinates
        raise InputError(
            "expected a SMILES string, an RDKit molecule or a tuple (atomic numbers, positions, total charge)"
        )

    def _check(self, mol: Chem.Mol, coordinates: np.ndarray | None) -> None:
        self._check_elements(atomic_numbers_of(mol))
        self._check_total_charge(Chem.GetFormalCharge(mol))
        if mol.GetNumAtoms() == 1:
            raise InputError("a single atom has no structure, and energies of atoms are not learned")
        if coordinates is not None and not np.isfinite(coordinates).all():
            raise InputError("positions are not all finite")

    def _check_elements(self, atomic_numbers) -> None:
        unsupported = sorted({int(z) for z in atomic_numbers} - set(self.supported_elements))
        if unsupported:
            table = Chem.GetPeriodicTable()
            symbols = ", ".join(table.GetElementSymbol(z) if 1 <= z <= 118 else f"Z={z}" for z in unsupported)
            supported = ", ".join(table.GetElementSymbol(z) for z in self.supported_elements)
            raise InputError(f"unsupported element {symbols}; this model knows {supported}")

    def _check_total_charge(self, charge: int) -> None:
        known = self.supported_total_charges
        if known is not None and charge not in known:
            charges = ", ".join(f"{value:+d}" if value else "0" for value in known)
            raise InputError(f"unsupported total charge {charge:+d}; this model knows {charges}")


def _embedded(mol: Chem.Mol) -> np.ndarray:
    structures = rdkit_structures(mol, 1, _EMBEDDING_SECONDS)
    if not structures:
        raise InputError("RDKit finds no conformer of it")
    return structures[0].GetConformer().GetPositions().astype(np.float32)


def is_single(molecules) -> bool:
    """Whether a processor input is one molecule; a tuple is, unless SMILES or RDKit molecules are in it."""
    if isinstance(molecules, tuple):
        return not any(isinstance(part, (str, Chem.Mol)) for part in molecules)
    return isinstance(molecules, (str, Chem.Mol))


def describe(molecule) -> str:
    """A short name of a processor input for messages."""
    if isinstance(molecule, str):
        return repr(molecule)
    if isinstance(molecule, Chem.Mol):
        return Chem.MolToSmiles(Chem.RemoveHs(molecule, sanitize=False))
    if isinstance(molecule, (tuple, list)) and len(molecule) > 0:
        return f"atomic numbers {molecule[0]}"
    return type(molecule).__name__
