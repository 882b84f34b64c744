"""PCBridge: energies, forces and equilibrium structures of molecules from one shared encoder."""

from collections.abc import Callable

import torch
from torch import Tensor

from .beyond_training import beyond_training
from .configuration_pcbridge import PCBridgeConfig
from .diffusion import DiffusionSchedule, centre
from .dispersion import d3bj_energy_and_gradient
from .encoder import PCBridgeEncoder
from .energy_decoder import EnergyDecoder
from .errors import InputError, require
from .graph_batch import GraphBatch
from .loss_terms import (
    LabelRows,
    Labels,
    LossInputs,
    denoising_term,
    distillation_term,
    energy_term,
    force_term,
    optimality_term,
    score_term,
)
from .losses import LOSS_NAMES, LossSettings
from .model_hessian import quasi_newton_step
from .outputs import PCBridgeOutput, RelaxationOutput, StructureOutput
from .pair_layout import Sight
from .pretrained_pcbridge import PCBridgePreTrainedModel
from .relaxation import MAX_EVALUATIONS, MAX_FORCE, next_move, relax, relaxation_init, relaxation_step
from .sampling import (
    METHODS_FROM_POSITIONS,
    OnStep,
    SamplingMethod,
    SamplingSettings,
    check_num_steps,
    default_num_steps,
    default_relaxation_steps,
    sample_structures,
)
from .structure_decoder import StructureDecoder

# Length of the longest displacement of a molecule at most, in units of the preconditioning. Trained models: up to 5. At
# full noise the unit is `position_std`; real molecules then need up to 4.7, a straight chain of 30 carbon atoms 6.
_LARGEST_DISPLACEMENT = 6.0

# At full noise neighbours in space tell little; what is so near in the graph is seen wherever it is.
_BONDS_SEEN = 3


