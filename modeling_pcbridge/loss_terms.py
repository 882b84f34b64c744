"""The losses of the method on a batch: what each asks of the model, before `losses` compares.

Each term is a scalar: the mean over the molecules where `mask` is True, divided by `count` instead where it is given
(see `losses.reduce_mean`).
"""

import torch
from torch import Tensor

from .diffusion import centred_noise
from .graph_batch import GraphBatch
from .losses import (
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


def label_terms(
    model, graph: GraphBatch, positions: Tensor, energy: Tensor | None, forces: Tensor | None, settings, counts
) -> tuple[Tensor | None, Tensor | None]:
    """Eq. 7, first term, and Eq. 12, from one evaluation of E; None where there is no label or no weight."""
    energy_term = force_term = None
    if settings.energy_weight == 0:
        energy = None
    if settings.force_weight == 0:
        forces = None
    if energy is None and forces is None:
        return None, None
    if forces is not None:
        positions = positions.detach().requires_grad_()
        interaction, gradient = model.interaction_energy_and_gradient(graph, positions)
    else:
        interaction = model.interaction_energy(graph, positions)
    if energy is not None:
        # The reference energies go off in float64, before the difference is rounded.
        label = energy.double() - model.energy_decoder.reference_energies(graph.atomic_numbers)
        mask = ~label.isnan()
        label = label.nan_to_num().to(interaction.dtype)
        energy_term = reduce_mean(energy_loss(interaction, label), mask, counts.get("energy"))
    if forces is not None:
        mask = ~(forces.isnan() & graph.atom_mask.unsqueeze(-1)).flatten(1).any(1)
        label = forces.to(gradient.dtype).nan_to_num() * graph.atom_mask.unsqueeze(-1)
        if settings.force_form == "squared":
            losses = force_loss(-gradient, label)
        else:
            losses = force_norm_loss(-gradient, label, graph.atom_mask)
        force_term = reduce_mean(losses, mask, counts.get("forces"))
    return energy_term, force_term


def denoising_term(
    model, graph, positions, mask, settings, count, generator, precision: float = 0.0, detach_encoder: bool = False
) -> Tensor:
    """Eq. 7, second term; `precision` as in `denoising_loss`."""
    uniform = _uniform(positions, generator)
    last = model.config.num_train_timesteps
    timesteps = (last * uniform.pow(settings.denoising_exponent)).long().clamp(max=last - 1) + 1
    noise = centred_noise(graph.atom_mask, positions.dtype, generator)
    noisy_positions = model.diffusion.add_noise(positions, noise, timesteps)
    denoised = model.denoise(graph, noisy_positions, timesteps, detach_encoder)
    target = align(positions, noisy_positions, graph.atom_mask) if settings.align_targets else positions
    signal_to_noise = model.diffusion.signal_to_noise(timesteps).to(positions.dtype)
    return reduce_mean(denoising_loss(denoised, target, signal_to_noise, precision), mask, count)


def optimality_term(model, graph, positions, mask, settings, count, generator) -> Tensor:
    """Eqs. 8 to 10, Algorithm B.1."""
    timesteps = _random_timesteps(positions, settings.optimality_timesteps, generator)
    noise = centred_noise(graph.atom_mask, positions.dtype, generator) * model.config.length_unit
    predicted = model.denoise(graph, noise, timesteps, detach_encoder=True)
    # sigma^2 ~ U(0, sigma_max^2], one a molecule
    sigma = settings.sigma_max * (1 - _uniform(positions, generator)).sqrt()[:, None, None]
    perturbation = sigma * centred_noise(graph.atom_mask, positions.dtype, generator)
    # Each structure beside its perturbed one, in one evaluation of E.
    both = torch.stack([predicted, predicted + perturbation], dim=1).flatten(0, 1)
    energies, forces = model.detached_energy_and_forces(graph.repeat(2), both)
    energy, perturbed_energy = energies.unflatten(0, (-1, 2)).unbind(1)
    force, perturbed_force = forces.unflatten(0, (-1, 2)).unbind(1)
    losses = optimality_consistency_loss(predicted, energy, force, perturbed_energy, perturbed_force)
    return reduce_mean(losses, mask, count)


def score_term(model, graph, positions, mask, settings, count, generator) -> Tensor:
    """Eq. 11, Algorithm B.2, or one of its other forms."""
    if settings.score_form == "relaxed":
        relaxed = model.relax(graph, positions, settings.relaxation_steps)
        detach_encoder = not settings.score_trains_encoder
        return denoising_term(model, graph, relaxed, mask, settings, count, generator, detach_encoder=detach_encoder)
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
    return reduce_mean(losses, mask, count)


def _uniform(positions: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B,) from U[0, 1), on the device of `positions`, drawn on the generator's."""
    device = generator.device if generator is not None else positions.device
    return torch.rand(len(positions), generator=generator, device=device).to(positions.device)


def _random_timesteps(positions: Tensor, bounds: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """(B,) whole time steps, uniform over first..last."""
    first, last = bounds
    return first + (_uniform(positions, generator) * (last - first + 1)).long().clamp(max=last - first)
