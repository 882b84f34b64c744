"""PCBridge: energies, forces and equilibrium structures of molecules from one shared encoder."""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .configuration_pcbridge import PCBridgeConfig
from .diffusion import DiffusionSchedule, centre
from .encoder import PCBridgeEncoder
from .energy_decoder import EnergyDecoder
from .graph_batch import GraphBatch
from .loss_terms import denoising_term, label_terms, optimality_term, score_term
from .losses import LossSettings
from .model_hessian import quasi_newton_step
from .pretrained_pcbridge import PCBridgePreTrainedModel
from .sampling import METHODS, METHODS_FROM_POSITIONS, OnStep, check_num_steps, sample_structures
from .structure_decoder import StructureDecoder

# Length of the longest displacement of a molecule at most, in units of the preconditioning. Trained models: up to 5.
_LARGEST_DISPLACEMENT = 6.0
# Chosen on validation molecules: bonds get sharper down to here.
_LAST_MEAN_SHIFT_TIMESTEP = 3


@dataclass
class PCBridgeOutput(ModelOutput):
    """What `PCBridgeModel` returns; absent where it was not asked for or has no label.

    Attributes:
        loss: weighted sum of the terms below, scalar.
        energy_loss: Eq. 7, first term, mean over labelled molecules, eV.
        denoising_loss: Eq. 7, second term.
        force_loss: Eq. 12, square (eV/angstrom), or its "norm" form, eV/angstrom; summed over the atoms of a molecule.
        optimality_consistency_loss: Eq. 10, eV.
        score_consistency_loss: Eq. 11, or its "denoised" or "relaxed" form.
        energy: (B,) float64, total electronic energy, eV.
        forces: (B, N, 3), minus the gradient of `energy`, eV/angstrom; zero on padding.
    """

    loss: Tensor | None = None
    energy_loss: Tensor | None = None
    denoising_loss: Tensor | None = None
    force_loss: Tensor | None = None
    optimality_consistency_loss: Tensor | None = None
    score_consistency_loss: Tensor | None = None
    energy: Tensor | None = None
    forces: Tensor | None = None


