"""The losses of the method on a batch: what each asks of the model, before `losses` compares.

Each term is a scalar: the mean over the molecules where the mask is True, divided by the count instead where one is
given (see `losses.reduce_mean`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .diffusion import centred_noise
from .graph_batch import GraphBatch
from .losses import (
    LossSettings,
    align,
    denoised_point_consistency_loss,
    denoising_loss,
    energy_loss,
    force_loss,
    force_norm_loss,
    optimality_consistency_loss,
    reduce_mean,
    score_consistency_loss,
)
from .outputs import PCBridgeOutput


class LabelRows(NamedTuple):
    """The rows of a batch outside which no label, and no equilibrium structure, occurs; nothing is computed for others.

    Attributes:
        labelled: where energies and forces may have labels.
        structures: where `is_equilibrium` may be True.
    """

    labelled: slice = slice(None)
    structures: slice = slice(None)


class Labels(NamedTuple):
    """Labels of B structures of N atoms; arguments of `PCBridgeModel.forward`.

    Attributes:
        energy: (B,) float64, eV.
        forces: (B, N, 3), eV/angstrom, zero on padding.
        has_energy, has_forces: (B,) bool; None where every row has the label.
        levels: (B,) int64, the level of theory of each row as its place in `config.energy_levels_of_theory`; None for
            the first.
    """

    energy: Tensor | None
    forces: Tensor | None
    has_energy: Tensor | None
    has_forces: Tensor | None
    levels: Tensor | None

    def in_use(self, settings: LossSettings) -> "Labels":
        """Without those that no loss in use compares with."""
        energy = self.energy if settings.energy_weight > 0 else None
        return self._replace(energy=energy, forces=self.forces if settings.force_weight > 0 else None)


@dataclass(frozen=True)
class LossInputs:
    """The molecules of a loss term.

    Attributes:
        graph: B molecules.
        positions: (B, N, 3), angstrom; centred where the structure decoder is trained.
        mask: (B,) bool, the molecules that the term is the mean over.
        count: what the sum over them is divided by, a scalar tensor; None for their number.
    """

    graph: GraphBatch
    positions: Tensor
    mask: Tensor
    count: Tensor | None = None


def add_label_losses(
    model,
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
    references = model.energy_decoder.reference_energies(part.atomic_numbers, levels)
    everywhere = part.atom_mask[:, 0]
    if labels.forces is None:
        interaction = model.interaction_energy(part, at, levels)
    else:
        interaction, gradient = model.interaction_energy_and_gradient(part, at, levels)
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


def add_structure_losses(
    model,
    output: PCBridgeOutput,
    inputs: LossInputs,
    settings: LossSettings,
    generator: torch.Generator | None,
) -> None:
    """Eq. 7, second term, both consistency losses, and the distillation."""
    if settings.denoising_weight > 0:
        output.denoising_loss = denoising_term(model, inputs, settings, generator, settings.data_precision)
    if settings.optimality_weight > 0:
        output.optimality_consistency_loss = optimality_term(model, inputs, settings, generator)
    if settings.score_weight > 0:
        output.score_consistency_loss = score_term(model, inputs, settings, generator)
    if settings.distillation_weight > 0:
        output.distillation_loss = distillation_term(model, inputs, settings, generator)


def energy_term(inputs: LossInputs, interaction: Tensor, label: Tensor) -> Tensor:
    """Eq. 7, first term, from the interaction energy (B,) and the label of it, (B,) float64, eV."""
    losses = energy_loss(interaction, label.to(interaction.dtype))
    return reduce_mean(losses, inputs.mask, inputs.count)


def force_term(inputs: LossInputs, forces: Tensor, label: Tensor, settings: LossSettings) -> Tensor:
    """Eq. 12 or its "norm" form, from predicted and labelled forces, (B, N, 3), eV/angstrom."""
    label = label.to(forces.dtype)
    if settings.force_form == "squared":
        losses = force_loss(forces, label)
    else:
        losses = force_norm_loss(forces, label, inputs.graph.atom_mask)
    return reduce_mean(losses, inputs.mask, inputs.count)


def denoising_term(
    model,
    inputs: LossInputs,
    settings: LossSettings,
    generator: torch.Generator | None,
    precision: float = 0.0,
    detach_encoder: bool = False,
) -> Tensor:
    """Eq. 7, second term; `precision` as in `denoising_loss`."""
    graph, positions = inputs.graph, inputs.positions
    uniform = _uniform(positions, generator)
    last = model.config.num_train_timesteps
    timesteps = (last * uniform.pow(settings.denoising_exponent)).long().clamp(max=last - 1) + 1
    noise = centred_noise(graph.atom_mask, positions.dtype, generator)
    noisy_positions = model.diffusion.add_noise(positions, noise, timesteps)
    denoised = model.denoise(graph, noisy_positions, timesteps, detach_encoder)
    target = align(positions, noisy_positions, graph.atom_mask) if settings.align_targets else positions
    signal_to_noise = model.diffusion.signal_to_noise(timesteps).to(positions.dtype)
    return reduce_mean(denoising_loss(denoised, target, signal_to_noise, precision), inputs.mask, inputs.count)


def optimality_term(model, inputs: LossInputs, settings: LossSettings, generator: torch.Generator | None) -> Tensor:
    """Eqs. 8 to 10, Algorithm B.1."""
    graph, positions = inputs.graph, inputs.positions
    timesteps = _random_timesteps(positions, settings.optimality_timesteps, generator)
    noise = centred_noise(graph.atom_mask, positions.dtype, generator) * model.config.length_unit
    predicted = model.denoise(graph, noise, timesteps, detach_encoder=True)
    # sigma^2 ~ U(0, sigma_max^2], one per molecule
    sigma = settings.sigma_max * (1 - _uniform(positions, generator)).sqrt()[:, None, None]
    perturbation = sigma * centred_noise(graph.atom_mask, positions.dtype, generator)
    # Each structure beside its perturbed one, in one evaluation of E.
    both = torch.stack([predicted, predicted + perturbation], dim=1).flatten(0, 1)
    energies, forces = model.detached_energy_and_forces(graph.repeat(2), both)
    energy, perturbed_energy = energies.unflatten(0, (-1, 2)).unbind(1)
    force, perturbed_force = forces.unflatten(0, (-1, 2)).unbind(1)
    losses = optimality_consistency_loss(predicted, energy, force, perturbed_energy, perturbed_force)
    return reduce_mean(losses, inputs.mask, inputs.count)


def score_term(model, inputs: LossInputs, settings: LossSettings, generator: torch.Generator | None) -> Tensor:
    """Eq. 11, Algorithm B.2, or its "denoised" form."""
    graph, positions = inputs.graph, inputs.positions
    timesteps = _random_timesteps(positions, settings.score_timesteps, generator)
    noise = centred_noise(graph.atom_mask, positions.dtype, generator)
    noisy_positions = model.diffusion.add_noise(positions, noise, timesteps)
    denoised = model.denoise(graph, noisy_positions, timesteps, detach_encoder=True)
    if settings.score_form == "noisy":
        _, forces = model.detached_energy_and_forces(graph, noisy_positions)
        score = model.diffusion.score(denoised, noisy_positions, timesteps)
        losses = score_consistency_loss(score, forces, settings.kT)
    else:
        _, forces = model.detached_energy_and_forces(graph, denoised)
        weights = model.diffusion.signal_to_noise(timesteps).to(positions.dtype)
        losses = denoised_point_consistency_loss(denoised, forces, weights, settings.gradient_step)
    return reduce_mean(losses, inputs.mask, inputs.count)


def distillation_term(model, inputs: LossInputs, settings: LossSettings, generator: torch.Generator | None) -> Tensor:
    """Eq. 7, second term, with structures relaxed on E in the place of data; ours, not the paper's."""
    relaxed = model.quasi_newton_steps(inputs.graph, inputs.positions, settings.relaxation_steps)
    detach_encoder = not settings.distillation_trains_encoder
    inputs = LossInputs(inputs.graph, relaxed, inputs.mask, inputs.count)
    return denoising_term(model, inputs, settings, generator, detach_encoder=detach_encoder)


def _uniform(positions: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B,) from U[0, 1), on the device of `positions`, drawn on the generator's."""
    device = generator.device if generator is not None else positions.device
    return torch.rand(len(positions), generator=generator, device=device).to(positions.device)


def _random_timesteps(positions: Tensor, bounds: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """(B,) whole time steps, uniform over first..last."""
    first, last = bounds
    return first + (_uniform(positions, generator) * (last - first + 1)).long().clamp(max=last - first)
