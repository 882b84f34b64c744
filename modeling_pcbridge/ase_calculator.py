"""PCBridge as an ASE calculator: geometry optimisation, molecular dynamics, and whatever else takes forces."""

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from rdkit import Chem

from .beyond_training import warn_if_beyond
from .errors import InputError
from .graph_batch import GraphBatch
from .modeling_pcbridge import PCBridgeModel
from .processing_pcbridge import PCBridgeProcessor, describe
from .rdkit_molecules import check_structure_fits, mol_from_positions, mol_from_smiles


class PCBridgeCalculator(Calculator):
    """Energy in eV and forces in eV/angstrom of one molecule in vacuum.

        atoms.calc = PCBridgeCalculator("checkpoints/drug_like", molecule="CCO")

    The model needs to know which atoms are bonded. A calculator is for one molecule and keeps its bonds, so none can
    break or form on the way. A molecule that is beyond the training data brings a warning.

    Args:
        model: a model, or a checkpoint folder or hub name.
        molecule: SMILES or RDKit molecule whose atoms, hydrogens included, are in the order of the ASE atoms; by
            default bonds and stereo marks are perceived from the first positions.
        total_charge: elementary charges, for perceiving bonds.
        device: where to compute; by default where the model is.
        allow_unlearned_forces: compute also with a model that has learned no forces.
        level_of_theory: of energy and forces, one of the model's `config.energy_levels_of_theory`; by default the
            first. `calculator.level_of_theory` names it.

    Raises:
        ValueError: the model has not learned the level of theory, or no forces at all; or when computing: no bonds fit
            the positions or were found in time, the atoms are not those of `molecule` or of the first computation, the
            first positions do not fit the bonds of `molecule`, an element is not supported, or the atoms are periodic.
        PropertyNotImplementedError: any property but energy and forces was asked for.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012, as ASE declares it

    def __init__(
        self,
        model: PCBridgeModel | str,
        molecule: str | Chem.Mol | None = None,
        total_charge: int = 0,
        device: str | torch.device | None = None,
        level_of_theory: str | None = None,
        allow_unlearned_forces: bool = False,
    ):
        super().__init__()
        self.model = model if isinstance(model, PCBridgeModel) else PCBridgeModel.from_pretrained(model)
        if not allow_unlearned_forces:
            self.model.config.check_forces_are_learned("an ASE calculator")
        self.model.to(device or self.model.device).eval()
        self.level_of_theory = level_of_theory or self.model.config.energy_level_of_theory
        self.model.config.find_level_of_theory(self.level_of_theory)
        self.total_charge = total_charge
        self._graph: GraphBatch | None = None
        self._unchecked: Chem.Mol | None = None  # a molecule whose bonds no positions have been compared with
        if molecule is not None:
            self._unchecked = mol_from_smiles(molecule) if isinstance(molecule, str) else Chem.AddHs(molecule)
            self._graph = self._graph_of(self._unchecked)

    def calculate(self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError("there are no atoms to compute")
        if atoms.pbc.any():
            raise InputError("the atoms are periodic; PCBridge describes single molecules in vacuum")
        if self._graph is None:
            mol = mol_from_positions(atoms.numbers.tolist(), atoms.positions, self.total_charge)
            self._graph = self._graph_of(mol)
        numbers = self._graph.atomic_numbers[0].tolist()
        if atoms.numbers.tolist() != numbers:
            raise InputError(
                f"the atoms are {atoms.symbols}, but this calculator is for atomic numbers {numbers} in this order; "
                "make a calculator for each molecule"
            )
        if self._unchecked is not None:
            try:
                check_structure_fits(self._unchecked, atoms.positions)
            except ValueError as error:
                raise InputError(f"the atoms do not fit the molecule in its order: {error}") from error
            self._unchecked = None  # later structures may be stretched on purpose
        positions = torch.as_tensor(atoms.positions, device=self.model.device)[None]
        energies, forces = self.model.energy_and_forces(self._graph, positions, self.level_of_theory)
        energy = energies.item()
        self.results = {"energy": energy, "free_energy": energy, "forces": forces[0].double().cpu().numpy()}

    def get_stress(self, atoms=None):
        raise PropertyNotImplementedError("PCBridge describes single molecules in vacuum: no cell, hence no stress")

    def _graph_of(self, mol: Chem.Mol) -> GraphBatch:
        mol = Chem.Mol(mol)
        mol.RemoveAllConformers()  # the ASE atoms have the positions
        graph = PCBridgeProcessor.of_config(self.model.config)(mol)
        [beyond] = self.model.beyond_training(**graph)
        warn_if_beyond(describe(mol), beyond)
        return GraphBatch(**{key: tensor.to(self.model.device) for key, tensor in graph.items()})
