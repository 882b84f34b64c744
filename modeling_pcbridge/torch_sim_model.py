"""PCBridge as a model of torch-sim, whose optimizers, integrators and autobatching then run on our energies.

    from torch_sim import optimize
    from torch_sim.optimizers import fire
    model = PCBridgeTorchSimModel("checkpoints/drug_like", processor(molecules))
    final = optimize(model.initial_state(), model, optimizer=fire, autobatcher=True)

To relax molecules `PCBridgeModel.relax_structure` needs a quarter of FIRE's evaluations (18 and 80 from
DFT minima of small molecules). Written for torch-sim-atomistic 0.3.
"""

from collections.abc import Mapping

import torch
from rdkit import Chem
from torch import Tensor
from torch_sim.models.interface import ModelInterface  # type: ignore[import-not-found, unused-ignore]
from torch_sim.state import SimState  # type: ignore[import-not-found, unused-ignore]

from .beyond_training import warn_if_beyond
from .errors import InputError
from .graph_batch import GRAPH_KEYS, GraphBatch
from .modeling_pcbridge import PCBridgeModel


class PCBridgeTorchSimModel(ModelInterface):
    """Total electronic energies, eV, and forces, eV/angstrom, of the molecules it was made for, in any selection.

    The model needs to know which atoms are bonded, which a torch-sim state does not say, and torch-sim selects, joins
    and reorders systems as they converge. So the molecules are given once, and each system carries its number in what
    a molecule in vacuum has no use for: its cell is (number + 1) times the unit matrix. Molecules that are beyond the
    training data bring a warning each.

    Args:
        model: a model, or a checkpoint folder or hub name.
        inputs: what `PCBridgeProcessor` returns.
        allow_unlearned_forces: compute also with a model that has learned no forces.
        dtype: of states. Total energies need float64, whatever the weights are.
    """

    def __init__(
        self,
        model: PCBridgeModel | str,
        inputs: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float64,
        allow_unlearned_forces: bool = False,
    ) -> None:
        super().__init__()
        self.model = (model if isinstance(model, PCBridgeModel) else PCBridgeModel.from_pretrained(model)).eval()
        if not allow_unlearned_forces:
            self.model.config.check_forces_are_learned("torch-sim")
        self._device = self.model.device
        self._dtype = dtype
        self._compute_forces = True
        self._compute_stress = False
        self._memory_scales_with = "n_atoms"  # its density is one of a crystal
        self._graph = GraphBatch(**{key: inputs[key].to(self._device) for key in GRAPH_KEYS})
        self._positions = inputs.get("positions")
        for row, beyond in enumerate(self.model.beyond_training(**self._graph.inputs)):
            warn_if_beyond(f"molecule {row + 1} of {len(self._graph.atomic_numbers)}", beyond)

    def initial_state(self, positions: Tensor | None = None) -> SimState:
        """All molecules, as torch-sim takes them.

        Args:
            positions: (B, N, 3), angstrom; by default those that the molecules came with.

        Raises:
            ValueError: no positions, or not (B, N, 3).
        """
        positions = self._positions if positions is None else positions
        if positions is None:
            raise InputError("there are no positions; give the processor molecules that have a conformer")
        self._graph.check_positions(positions)
        mask = self._graph.atom_mask
        numbers = self._graph.atomic_numbers[mask]
        table = Chem.GetPeriodicTable()
        masses = torch.tensor([table.GetAtomicWeight(z) for z in numbers.tolist()], dtype=self._dtype)
        labels = torch.arange(1, len(mask) + 1, dtype=self._dtype, device=self._device)
        return SimState(
            positions=positions.to(self._device, self._dtype)[mask],
            masses=masses.to(self._device),
            cell=labels[:, None, None] * torch.eye(3, dtype=self._dtype, device=self._device),
            pbc=False,
            atomic_numbers=numbers,
            system_idx=mask.nonzero()[:, 0],
        )

    def forward(self, state, **kwargs) -> dict[str, Tensor]:
        """`energy` (systems,) and `forces` (atoms, 3) of a state made by `initial_state`, or a selection from it.

        Raises:
            ValueError: a state of other molecules, or a periodic one.
        """
        state = state if isinstance(state, SimState) else SimState(**state)
        rows = state.cell[:, 0, 0].round().long() - 1
        if state.pbc or (rows < 0).any() or (rows >= len(self._graph.atom_mask)).any():
            raise InputError("the state is not of this model's molecules; make it by initial_state()")
        graph = self._graph[rows]
        graph = graph.truncated(int(graph.atom_mask.sum(1).max()))
        if not torch.equal(graph.atomic_numbers[graph.atom_mask], state.atomic_numbers):
            raise InputError("the atoms are not those of this model's molecules; make the state by initial_state()")
        positions = state.positions.new_zeros(*graph.atom_mask.shape, 3)
        positions[graph.atom_mask] = state.positions
        energy, forces = self.model.energy_and_forces(graph, positions)
        return {"energy": energy.to(self._dtype), "forces": forces[graph.atom_mask].to(self._dtype)}
