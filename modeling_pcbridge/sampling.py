"""Generating structures: the reverse process from noise or from a given structure, checked against stereo marks."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .diffusion import centre, noise_by_molecule
from .graph_batch import GraphBatch
from .molecular_graph import MolecularGraph, stereo_is_right

METHODS_FROM_POSITIONS = ("refine", "mean_shift")
METHODS = ("ddim", "denoising", *METHODS_FROM_POSITIONS)
# What is told of each step of the reverse process: (rows, step, positions), see `PCBridgeModel.predict_structure`.
OnStep = Callable[[Tensor, int, Tensor], None]


def check_num_steps(method: str, num_steps: int, num_timesteps: int) -> None:
    """Whether `method` can do with `num_steps` model evaluations over `num_timesteps` time steps.

    Raises:
        ValueError: too few or too many, or "ddim" would begin far from noise: its time steps, 1 and then every
            `num_timesteps // num_steps`-th, leave out the noisiest ones that the division leaves over.
    """
    # One step of a reverse process from noise would begin at time 1.
    least = 2 if method in ("ddim", "refine") else 1
    if not least <= num_steps <= num_timesteps:
        hint = "; one evaluation of noise is method denoising" if method == "ddim" and num_steps == 1 else ""
        raise ValueError(f"num_inference_steps of {method} must lie in {least}..{num_timesteps}, not {num_steps}{hint}")
    stride = num_timesteps // num_steps
    left_out = num_timesteps - num_steps * stride
    if method == "ddim" and left_out > num_timesteps / 4:
        raise ValueError(
            f"num_inference_steps of ddim {num_steps} would leave out the noisiest {left_out} of {num_timesteps} time "
            f"steps; take {num_timesteps // (stride + 1)} or {num_timesteps // stride}"
        )


def sample_structures(
    model,
    graph: GraphBatch,
    starts: Tensor | None,
    method: str,
    num_inference_steps: int,
    num_samples: int,
    eta: float,
    generator: torch.Generator | None,
    max_stereo_attempts: int,
    mean_shift_steps: int,
    relaxation_steps: int,
    on_step: OnStep | None,
) -> tuple[Tensor, Tensor]:
    """Structures (B, num_samples, N, 3), angstrom, and whether each obeys its stereo marks, (B, num_samples).

    Arguments as in `PCBridgeModel.predict_structure`; `starts` (B, N, 3) is where "refine" and "mean_shift" begin.
    """
    batch_size = len(graph.atomic_numbers)
    molecules = [graph.molecule(row) for row in range(batch_size)]
    graphs = graph.repeat(num_samples)
    dtype = torch.promote_types(model.dtype, torch.float32)
    if starts is not None:
        starts = centre(starts.to(dtype), graph.atom_mask).repeat_interleave(num_samples, 0)
    # A seed a sample, so that a sample does not depend on what else is in the batch.
    seed_device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**53, (len(graphs.atomic_numbers),), generator=generator, device=seed_device).cpu()
    scheduler, timesteps = _reverse_schedule(model, method, num_inference_steps)
    num_draws = 1 if eta == 0 else 1 + len(timesteps)

    def sample(rows: Tensor, attempt: int) -> Tensor:
        """The structures of some rows, (len(rows), N, 3), angstrom."""
        return torch.cat([sample_at_once(some, attempt) for some in rows.split(graphs.rows_at_once)])

    def sample_at_once(rows: Tensor, attempt: int) -> Tensor:
        if method == "mean_shift":
            assert starts is not None
            structures = model.mean_shift(graphs[rows], starts[rows], num_inference_steps)
        else:
            structures = sample_with_noise(rows, attempt)
            if mean_shift_steps > 0:
                structures = model.mean_shift(graphs[rows], structures, mean_shift_steps)
        return model.relax(graphs[rows], structures, relaxation_steps) if relaxation_steps > 0 else structures

    def sample_with_noise(rows: Tensor, attempt: int) -> Tensor:
        row_seeds = (seeds[rows.cpu()] + attempt).tolist()
        noise = noise_by_molecule(graphs.atom_mask[rows], row_seeds, num_draws, dtype)
        if method == "denoising":
            noisy = noise[0] * model.config.length_unit
            return model.denoise(graphs[rows], noisy, _full_timesteps(noisy, model.config.denoising_timestep))
        row_starts = None if starts is None else starts[rows]
        on_row_step = None if on_step is None else partial(on_step, rows)
        return _reverse(model, graphs[rows], row_starts, noise, scheduler, timesteps, eta, on_row_step)

    samples = sample(torch.arange(len(seeds), device=graphs.atom_mask.device), attempt=0)
    stereo_right = _check_stereo(molecules, samples, range(len(samples)), num_samples)
    num_attempts = 1 if method == "mean_shift" else max_stereo_attempts  # it would give the same again
    for attempt in range(1, num_attempts):
        wrong = (~stereo_right).nonzero().squeeze(-1)
        if len(wrong) == 0:
            break
        samples[wrong] = sample(wrong, attempt)
        stereo_right[wrong] = _check_stereo(molecules, samples[wrong], wrong.tolist(), num_samples)
    shape = (batch_size, num_samples)
    return samples.unflatten(0, shape), stereo_right.unflatten(0, shape)


def _reverse_schedule(model, method: str, num_steps: int):
    """The DDIM scheduler and its time steps, last to first; those up to `refinement_timestep` for "refine"."""
    if method == "refine":
        first = model.config.refinement_timestep
        stride = -(-first // num_steps)  # rounded up
        scheduler = model.diffusion.ddim_scheduler((model.config.num_train_timesteps + 1) // stride)
        return scheduler, [t for t in scheduler.timesteps.tolist() if t <= first]
    scheduler = model.diffusion.ddim_scheduler(num_steps)
    return scheduler, scheduler.timesteps.tolist()


def _reverse(
    model, graphs: GraphBatch, starts: Tensor | None, noise: Tensor, scheduler, timesteps, eta, on_step
) -> Tensor:
    """Eq. 3, from pure noise or from noised `starts`, to structures (B, N, 3) in angstrom.

    `noise` holds unit centred noise for the first time step and, where eta > 0, for each step after it.
    """
    unit = model.config.length_unit
    samples = noise[0] * unit
    if starts is not None:
        samples = model.diffusion.add_noise(starts, noise[0], _full_timesteps(starts, timesteps[0]))
    if on_step is not None:
        on_step(0, samples)
    for k, timestep in enumerate(timesteps):
        denoised = model.denoise(graphs, samples, _full_timesteps(samples, timestep))
        # Our own noise, because the scheduler's is not centred.
        fresh = noise[k + 1] if eta > 0 else None
        step = scheduler.step(denoised / unit, timestep, samples / unit, eta=eta, variance_noise=fresh)
        samples = step.prev_sample * unit
        if on_step is not None:
            on_step(k + 1, samples)
    return samples


def _check_stereo(molecules: list[MolecularGraph], samples: Tensor, rows, num_samples: int) -> Tensor:
    """(len(rows),) bool: whether `samples[k]`, of molecule `rows[k] // num_samples`, obeys its stereo marks."""
    right = torch.ones(len(samples), dtype=torch.bool)
    structures = samples.double().cpu().numpy()
    for k, row in enumerate(rows):
        molecule = molecules[row // num_samples]
        if molecule.has_stereo:
            right[k] = bool(stereo_is_right(molecule, structures[k : k + 1, : molecule.num_atoms])[0])
    return right.to(samples.device)


def _full_timesteps(positions: Tensor, timestep: int) -> Tensor:
    return torch.full((len(positions),), timestep, dtype=torch.int64, device=positions.device)