class PCBridgeModel(PCBridgePreTrainedModel):
    """Encoder, energy decoder and structure decoder (Ren et al. 2024, Eq. 6).

    Inputs are those of `PCBridgeProcessor`. E is invariant and S equivariant under rotations, translations and
    permutations of atoms; S obeys the stereo marks of the graph.
    """

    _auto_class = "AutoModel"  # what is saved carries this code, for trust_remote_code=True

    def __init__(self, config: PCBridgeConfig):
        super().__init__(config)
        self.encoder = PCBridgeEncoder(config)
        self.energy_decoder = EnergyDecoder(config)
        self.structure_decoder = StructureDecoder(config)
        self.diffusion = DiffusionSchedule(
            config.num_train_timesteps, config.beta_start, config.beta_end, config.length_unit
        )
        self.post_init()

    # --- The two functions of the model: E(R) and S_t(R_t) ------------------------------------------------------

    # `levels` (B,) int64 are places in `config.energy_levels_of_theory`; None is the first, the model's own.

    def interaction_energy(self, graph: GraphBatch, positions: Tensor, levels: Tensor | None = None) -> Tensor:
        """E_G(R) without the reference energies, (B,), eV; differentiable in parameters and positions (B, N, 3)."""
        timesteps = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        positions = positions.to(self._geometry_dtype)
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
        index, _ = self.config.find_level_of_theory(level_of_theory)
        levels = torch.full_like(graph.atomic_numbers[:, 0], index)
        return interaction.double() + self.energy_decoder.reference_energies(graph.atomic_numbers, levels), forces

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
        noisy_positions = noisy_positions.to(self._geometry_dtype)
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

    def relax(self, graph: GraphBatch, positions: Tensor, num_steps: int) -> Tensor:
        """`positions` (B, N, 3) after `num_steps` quasi-Newton steps towards the minimum of E; centred, detached.

        One evaluation of E per step, as a teacher can afford: each step is checked by the evaluation of the next, so
        the energy falls, and only the last is taken unseen. Nothing waits for the device. See `relaxation`.
        """
        if num_steps == 0:
            return centre(positions, graph.atom_mask)
        state = relaxation_init(self.detached_energy_and_forces, graph, positions)
        for _ in range(num_steps - 1):
            state = relaxation_step(self.detached_energy_and_forces, graph, state)
        return centre(state.positions + next_move(graph, state), graph.atom_mask)

    def correct(self, graph: GraphBatch, positions: Tensor, level_of_theory: str | None = None) -> Tensor:
        """`positions` (B, N, 3), minima of another level, after one step to the model's own level; centred, detached.

        Both levels are heads of one encoder, whose errors they share. Where the force of the other level is zero, the
        difference of the two tells better than the model's own force how far its own minimum is: the step is
        H^-1 (F_own - F_other), with the model Hessian for H. See `correct_structure`.
        """
        level_of_theory = self.config.find_other_level_of_theory(level_of_theory)
        positions = centre(positions, graph.atom_mask)
        _, own_forces = self.detached_energy_and_forces(graph, positions)
        _, others_forces = self.detached_energy_and_forces(graph, positions, level_of_theory)
        difference = own_forces - others_forces
        step = quasi_newton_step(positions, difference, graph.pair_types, graph.atomic_numbers)
        return centre(positions + step, graph.atom_mask)

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
        positions = centre(positions.to(self._geometry_dtype), graph.atom_mask)
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
    def _geometry_dtype(self) -> torch.dtype:
        """Coordinates are never held in less than float32, whatever the weights are."""
        return torch.promote_types(self.dtype, torch.float32)

    # --- Losses ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        positions: Tensor | None = None,
        energy: Tensor | None = None,
        forces: Tensor | None = None,
        has_energy: Tensor | None = None,
        has_forces: Tensor | None = None,
        label_levels: Tensor | None = None,
        is_equilibrium: Tensor | None = None,
        label_rows: LabelRows | None = None,
        loss_settings: LossSettings | None = None,
        label_counts: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **graph: Tensor,
    ) -> PCBridgeOutput:
        """Energies and forces of structures, and with labels the losses beside them.

        Args:
            positions: (B, N, 3), angstrom, finite also on padding.
            energy: label, (B,) float64, eV.
            forces: label, (B, N, 3), eV/angstrom, zero on padding.
            has_energy, has_forces: (B,) bool, the rows whose label counts; by default all. In the others the label
                must still be finite.
            label_levels: (B,) int64, the level of theory of each row's labels as its place in
                `config.energy_levels_of_theory`; by default the first, the model's own.
            is_equilibrium: (B,) bool; True where `positions` may train the structure decoder.
            label_rows: where labels occur at all; the collator orders its rows for this.
            loss_settings: which losses, how weighed; by default energy, force and denoising, each where labelled.
            label_counts: what each mean is divided by, see `reduce_mean`; keys `energy`, `forces`, `equilibrium`.
            generator: of the noise and the time steps.
            graph: the graphs as the processor returns them, see `GraphBatch`.

        Raises:
            InputError: no positions, or not (B, N, 3), or time steps of a loss beyond those of the model.
            TypeError: an argument that there is not, or a tensor of the graphs is missing.
        """
        if positions is None:
            raise InputError("energies, forces and losses need positions; for structures call predict_structure")
        batch = GraphBatch.of_inputs(graph)
        batch.check_positions(positions)
        if energy is None and forces is None and is_equilibrium is None:
            predicted_energy, predicted_forces = self.energy_and_forces(batch, positions)
            output = PCBridgeOutput(energy=predicted_energy, forces=predicted_forces)
            return output if return_dict else output.to_tuple()

        settings = loss_settings or LossSettings()
        settings.check_timesteps(self.config.num_train_timesteps)
        rows, counts = label_rows or LabelRows(), label_counts or {}
        output = PCBridgeOutput()
        labels = Labels(energy, forces, has_energy, has_forces, label_levels).in_use(settings)
        if labels.energy is not None or labels.forces is not None:
            self._add_label_losses(output, batch, positions, labels, rows.labelled, settings, counts)
        if is_equilibrium is not None:
            structures = LossInputs(
                batch[rows.structures],
                centre(positions, batch.atom_mask).to(self._geometry_dtype)[rows.structures],
                is_equilibrium[rows.structures],
                counts.get("equilibrium"),
            )
            self._add_structure_losses(output, structures, settings, generator)
        weighted = [(weight, getattr(output, LOSS_NAMES[name])) for name, weight in settings.weights().items()]
        terms = [weight * term for weight, term in weighted if term is not None]
        output.loss = sum(terms, positions.new_zeros(()))
        return output if return_dict else output.to_tuple()

    def _add_label_losses(
        self,
        output: PCBridgeOutput,
        graph: GraphBatch,
        positions: Tensor,
        labels: Labels,
        rows: slice,
        settings: LossSettings,
        counts: dict[str, Tensor],
    ) -> None:
        """Eq. 7, first term, and Eq. 12, from one evaluation of E on `rows`, and its energies and forces."""
        part, at = graph[rows], positions[rows]
        levels = None if labels.levels is None else labels.levels[rows]
        # They go off in float64, before the difference is rounded.
        references = self.energy_decoder.reference_energies(part.atomic_numbers, levels)
        everywhere = part.atom_mask[:, 0]
        if labels.forces is None:
            interaction = self.interaction_energy(part, at, levels)
        else:
            interaction, gradient = self.interaction_energy_and_gradient(part, at, levels)
            mask = everywhere if labels.has_forces is None else labels.has_forces[rows]
            inputs = LossInputs(part, at, mask, counts.get("forces"))
            output.force_loss = force_term(inputs, -gradient, labels.forces[rows], settings)
            output.forces = torch.full_like(positions, torch.nan, dtype=gradient.dtype)
            output.forces[rows] = -gradient.detach()
        if labels.energy is not None:
            mask = everywhere if labels.has_energy is None else labels.has_energy[rows]
            inputs = LossInputs(part, at, mask, counts.get("energy"))
            output.energy_loss = energy_term(inputs, interaction, labels.energy[rows] - references)
        output.energy = torch.full_like(positions[:, 0, 0], torch.nan, dtype=torch.float64)
        output.energy[rows] = interaction.detach().double() + references

    def _add_structure_losses(
        self,
        output: PCBridgeOutput,
        inputs: LossInputs,
        settings: LossSettings,
        generator: torch.Generator | None,
    ) -> None:
        """Eq. 7, second term, both consistency losses, and the distillation."""
        if settings.denoising_weight > 0:
            output.denoising_loss = denoising_term(self, inputs, settings, generator, settings.data_precision)
        if settings.optimality_weight > 0:
            output.optimality_consistency_loss = optimality_term(self, inputs, settings, generator)
        if settings.score_weight > 0:
            output.score_consistency_loss = score_term(self, inputs, settings, generator)
        if settings.distillation_weight > 0:
            output.distillation_loss = distillation_term(self, inputs, settings, generator)

    # --- Inference --------------------------------------------------------------------------------------------------

    def predict_energy(
        self, positions: Tensor | None = None, level_of_theory: str | None = None, **graph: Tensor
    ) -> PCBridgeOutput:
        """Total electronic energy and forces of structures; takes the processor's output.

        Args:
            positions: (B, N, 3), angstrom.
            level_of_theory: one of `config.energy_levels_of_theory`, or `config.energy_level_of_theory`, the model's
                own, which is the default: the first, with dispersion if the model has that. The energy is the total
                electronic energy at that level, nuclear repulsion included.

        Returns:
            `.energy` (B,) float64, eV, and `.forces` (B, N, 3), eV/angstrom, zero on padding.

        Raises:
            InputError: no positions, or not (B, N, 3), or a level that the model has not learned.
        """
        if positions is None:
            raise InputError("predict_energy needs positions; give the processor molecules that have a conformer")
        batch = GraphBatch.of_inputs(graph)
        batch.check_positions(positions)
        rows = torch.arange(len(positions), device=positions.device)
        turns = [
            self.energy_and_forces(batch[some], positions[some], level_of_theory)
            for some in rows.split(batch.rows_at_once)
        ]
        energy, forces = (torch.cat(parts) for parts in zip(*turns, strict=True))
        return PCBridgeOutput(energy=energy, forces=forces)

    def relax_structure(
        self,
        positions: Tensor | None = None,
        max_force: float = MAX_FORCE,
        max_evaluations: int = MAX_EVALUATIONS,
        allow_unlearned_forces: bool = False,
        **graph: Tensor,
    ) -> RelaxationOutput:
        """Structures relaxed on the model's own energy to a force threshold; takes the processor's output.

        Every molecule has its own step control and stops by itself; see `relaxation.relax`.

        Args:
            positions: (B, N, 3), angstrom; where to start.
            max_force: eV/angstrom; a molecule has converged when no atom has a larger force.
            max_evaluations: of the energy, per molecule, at most.
            allow_unlearned_forces: relax also with a model that has learned no forces.

        Raises:
            InputError: no positions, or not (B, N, 3), numbers out of range, or the model has learned no forces.
        """
        if not allow_unlearned_forces:
            self.config.check_forces_are_learned("relax_structure")
        if positions is None:
            raise InputError("relax_structure needs positions; give the processor molecules that have a conformer")
        require(max_force > 0, "max_force", "positive", max_force)
        require(max_evaluations >= 1, "max_evaluations", "at least 1", max_evaluations)
        batch = GraphBatch.of_inputs(graph)
        batch.check_positions(positions)
        starts = centre(positions.to(self._geometry_dtype), batch.atom_mask)
        found = relax(self.detached_energy_and_forces, batch, starts, max_force, max_evaluations)
        return RelaxationOutput(
            positions=centre(found.positions, batch.atom_mask),
            energy=found.energy.double() + self.energy_decoder.reference_energies(batch.atomic_numbers),
            forces=found.forces,
            converged=found.converged,
            num_evaluations=found.num_evaluations,
        )

    @torch.no_grad()
    def correct_structure(self, positions: Tensor, level_of_theory: str | None = None, **graph: Tensor) -> Tensor:
        """Minima of another level of theory, moved to the model's own; takes the processor's output. See `correct`.

        Args:
            positions: (B, N, 3), angstrom; minima at `level_of_theory`.
            level_of_theory: another one of `config.energy_levels_of_theory`; by default the only one.

        Returns:
            (B, N, 3), angstrom, centred; the conformer stays.

        Raises:
            InputError: the model has not learned that level, or it is its own; or positions that are not (B, N, 3).
        """
        batch = GraphBatch.of_inputs(graph)
        batch.check_positions(positions)
        return self.correct(batch, positions.to(self._geometry_dtype), level_of_theory)

    @torch.no_grad()
    def predict_structure(
        self,
        method: SamplingMethod = "ddim",
        num_inference_steps: int | None = None,
        num_samples: int = 1,
        eta: float = 1.0,
        generator: torch.Generator | None = None,
        max_attempts: int = 5,
        mean_shift_steps: int = 0,
        relaxation_steps: int | None = None,
        relax: bool = False,
        allow_unlearned_forces: bool = False,
        positions: Tensor | None = None,
        on_step: OnStep | None = None,
        **graph: Tensor,
    ) -> StructureOutput:
        """Generate equilibrium structures from graphs; takes the processor's output.

        Args:
            method: "ddim" integrates the reverse process from noise (Eq. 3); "denoising" is one evaluation on pure
                noise at `config.denoising_timestep` (Eq. 9); "refine" adds the little noise of at
                most `config.refinement_timestep` to the given `positions` and integrates back, keeping the conformer;
                "mean_shift" denoises the given `positions` again and again without noise, which keeps it better;
                "correct" takes them for minima at the model's other level of theory, see `correct_structure`.
            num_inference_steps: model evaluations of "ddim" and "mean_shift" and, at most, of "refine"; up to
                `config.num_train_timesteps`, T. The time steps of "ddim" are 1 and every T // num_inference_steps-th
                after it: divisors of T use the whole range, 2 or 3 steps begin well below T, and numbers that would
                leave out a quarter of it are refused. By default 20, and of "mean_shift" as many as
                `config.num_mean_shift_steps`.
            num_samples: structures per molecule.
            eta: share of fresh noise in each reverse step: 0 is the deterministic sampler of Eq. 3, 1 the ancestral
                one, which corrects errors of earlier steps.
            generator: of all noise; with the same generator a sample depends on its place in the batch, not on the
                molecules that are there with it.
            max_attempts: a sample that fails a check against its graph (see `StructureChecks`) is drawn again until
                so many attempts are used up, as RDKit's embedding does; the last one is kept. 1 draws once.
            mean_shift_steps: steps of mean shift after the other methods, see `mean_shift`; 10 take the noise out of
                samples of "ddim" and keep their conformers.
            relaxation_steps: quasi-Newton steps down the model's own energy at the end, see `relax`. By default as many
                as `config.num_relaxation_steps` after "mean_shift", if the model has learned forces, and none after
                the others or before `relax`.
            relax: whether structures are then relaxed on the model's own energy until they have converged, as by
                `relax_structure`.
            allow_unlearned_forces: relax also with a model that has learned no forces.
            positions: (B, N, 3), angstrom; where "refine", "mean_shift" and "correct" start, ignored by the others.
            on_step: called with (rows, step, positions) for the start (step 0), after each step of "ddim", "refine" and
                "mean_shift" and after all `relaxation_steps`, for instance to show them; positions (len(rows), N, 3),
                angstrom, are those of samples `rows % num_samples` of molecules `rows // num_samples`, `rows` on the
                CPU. Samples drawn again begin at 0 again; what it raises ends the sampling.

        Returns:
            `.positions` (B, num_samples, N, 3), angstrom, `.is_sound` (B, num_samples), `.faults`, and
            `.beyond_training`. Structures that are not sound are no predictions; rank and count them by themselves.

        Raises:
            InputError: an unknown method, numbers out of range, no positions where a method starts from them,
                positions that are not (B, N, 3), or relaxation by a model that has learned no forces.
            TypeError: an option that there is not, or a tensor of the processor is missing.
        """
        if num_inference_steps is None:
            num_inference_steps = default_num_steps(method, self.config)
        if relaxation_steps is None:
            relaxation_steps = 0 if relax else default_relaxation_steps(method, self.config)
        settings = SamplingSettings(
            method, num_inference_steps, num_samples, eta, max_attempts, mean_shift_steps, relaxation_steps, relax
        )
        check_num_steps(method, num_inference_steps, self.config.num_train_timesteps)
        if (relax or relaxation_steps > 0) and not allow_unlearned_forces:
            self.config.check_forces_are_learned("a relaxation (relax or relaxation_steps)")
        batch = GraphBatch.of_inputs(graph)
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise InputError(f"generator must be one, such as torch.Generator().manual_seed(0), not {generator!r}")
        from_positions = method in METHODS_FROM_POSITIONS
        if from_positions and positions is None:
            raise InputError(f"{method} needs positions; give the processor molecules that have a conformer")
        if positions is not None:
            batch.check_positions(positions)
        starts = positions if from_positions else None
        samples, faults = sample_structures(self, batch, settings, starts, generator, on_step)
        is_sound = torch.tensor([[not of_sample for of_sample in of_molecule] for of_molecule in faults])
        return StructureOutput(
            positions=samples, is_sound=is_sound, faults=faults, beyond_training=self.beyond_training(**graph)
        )

    def beyond_training(self, positions: Tensor | None = None, **graph: Tensor) -> list[list[str] | None]:
        """For each molecule in what it goes beyond the training data, or None; takes the processor's output.

        Positions make no difference. See `beyond_training`.
        """
        batch = GraphBatch.of_inputs(graph).cpu()
        return [beyond_training(self.config, batch.molecule(row)) for row in range(len(batch.atomic_numbers))]


def _sight(cutoff: float | None, num_bonds: int = 0) -> Sight | None:
    return None if cutoff is None else Sight(cutoff, num_bonds)
