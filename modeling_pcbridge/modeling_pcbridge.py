"""PCBridge: energies, forces and equilibrium structures of molecules from one shared encoder."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .beyond_training import beyond_training
from .diffusion import centre
from .errors import InputError, require
from .graph_batch import GraphBatch
from .loss_terms import LabelRows, Labels, LossInputs, add_label_losses, add_structure_losses
from .losses import LOSS_NAMES, LossSettings
from .model_functions import PCBridgeFunctions
from .outputs import PCBridgeOutput, RelaxationOutput, StructureOutput
from .pipeline_pcbridge import CUSTOM_PIPELINES
from .processing_pcbridge import PCBridgeProcessor
from .relaxation import MAX_EVALUATIONS, MAX_FORCE, relax
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
from .structure_checks import faults_of_batch


class PCBridgeModel(PCBridgeFunctions):
    """Predictions and losses by an encoder, an energy decoder and a structure decoder (Ren et al. 2024, Eq. 6).

    Inputs are those of `PCBridgeProcessor`. E is invariant and S equivariant under rotations, translations and
    permutations of atoms; S obeys the stereo marks of the graph.
    """

    _auto_class = "AutoModel"  # what is saved carries this code, for trust_remote_code=True

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        """Weights, config, processor and code: all that `from_pretrained` and `pipeline` need."""
        if is_main_process:
            PCBridgeProcessor.of_config(self.config).save_pretrained(save_directory)
        self.config.custom_pipelines = CUSTOM_PIPELINES
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

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
        batch = GraphBatch.of_inputs(graph, positions)
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
            add_label_losses(self, output, batch, positions, labels, rows.labelled, settings, counts)
        if is_equilibrium is not None:
            structures = LossInputs(
                batch[rows.structures],
                centre(positions, batch.atom_mask).to(self.geometry_dtype)[rows.structures],
                is_equilibrium[rows.structures],
                counts.get("equilibrium"),
            )
            add_structure_losses(self, output, structures, settings, generator)
        weighted = [(weight, getattr(output, LOSS_NAMES[name])) for name, weight in settings.weights().items()]
        terms = [weight * term for weight, term in weighted if term is not None]
        output.loss = sum(terms, positions.new_zeros(()))
        return output if return_dict else output.to_tuple()

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
        batch = GraphBatch.of_inputs(graph, positions)
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
        level_of_theory: str | None = None,
        **graph: Tensor,
    ) -> RelaxationOutput:
        """Structures relaxed on the predicted energy to a force threshold; takes the processor's output.

        Every molecule has its own step control and stops by itself; see `relaxation.relax`. What has converged may
        still be no structure of its graph, above all from one that was none: see `faults`.

        Args:
            positions: (B, N, 3), angstrom; where to start.
            max_force: eV/angstrom; a molecule has converged when no atom has a larger force.
            max_evaluations: of the energy, per molecule, at most.
            allow_unlearned_forces: relax also with a model that has learned no forces.
            level_of_theory: of that energy, see `predict_energy`.

        Raises:
            InputError: no positions, or not (B, N, 3), numbers out of range, or the model has learned no forces, or not
                that level.
        """
        if not allow_unlearned_forces:
            self.config.check_forces_are_learned("relax_structure")
        if positions is None:
            raise InputError("relax_structure needs positions; give the processor molecules that have a conformer")
        require(max_force > 0, "max_force", "positive", max_force)
        require(max_evaluations >= 1, "max_evaluations", "at least 1", max_evaluations)
        batch = GraphBatch.of_inputs(graph, positions)
        starts = centre(positions.to(self.geometry_dtype), batch.atom_mask)
        at_level = partial(self.detached_energy_and_forces, level_of_theory=level_of_theory)
        found = relax(at_level, batch, starts, max_force, max_evaluations)
        relaxed = centre(found.positions, batch.atom_mask)
        return RelaxationOutput(
            positions=relaxed,
            energy=found.energy.double() + self.reference_energy(batch, level_of_theory),
            forces=found.forces,
            converged=found.converged,
            faults=faults_of_batch(batch, relaxed),
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
        batch = GraphBatch.of_inputs(graph, positions)
        return self.correct(batch, positions.to(self.geometry_dtype), level_of_theory)

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
        relaxation_steps: int | Literal["converged"] | None = None,
        relaxation_level: str | None = None,
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
            relaxation_steps: `quasi_newton_steps` down the model's own energy at the end; "converged": as many as it
                takes, as by `relax_structure`. By default `config.num_relaxation_steps` after "mean_shift",
                if the model has learned forces, and none after the other methods.
            relaxation_level: of the energy that "converged" goes down to a minimum of, see `predict_energy`.
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
                positions that are not (B, N, 3), or relaxation by a model without learned forces or that level.
            TypeError: an option that there is not, or a tensor of the processor is missing.
        """
        if num_inference_steps is None:
            num_inference_steps = default_num_steps(method, self.config)
        if relaxation_steps is None:
            relaxation_steps = default_relaxation_steps(method, self.config)
        settings = SamplingSettings(
            method,
            num_inference_steps,
            num_samples,
            eta,
            max_attempts,
            mean_shift_steps,
            relaxation_steps,
            relaxation_level,
        )
        self.config.find_level_of_theory(relaxation_level)  # refuses one that it has not learned
        check_num_steps(method, num_inference_steps, self.config.num_train_timesteps)
        if relaxation_steps != 0 and not allow_unlearned_forces:
            self.config.check_forces_are_learned("a relaxation (relaxation_steps)")
        batch = GraphBatch.of_inputs(graph, positions)
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise InputError(f"generator must be one, such as torch.Generator().manual_seed(0), not {generator!r}")
        from_positions = method in METHODS_FROM_POSITIONS
        if from_positions and positions is None:
            raise InputError(f"{method} needs positions; give the processor molecules that have a conformer")
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
        references = self.energy_decoder.reference_energies.by_level[0].cpu().numpy()
        molecules = GraphBatch.of_inputs(graph).molecules()
        return [beyond_training(self.config, molecule, references) for molecule in molecules]
