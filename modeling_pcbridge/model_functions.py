"""The two functions of the model, E(R) and S_t(R_t), and how they move structures."""

from collections.abc import Callable

import torch
from torch import Tensor

from .configuration_pcbridge import PCBridgeConfig
from .diffusion import DiffusionSchedule, centre
from .dispersion import d3bj_energy_and_gradient
from .encoder import PCBridgeEncoder
from .energy_decoder import EnergyDecoder
from .graph_batch import GraphBatch
from .model_hessian import quasi_newton_step
from .pair_layout import Sight
from .pretrained_pcbridge import PCBridgePreTrainedModel
from .relaxation import next_move, relaxation_init, relaxation_step
from .structure_decoder import StructureDecoder

# Length of the longest displacement of a molecule at most, in units of the preconditioning. Trained models: up to 5. At
# full noise the unit is `position_std`; real molecules then need up to 4.7, a straight chain of 30 carbon atoms 6.
_LARGEST_DISPLACEMENT = 6.0

# At full noise neighbours in space tell little; what is so near in the graph is seen wherever it is.
_BONDS_SEEN = 3

# After three, stiff bonds and angles, which E knows best, are about where it wants them; soft modes, which it knows
# least, have hardly begun to move.
_CORRECTION_STEPS = 3


class PCBridgeFunctions(PCBridgePreTrainedModel):
    """Encoder, energy decoder and structure decoder (Ren et al. 2024, Eq. 6), as functions of graphs and positions."""

    def __init__(self, config: PCBridgeConfig):
        super().__init__(config)
        self.encoder = PCBridgeEncoder(config)
        self.energy_decoder = EnergyDecoder(config)
        self.structure_decoder = StructureDecoder(config)
        self.diffusion = DiffusionSchedule(
            config.num_train_timesteps, config.beta_start, config.beta_end, config.length_unit
        )
        self.post_init()

    # `levels` (B,) int64 are places in `config.energy_levels_of_theory`; None is the first, the model's own.

    def interaction_energy(self, graph: GraphBatch, positions: Tensor, levels: Tensor | None = None) -> Tensor:
        """E_G(R) without the reference energies, (B,), eV; differentiable in parameters and positions (B, N, 3)."""
        timesteps = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        positions = positions.to(self.geometry_dtype)
        node_features, _ = self.encoder(graph, positions, timesteps, _sight(self.config.attention_cutoff))
        return self.energy_decoder(graph, node_features, positions, levels)

    def interaction_energy_and_gradient(
        self, graph: GraphBatch, positions: Tensor, levels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`interaction_energy` (B,) and its gradient (B, N, 3), eV/angstrom, at `positions` (B, N, 3).

        Both are differentiable in the parameters, and constants under `torch.no_grad`.
        """
        is_differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            interaction = self.interaction_energy(graph, positions, levels)
            (gradient,) = torch.autograd.grad(interaction.sum(), positions, create_graph=is_differentiable)
        return (interaction, gradient) if is_differentiable else (interaction.detach(), gradient)

    def energy_and_forces(
        self, graph: GraphBatch, positions: Tensor, level_of_theory: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """E_G(R) in eV, (B,) float64, and F = -dE/dR in eV/angstrom, (B, N, 3), at `positions` (B, N, 3).

        Both are detached, also from the parameters. Works under `torch.no_grad` and `torch.inference_mode`. The level
        of theory is the model's own by default, see `predict_energy`.
        """
        interaction, forces = self.detached_energy_and_forces(graph, positions, level_of_theory)
        return interaction.double() + self.reference_energy(graph, level_of_theory), forces

    def reference_energy(self, graph: GraphBatch, level_of_theory: str | None = None) -> Tensor:
        """What E is above, the sum of the reference energies of the atoms: (B,) float64, eV."""
        index, _ = self.config.find_level_of_theory(level_of_theory)
        levels = torch.full_like(graph.atomic_numbers[:, 0], index)
        return self.energy_decoder.reference_energies(graph.atomic_numbers, levels)

    def detached_energy_and_forces(
        self, graph: GraphBatch, positions: Tensor, level_of_theory: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Interaction energy (B,), dispersion included if the level has it, and forces (B, N, 3) as constants.

        No parameter of the energy model is reached.
        """
        index, has_dispersion = self.config.find_level_of_theory(level_of_theory)
        with torch.inference_mode(False), torch.no_grad():
            graph = graph.outside_inference_mode()
            positions = positions.clone() if positions.is_inference() else positions
            levels = torch.full_like(graph.atomic_numbers[:, 0], index) if index else None
            interaction, gradient = self.interaction_energy_and_gradient(graph, positions, levels)
            if has_dispersion:
                own = self.config.energy_levels_of_theory[0]
                dispersion, of_dispersion = d3bj_energy_and_gradient(own, graph.atomic_numbers, positions)
                interaction, gradient = interaction + dispersion, gradient + of_dispersion
        return interaction, -gradient

    def denoise(
        self, graph: GraphBatch, noisy_positions: Tensor, timesteps: Tensor, detach_encoder: bool = False
    ) -> Tensor:
        """S_t(R_t): denoised positions (B, N, 3), centred, from `noisy_positions` (B, N, 3) at `timesteps` (B,).

        With `detach_encoder` only the structure decoder's parameters get a gradient, as the consistency losses need.
        """
        noisy_positions = noisy_positions.to(self.geometry_dtype)
        num_atoms = graph.atom_mask.sum(-1)[:, None, None].double()
        c_in, c_skip, c_out = (
            factor.to(noisy_positions.dtype)
            for factor in self.diffusion.preconditioning(timesteps, self.config.position_std_of(num_atoms))
        )
        inputs, sight = c_in * noisy_positions, _sight(self.config.structure_cutoff, _BONDS_SEEN)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_encoder):
            node_features, pairs = self.encoder(graph, inputs, timesteps, sight)
        displacements = self.structure_decoder(graph, node_features, pairs, inputs)
        # Preconditioned targets have unit variance; what is far beyond is an extrapolation gone wrong.
        longest = displacements.square().sum(-1).amax(-1)[:, None, None] / _LARGEST_DISPLACEMENT**2
        displacements = displacements * longest.clamp(min=1).rsqrt()
        return c_skip * noisy_positions + c_out * displacements

    def quasi_newton_steps(self, graph: GraphBatch, positions: Tensor, num_steps: int) -> Tensor:
        """`positions` (B, N, 3) after `num_steps` quasi-Newton steps towards the minimum of E; centred, detached.

        One evaluation of E per step, as a teacher can afford: each step is checked by the evaluation of the next, so
        the energy falls, and only the last is taken unseen. A step knows the model Hessian and nothing of the steps
        before: what L-BFGS would learn from those are the soft modes, and along these the structure is to stay. Nothing
        waits for the device. See `relaxation`.
        """
        if num_steps == 0:
            return centre(positions, graph.atom_mask)
        state = relaxation_init(self.detached_energy_and_forces, graph, positions)
        for _ in range(num_steps - 1):
            state = relaxation_step(self.detached_energy_and_forces, graph, state).forget_all_but(0)
        return centre(state.positions + next_move(graph, state), graph.atom_mask)

    def correct(
        self,
        graph: GraphBatch,
        positions: Tensor,
        level_of_theory: str | None = None,
        num_steps: int = _CORRECTION_STEPS,
    ) -> Tensor:
        """`positions` (B, N, 3), minima of another level, after steps to the model's own; centred, detached.

        Both levels are heads of one encoder, whose errors they share. At a minimum R_0 of the other level its true
        force is zero, so F_other(R_0) is such an error, and F_own(R) - F_other(R_0) tells better than the model's own
        force where its minimum is: steps are H^-1 times it, with the model Hessian for H. See `correct_structure`.
        """
        level_of_theory = self.config.find_other_level_of_theory(level_of_theory)
        positions = centre(positions, graph.atom_mask)
        _, error = self.detached_energy_and_forces(graph, positions, level_of_theory)
        for _ in range(num_steps):
            _, forces = self.detached_energy_and_forces(graph, positions)
            positions = positions + quasi_newton_step(positions, forces - error, graph.pair_types, graph.atomic_numbers)
        return centre(positions, graph.atom_mask)

    @torch.no_grad()
    def mean_shift(
        self,
        graph: GraphBatch,
        positions: Tensor,
        num_steps: int,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """`positions` (B, N, 3) denoised `num_steps` times over, without adding noise; centred.

        S_t(R) - R is, but for a factor, the gradient of the log density of structures blurred by the noise of t
        (Eq. 4), so each step is one of mean shift towards a maximum of that density. t falls geometrically between
        `config.mean_shift_timesteps`, and the blur with it. Sampling keeps the width of the distribution; this does
        not. `on_step` is called with (step, positions) for the start and after each step.
        """
        positions = centre(positions.to(self.geometry_dtype), graph.atom_mask)
        if on_step is not None:
            on_step(0, positions)
        first, last = self.config.mean_shift_ends
        for step in range(num_steps):
            falling = (last / first) ** (step / max(num_steps - 1, 1))
            timestep = max(round(first * falling), 1)
            timesteps = torch.full((len(positions),), timestep, dtype=torch.int64, device=positions.device)
            positions = self.denoise(graph, positions, timesteps)
            if on_step is not None:
                on_step(step + 1, positions)
        return positions

    @property
    def geometry_dtype(self) -> torch.dtype:
        """Coordinates are never held in less than float32, whatever the weights are."""
        return torch.promote_types(self.dtype, torch.float32)


def _sight(cutoff: float | None, num_bonds: int = 0) -> Sight | None:
    return None if cutoff is None else Sight(cutoff, num_bonds)
