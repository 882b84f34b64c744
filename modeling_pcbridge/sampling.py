"""Generating structures: the reverse process from noise or from a given structure, checked against the graph."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from .configuration_pcbridge import PCBridgeConfig
from .diffusion import centre, noise_by_molecule
from .errors import InputError, require, require_choices
from .graph_batch import GraphBatch
from .relaxation import MAX_EVALUATIONS, MAX_FORCE, relax
from .structure_checks import StructureChecks

SamplingMethod = Literal["ddim", "denoising", "refine", "mean_shift", "correct"]
METHODS_FROM_POSITIONS = ("refine", "mean_shift", "correct")
# What would be the same if it were drawn again.
_METHODS_WITHOUT_NOISE = ("mean_shift", "correct")
# The fault of a structure that should lie at a minimum of E.
UNFINISHED = f"forces above {MAX_FORCE:g} eV/angstrom after {MAX_EVALUATIONS} steps of relaxation"
# What is told of each step of the reverse process: (rows, step, positions), see `PCBridgeModel.predict_structure`.
OnStep = Callable[[Tensor, int, Tensor], None]


@dataclass(frozen=True)
class SamplingSettings:
    """How structures are generated; the fields are arguments of `PCBridgeModel.predict_structure`, explained there.

    Raises:
        InputError: an unknown method, or a number out of range.
    """

    method: SamplingMethod = "ddim"
    num_inference_steps: int = 20
    num_samples: int = 1
    eta: float = 1.0
    max_attempts: int = 5
    mean_shift_steps: int = 0
    relaxation_steps: int | Literal["converged"] = 0
    relaxation_level: str | None = None

    def __post_init__(self):
        require_choices(self)
        at_least = {"num_inference_steps": 1, "num_samples": 1, "max_attempts": 1}
        for name, least in {**at_least, "mean_shift_steps": 0, "relaxation_steps": 0}.items():
            number = getattr(self, name)
            if name == "relaxation_steps" and number == "converged":
                continue
            is_right = isinstance(number, Integral) and int(number) >= least
            require(is_right, name, f"a whole number of at least {least}", repr(number))
        require(0 <= self.eta <= 1, "eta", "in 0..1", self.eta)

    @property
    def num_attempts(self) -> int:
        """How often a sample may be drawn; without noise it would be the same again."""
        return 1 if self.method in _METHODS_WITHOUT_NOISE else self.max_attempts


def default_num_steps(method: str, config: PCBridgeConfig) -> int:
    """The model evaluations that `method` takes where none are asked for."""
    return config.num_mean_shift_steps if method == "mean_shift" else SamplingSettings.num_inference_steps


def default_relaxation_steps(method: str, config: PCBridgeConfig) -> int:
    """The quasi-Newton steps on E that end `method` where none are asked for."""
    return config.num_relaxation_steps if method == "mean_shift" and config.has_learned_forces is not False else 0


def check_num_steps(method: str, num_steps: int, num_timesteps: int) -> None:
    """Whether `method` can do with `num_steps` model evaluations over `num_timesteps` time steps.

    Raises:
        InputError: too few or too many, or "ddim" would begin far from noise: its time steps, 1 and then every
            `num_timesteps // num_steps`-th, leave out the noisiest ones that the division leaves over.
    """
    # One step of a reverse process from noise would begin at time 1.
    least = 2 if method in ("ddim", "refine") else 1
    if not least <= num_steps <= num_timesteps:
        hint = "; one evaluation of noise is method denoising" if method == "ddim" and num_steps == 1 else ""
        raise InputError(f"num_inference_steps of {method} must lie in {least}..{num_timesteps}, not {num_steps}{hint}")
    stride = num_timesteps // num_steps
    left_out = num_timesteps - num_steps * stride
    if method == "ddim" and left_out > num_timesteps / 4:
        raise InputError(
            f"num_inference_steps of ddim {num_steps} would leave out the noisiest {left_out} of {num_timesteps} time "
            f"steps; take {num_timesteps // (stride + 1)} or {num_timesteps // stride}"
        )


def sample_structures(
    model,
    graph: GraphBatch,
    settings: SamplingSettings,
    starts: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> tuple[Tensor, list[list[list[str]]]]:
    """Structures (B, num_samples, N, 3), angstrom, and the faults of each as `StructureChecks` names them.

    The host waits for the device once before it draws and once after each drawing.

    Args:
        model: a `PCBridgeModel`.
        graph: B molecules.
        settings: how.
        starts: (B, N, 3), angstrom, where methods from positions begin.
        generator, on_step: as in `PCBridgeModel.predict_structure`.
    """
    molecules = graph.molecules()
    shape = (len(molecules), settings.num_samples)
    # A seed per sample, so that a sample does not depend on what else is in the batch.
    seed_device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**53, (shape[0] * shape[1],), generator=generator, device=seed_device).cpu()
    if starts is not None:
        starts = centre(starts.to(torch.promote_types(model.dtype, torch.float32)), graph.atom_mask)

    def draw(rows: Tensor, attempt: int) -> tuple[Tensor, list[list[str]]]:
        """The structures of some samples, (len(rows), N, 3), in turns that bound the memory, and their faults."""
        turns = [draw_at_once(some, attempt) for some in rows.split(graph.rows_at_once)]
        structures, is_finished = (torch.cat(parts) for parts in zip(*turns, strict=True))
        return structures, faults_of(structures, is_finished, rows)

    def draw_at_once(rows: Tensor, attempt: int) -> tuple[Tensor, Tensor]:
        of_molecules = rows // settings.num_samples
        num_atoms = [molecules[place].num_atoms for place in of_molecules.tolist()]
        places = of_molecules.to(graph.atom_mask.device, non_blocking=True)
        return draw_structures(
            model,
            graph[places],
            num_atoms,
            (seeds[rows] + attempt).tolist(),
            settings,
            None if starts is None else starts[places],
            None if on_step is None else partial(on_step, rows),
        )

    checks = [StructureChecks(molecule) for molecule in molecules]

    def faults_of(structures: Tensor, is_finished: Tensor, rows: Tensor) -> list[list[str]]:
        arrays, places = structures.double().cpu().numpy(), (rows // settings.num_samples).tolist()
        faults = [checks[k].faults(array[: molecules[k].num_atoms]) for k, array in zip(places, arrays, strict=True)]
        return [f if done else [*f, UNFINISHED] for f, done in zip(faults, is_finished.tolist(), strict=True)]

    samples, faults = draw(torch.arange(len(seeds)), attempt=0)
    for attempt in range(1, settings.num_attempts):
        wrong = torch.tensor([row for row, of_sample in enumerate(faults) if of_sample], dtype=torch.int64)
        if len(wrong) == 0:
            break
        again, faults_again = draw(wrong, attempt)
        samples[wrong.to(samples.device)] = again
        for row, of_sample in zip(wrong.tolist(), faults_again, strict=True):
            faults[row] = of_sample
    per_molecule = [faults[first : first + shape[1]] for first in range(0, len(faults), shape[1])]
    return samples.unflatten(0, shape), per_molecule


def draw_structures(
    model,
    graph: GraphBatch,
    num_atoms: list[int],
    seeds: list[int],
    settings: SamplingSettings,
    starts: Tensor | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """One structure of each of B molecules, (B, N, 3), angstrom, whatever its stereo marks are.

    And whether each is finished, (B,) bool: a relaxation until it has converged may not have.

    Args:
        model: a `PCBridgeModel`.
        graph: B molecules.
        num_atoms: how many atoms each has, known on the host.
        seeds: of the noise of each.
        settings: how; `num_samples` and `max_attempts` have no part in it.
        starts: (B, N, 3), angstrom, centred.
        on_step: called with (step, positions).
    """
    num_steps = 1
    if settings.method in _METHODS_WITHOUT_NOISE:
        assert starts is not None
        if settings.method == "correct":
            structures = model.correct(graph, starts)
        else:
            num_steps = settings.num_inference_steps
            structures = model.mean_shift(graph, starts, num_steps, on_step)
    else:
        dtype = torch.promote_types(model.dtype, torch.float32)
        draw = partial(noise_by_molecule, graph.atom_mask, num_atoms, seeds, dtype=dtype)
        if settings.method == "denoising":
            noisy = draw(num_draws=1)[0] * model.config.length_unit
            structures = model.denoise(graph, noisy, _full_timesteps(noisy, model.config.denoising_timestep))
        else:
            scheduler, timesteps = _reverse_schedule(model, settings.method, settings.num_inference_steps)
            num_steps = len(timesteps)
            noise = draw(num_draws=1 if settings.eta == 0 else 1 + num_steps)
            structures = _reverse(model, graph, starts, noise, scheduler, timesteps, settings.eta, on_step)
        if settings.mean_shift_steps > 0:
            structures = model.mean_shift(graph, structures, settings.mean_shift_steps)
    is_finished = torch.ones(len(structures), dtype=torch.bool, device=structures.device)
    if settings.relaxation_steps == "converged":
        at_level = partial(model.detached_energy_and_forces, level_of_theory=settings.relaxation_level)
        relaxed = relax(at_level, graph, structures, MAX_FORCE, MAX_EVALUATIONS)
        structures, is_finished = centre(relaxed.positions, graph.atom_mask), relaxed.converged
    elif settings.relaxation_steps > 0:
        structures = model.quasi_newton_steps(graph, structures, settings.relaxation_steps)
    if on_step is not None and settings.relaxation_steps != 0:
        on_step(num_steps + 1, structures)
    return structures, is_finished


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


def _full_timesteps(positions: Tensor, timestep: int) -> Tensor:
    return torch.full((len(positions),), timestep, dtype=torch.int64, device=positions.device)