@dataclass
class StructureOutput(ModelOutput):
    """Generated structures.

    Attributes:
        positions: (B, num_samples, N, 3), angstrom, each centred; zero on padding.
        stereo_right: (B, num_samples) bool, whether the structure obeys every stereo mark of its graph.
    """

    positions: Tensor
    stereo_right: Tensor | None = None


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

    def interaction_energy(self, graph: GraphBatch, positions: Tensor) -> Tensor:
        """E_G(R) without the reference energies, (B,), eV; differentiable in parameters and positions (B, N, 3)."""
        timesteps = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        positions = positions.to(self._geometry_dtype)
        node_features, _ = self.encoder(graph, positions, timesteps, self.config.attention_cutoff)
        return self.energy_decoder(graph, node_features, positions)

    def interaction_energy_and_gradient(self, graph: GraphBatch, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`interaction_energy` (B,) and its gradient (B, N, 3), eV/angstrom; both differentiable in the parameters.

        `positions` (B, N, 3) must require a gradient.
        """
        interaction = self.interaction_energy(graph, positions)
        (gradient,) = torch.autograd.grad(interaction.sum(), positions, create_graph=True)
        return interaction, gradient

    def energy_and_forces(self, graph: GraphBatch, positions: Tensor) -> tuple[Tensor, Tensor]:
        """E_G(R) in eV, (B,) float64, and F = -dE/dR in eV/angstrom, (B, N, 3), at `positions` (B, N, 3).

        Both are detached, also from the parameters. Works under `torch.no_grad` and `torch.inference_mode`.
        """
        interaction, forces = self.detached_energy_and_forces(graph, positions)
        return interaction.double() + self.energy_decoder.reference_energies(graph.atomic_numbers), forces

    def detached_energy_and_forces(self, graph: GraphBatch, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Interaction energy (B,) and forces (B, N, 3) as constants: no parameter of the energy model is reached."""
        with torch.inference_mode(False), torch.enable_grad():
            graph = graph.outside_inference_mode()
            positions = positions.clone() if positions.is_inference() else positions
            positions = positions.detach().requires_grad_()
            interaction = self.interaction_energy(graph, positions)
            (gradient,) = torch.autograd.grad(interaction.sum(), positions)
        return interaction.detach(), -gradient

    def denoise(
        self, graph: GraphBatch, noisy_positions: Tensor, timesteps: Tensor, detach_encoder: bool = False
    ) -> Tensor:
        """S_t(R_t): denoised positions (B, N, 3), centred, from `noisy_positions` (B, N, 3) at `timesteps` (B,).

        With `detach_encoder` only the structure decoder's parameters get a gradient, as the consistency losses need.
        """
        noisy_positions = noisy_positions.to(self._geometry_dtype)
        c_in, c_skip, c_out = (
            factor.to(noisy_positions.dtype)
            for factor in self.diffusion.preconditioning(timesteps, self.config.position_std)
        )
        inputs = c_in * noisy_positions
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_encoder):
            node_features, pairs = self.encoder(graph, inputs, timesteps)
        displacements = self.structure_decoder(graph, node_features, pairs, inputs)
        # Preconditioned targets have unit variance; what is far beyond is an extrapolation gone wrong.
        longest = displacements.square().sum(-1).amax(-1)[:, None, None] / _LARGEST_DISPLACEMENT**2
        displacements = displacements * longest.clamp(min=1).rsqrt()
        return c_skip * noisy_positions + c_out * displacements

    def relax(self, graph: GraphBatch, positions: Tensor, num_steps: int) -> Tensor:
        """`positions` (B, N, 3) after `num_steps` quasi-Newton steps towards the minimum of E; centred, detached."""
        for _ in range(num_steps):
            _, forces = self.detached_energy_and_forces(graph, positions)
            positions = centre(positions + quasi_newton_step(positions, forces, graph.pair_types), graph.atom_mask)
        return positions

    @torch.no_grad()
    def mean_shift(self, graph: GraphBatch, positions: Tensor, num_steps: int) -> Tensor:
        """`positions` (B, N, 3) denoised `num_steps` times over, without adding noise; centred.

        S_t(R) - R is, but for a factor, the gradient of the log density of structures blurred by the noise of t
        (Eq. 4), so each step is one of mean shift towards a maximum of that density. t falls geometrically from
        `config.refinement_timestep`, and the blur with it. Sampling keeps the width of the distribution; this does not.
        """
        positions = centre(positions.to(self._geometry_dtype), graph.atom_mask)
        first = self.config.refinement_timestep
        last = min(_LAST_MEAN_SHIFT_TIMESTEP, first)
        for step in range(num_steps):
            falling = (last / first) ** (step / max(num_steps - 1, 1))
            timestep = max(round(first * falling), 1)
            timesteps = torch.full((len(positions),), timestep, dtype=torch.int64, device=positions.device)
            positions = self.denoise(graph, positions, timesteps)
        return positions

    @property
    def _geometry_dtype(self) -> torch.dtype:
        """Coordinates are never held in less than float32, whatever the weights are."""
        return torch.promote_types(self.dtype, torch.float32)

    # --- Losses ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        atomic_numbers: Tensor,
        formal_charges: Tensor,
        atom_mask: Tensor,
        pair_types: Tensor,
        stereo_pair_types: Tensor,
        stereo_quadruples: Tensor,
        torsion_quadruples: Tensor,
        positions: Tensor | None = None,
        energy: Tensor | None = None,
        forces: Tensor | None = None,
        is_equilibrium: Tensor | None = None,
        loss_settings: LossSettings | None = None,
        label_counts: dict[str, Tensor] | None = None,
        labelled_rows: slice = slice(None),
        structure_rows: slice = slice(None),
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> PCBridgeOutput:
        """Energies and forces, and the losses for the labels that are given.

        Args:
            atomic_numbers, formal_charges, atom_mask, pair_types, stereo_pair_types, stereo_quadruples,
                torsion_quadruples: the graphs, see `GraphBatch`.
            positions: (B, N, 3), angstrom, finite also on padding.
            energy: label, (B,) float64, eV; NaN where absent.
            forces: label, (B, N, 3), eV/angstrom; NaN where absent.
            is_equilibrium: (B,) bool; True where `positions` may train the structure decoder.
            loss_settings: which losses, how weighed; by default energy, denoising, and force where labelled.
            label_counts: what each mean is divided by, see `reduce_mean`; keys `energy`, `forces`, `equilibrium`.
            labelled_rows, structure_rows: the rows outside which no energy or force label, and no equilibrium
                structure, occurs; nothing is computed for the others. The collator orders its rows for this.
            generator: of the noise and the time steps.

        Raises:
            ValueError: no positions, or not (B, N, 3), or time steps of a loss beyond those of the model.
        """
        if positions is None:
            raise ValueError("energies, forces and losses need positions; for structures call predict_structure")
        graph = GraphBatch(
            atomic_numbers,
            formal_charges,
            atom_mask,
            pair_types,
            stereo_pair_types,
            stereo_quadruples,
            torsion_quadruples,
        )
        graph.check_positions(positions)
        if energy is None and forces is None and is_equilibrium is None:
            predicted_energy, predicted_forces = self.energy_and_forces(graph, positions)
            output = PCBridgeOutput(energy=predicted_energy, forces=predicted_forces)
            return output if return_dict else output.to_tuple()

        settings = loss_settings or LossSettings(force_weight=0.0 if forces is None else 1.0)
        settings.check_timesteps(self.config.num_train_timesteps)
        if is_equilibrium is None:
            is_equilibrium = torch.zeros_like(atom_mask[:, 0])
        counts = label_counts or {}
        output = PCBridgeOutput()
        output.energy_loss, output.force_loss = label_terms(
            self,
            graph[labelled_rows],
            positions[labelled_rows],
            None if energy is None else energy[labelled_rows],
            None if forces is None else forces[labelled_rows],
            settings,
            counts,
        )
        structures = (
            graph[structure_rows],
            centre(positions, atom_mask).to(self._geometry_dtype)[structure_rows],
            is_equilibrium[structure_rows],
            settings,
            counts.get("equilibrium"),
            generator,
        )
        if settings.denoising_weight > 0:
            output.denoising_loss = denoising_term(self, *structures, precision=settings.data_precision)
        if settings.optimality_weight > 0:
            output.optimality_consistency_loss = optimality_term(self, *structures)
        if settings.score_weight > 0:
            output.score_consistency_loss = score_term(self, *structures)

        weighted = (
            (settings.energy_weight, output.energy_loss),
            (settings.denoising_weight, output.denoising_loss),
            (settings.force_weight, output.force_loss),
            (settings.optimality_weight, output.optimality_consistency_loss),
            (settings.score_weight, output.score_consistency_loss),
        )
        output.loss = sum((weight * term for weight, term in weighted if term is not None), positions.new_zeros(()))
        return output if return_dict else output.to_tuple()

    def multi_task_loss(self, loss_settings: LossSettings | None = None, **batch) -> Tensor:
        """Eq. 7 on a batch with labels: weighted energy and denoising loss, scalar. Arguments as in `forward`."""
        settings = loss_settings or LossSettings()
        return self(
            **batch,
            loss_settings=settings.only(
                energy_weight=settings.energy_weight, denoising_weight=settings.denoising_weight
            ),
        ).loss

    def force_loss(self, **batch) -> Tensor:
        """Eq. 12 on a batch with force labels, unweighted scalar. Arguments as in `forward`."""
        return self(**batch, loss_settings=LossSettings().only(force_weight=1.0)).loss

    def optimality_consistency_loss(self, loss_settings: LossSettings | None = None, **batch) -> Tensor:
        """Eq. 10 on a batch, unweighted scalar; only the structure decoder gets a gradient. Arguments as in `forward`.

        It uses the graphs of molecules whose `is_equilibrium` is True.
        """
        settings = (loss_settings or LossSettings()).only(optimality_weight=1.0)
        return self(**batch, loss_settings=settings).loss

    def score_consistency_loss(self, loss_settings: LossSettings | None = None, **batch) -> Tensor:
        """Eq. 11 on a batch, unweighted scalar; the energy decoder gets no gradient. Arguments as in `forward`.

        It uses the structures of molecules whose `is_equilibrium` is True; `loss_settings.score_form` selects the
        form, and `score_trains_encoder` whether the encoder gets a gradient, beside the structure decoder.
        """
        settings = (loss_settings or LossSettings()).only(score_weight=1.0)
        return self(**batch, loss_settings=settings).loss

    # --- Inference --------------------------------------------------------------------------------------------------

    def predict_energy(self, positions: Tensor | None = None, **graph: Tensor) -> PCBridgeOutput:
        """Total electronic energy and forces of structures; takes the processor's output.

        The energy is the total electronic energy at the level of theory of the training labels
        (`config.energy_level_of_theory`), nuclear repulsion included.

        Returns:
            `.energy` (B,) float64, eV, and `.forces` (B, N, 3), eV/angstrom, zero on padding.

        Raises:
            ValueError: no positions, or not (B, N, 3).
        """
        if positions is None:
            raise ValueError("predict_energy needs positions; give the processor molecules that have a conformer")
        batch = GraphBatch.of_inputs(graph)
        batch.check_positions(positions)
        rows = torch.arange(len(positions), device=positions.device)
        turns = [self.energy_and_forces(batch[some], positions[some]) for some in rows.split(batch.rows_at_once)]
        energy, forces = (torch.cat(parts) for parts in zip(*turns, strict=True))
        return PCBridgeOutput(energy=energy, forces=forces)

    @torch.no_grad()
    def predict_structure(
        self,
        method: str = "ddim",
        num_inference_steps: int = 20,
        num_samples: int = 1,
        eta: float = 1.0,
        generator: torch.Generator | None = None,
        max_stereo_attempts: int = 5,
        mean_shift_steps: int = 0,
        relaxation_steps: int = 0,
        positions: Tensor | None = None,
        on_step: OnStep | None = None,
        **graph: Tensor,
    ) -> StructureOutput:
        """Generate equilibrium structures from graphs; takes the processor's output.

        Args:
            method: "ddim" integrates the reverse process from noise (Eq. 3); "denoising" is one evaluation on pure
                noise at `config.denoising_timestep` (Eq. 9); "refine" adds the little noise of at
                most `config.refinement_timestep` to the given `positions` and integrates back, keeping the conformer;
                "mean_shift" denoises the given `positions` again and again without noise, which keeps it better.
            num_inference_steps: model evaluations of "ddim" and "mean_shift" and, at most, of "refine"; up to
                `config.num_train_timesteps`, T. The time steps of "ddim" are 1 and every T // num_inference_steps-th
                after it: divisors of T use the whole range, 2 or 3 steps begin well below T, and numbers that would
                leave out a quarter of it are refused.
            num_samples: structures a molecule.
            eta: share of fresh noise in each reverse step: 0 is the deterministic sampler of Eq. 3, 1 the ancestral
                one, which corrects errors of earlier steps.
            generator: of all noise; with the same generator a sample depends on its place in the batch, not on the
                molecules that are there with it.
            max_stereo_attempts: a sample that violates a stereo mark of its graph is drawn again until so many
                attempts are used up, as RDKit's embedding does; the last one is kept. 1 draws once.
            mean_shift_steps: steps of mean shift after the other methods, see `mean_shift`; 10 take the noise out of
                samples of "ddim" and keep their conformers.
            relaxation_steps: quasi-Newton steps down the model's own energy at the end, see `relax`; 4 are plenty.
            positions: (B, N, 3), angstrom; where "refine" and "mean_shift" start, ignored by the other methods.
            on_step: called with (rows, step, positions) for the start (step 0) and after each step of "ddim" and
                "refine", for instance to show them; positions (len(rows), N, 3), angstrom, are the noisy structures of
                samples `rows % num_samples` of molecules `rows // num_samples`. Samples drawn again begin at 0 again;
                what it raises ends the sampling.

        Returns:
            `.positions` (B, num_samples, N, 3), angstrom, and `.stereo_right` (B, num_samples).

        Raises:
            ValueError: an unknown method, numbers out of range, "refine" or "mean_shift" without positions, or
                positions that are not (B, N, 3).
            TypeError: an option that there is not, or a tensor of the processor is missing.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
        batch = GraphBatch.of_inputs(graph)
        for name, number, at_least in (
            ("num_inference_steps", num_inference_steps, 1),
            ("num_samples", num_samples, 1),
            ("max_stereo_attempts", max_stereo_attempts, 1),
            ("mean_shift_steps", mean_shift_steps, 0),
            ("relaxation_steps", relaxation_steps, 0),
        ):
            _check_whole(name, number, at_least)
        check_num_steps(method, num_inference_steps, self.config.num_train_timesteps)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in 0..1, not {eta}")
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise ValueError(f"generator must be one, such as torch.Generator().manual_seed(0), not {generator!r}")
        if method in METHODS_FROM_POSITIONS and positions is None:
            raise ValueError(f"{method} needs positions; give the processor molecules that have a conformer")
        if positions is not None:
            batch.check_positions(positions)
        samples, stereo_right = sample_structures(
            self,
            batch,
            positions if method in METHODS_FROM_POSITIONS else None,
            method=method,
            num_inference_steps=num_inference_steps,
            num_samples=num_samples,
            eta=eta,
            generator=generator,
            max_stereo_attempts=max_stereo_attempts,
            mean_shift_steps=mean_shift_steps,
            relaxation_steps=relaxation_steps,
            on_step=on_step,
        )
        return StructureOutput(positions=samples, stereo_right=stereo_right)


def _check_whole(name: str, number: object, at_least: int) -> None:
    if not isinstance(number, Integral) or int(number) < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, not {number!r}")
