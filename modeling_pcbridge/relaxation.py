"""Batched relaxation on a potential energy: L-BFGS in the metric of the model Hessian, every molecule on its own.

`relaxation_init` and `relaxation_step` are pure functions over a `RelaxationState`; a step is one evaluation of the
potential and waits for nothing on the device, so that training can take a fixed number of them. `relax` is the driver
that takes steps until the forces of each molecule are small.

A step is that of L-BFGS (Nocedal 1980) whose initial Hessian is the model Hessian at the present structure, which turns
with the bonds where torsions move far, cut to a trust radius. It is accepted where the energy falls. Accepted or not,
what it tells of the curvature is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .graph_batch import GraphBatch
from .model_hessian import cut_to_radius, precondition

# Energies (B,), eV, and forces (B, N, 3), eV/angstrom, zero on padding, of positions (B, N, 3), angstrom; detached.
Potential = Callable[[GraphBatch, Tensor], tuple[Tensor, Tensor]]

# When a relaxation ends, unless it is told otherwise: the largest force, eV/angstrom, and evaluations of E.
MAX_FORCE = 0.02
MAX_EVALUATIONS = 200
# Angstrom that the atom which moves most may move in a step. Far from the minimum a force means little more than its
# direction, and the radius of a molecule halves where a step disappoints.
FIRST_RADIUS = 0.2
LARGEST_RADIUS = 0.3
# A step whose gain is this share of the predicted one halves, or doubles, the radius.
_DISAPPOINTING, _AS_PREDICTED = 0.25, 0.75
# eV / square angstrom; below this a step says that the energy is not convex along it, which L-BFGS cannot use.
_LEAST_CURVATURE = 1e-3


@dataclass(frozen=True)
class RelaxationState:
    """Where B molecules are in their relaxation.

    Attributes:
        positions: (B, N, 3), angstrom, the last accepted structures.
        energy: (B,), eV, there.
        forces: (B, N, 3), eV/angstrom, there; zero on padding.
        radius: (B,), the trust radii, angstrom.
        moves, force_changes: of every step so far, (B, N, 3) each, what L-BFGS knows; zero in molecules whose energy
            was not convex along the step.
    """

    positions: Tensor
    energy: Tensor
    forces: Tensor
    radius: Tensor
    moves: tuple[Tensor, ...] = ()
    force_changes: tuple[Tensor, ...] = ()

    @property
    def largest_force(self) -> Tensor:
        """(B,), eV/angstrom, on the atom of each molecule where it is largest."""
        return self.forces.norm(dim=-1).amax(-1)

    def __getitem__(self, rows: Tensor) -> "RelaxationState":
        return self._map(lambda tensor: tensor[rows])

    def truncated(self, num_atoms: int) -> "RelaxationState":
        """Padded to no more than `num_atoms`."""
        return self._map(lambda tensor: tensor if tensor.ndim == 1 else tensor[:, :num_atoms])

    def joined(self, others: "RelaxationState") -> "RelaxationState":
        """With `others` after these molecules; of steps that they were not there for they know nothing."""
        count = len(others.energy)

        def unknown(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(torch.cat([tensor, tensor.new_zeros(count, *tensor.shape[1:])]) for tensor in tensors)

        return RelaxationState(
            **{name: torch.cat([getattr(self, name), getattr(others, name)]) for name in _NOW},
            moves=unknown(self.moves),
            force_changes=unknown(self.force_changes),
        )

    def forget_all_but(self, num_steps: int) -> "RelaxationState":
        """Without what is older than the last `num_steps` steps."""
        first = len(self.moves) - num_steps
        return replace(self, moves=self.moves[first:], force_changes=self.force_changes[first:])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "RelaxationState":
        return RelaxationState(
            **{name: function(getattr(self, name)) for name in _NOW},
            moves=tuple(map(function, self.moves)),
            force_changes=tuple(map(function, self.force_changes)),
        )


_NOW = ("positions", "energy", "forces", "radius")


@dataclass(frozen=True)
class Relaxation:
    """What `relax` returns, of B molecules in the order they came in.

    Attributes:
        positions: (B, N, 3), angstrom.
        energy: (B,), eV, there, not above that of the start but for rounding.
        forces: (B, N, 3), eV/angstrom, there.
        converged: (B,) bool, whether the force on every atom is small enough.
        num_evaluations: (B,) int64, of the potential.
    """

    positions: Tensor
    energy: Tensor
    forces: Tensor
    converged: Tensor
    num_evaluations: Tensor


def relaxation_init(potential: Potential, graph: GraphBatch, positions: Tensor) -> RelaxationState:
    """The state at `positions` (B, N, 3), angstrom; one evaluation."""
    energy, forces = potential(graph, positions)
    return RelaxationState(
        positions, energy, forces.to(positions.dtype), torch.full_like(positions[:, 0, 0], FIRST_RADIUS)
    )


@torch.no_grad()
def relaxation_step(potential: Potential, graph: GraphBatch, state: RelaxationState) -> RelaxationState:
    """The state after one evaluation, at the end of a step; where the energy would rise, positions stay."""
    wish = quasi_newton_wish(graph, state)
    move = cut_to_radius(wish, state.radius)
    end = relaxation_init(potential, graph, state.positions + move)

    gain = _gain(state, end, move)
    # Along the direction -g the quadratic model gains (a - a^2 / 2) g H^-1 g where the step is cut by a.
    length, wished = _largest_norm(move), _largest_norm(wish)
    share = length / wished.clamp(min=torch.finfo(wished.dtype).tiny)
    ratio = gain / (_dot(state.forces, move) * (1 - share / 2))
    radius = torch.where(ratio > _AS_PREDICTED, torch.maximum(state.radius, 2 * length), state.radius)
    radius = torch.where(ratio > _DISAPPOINTING, radius, length / 2).clamp(max=LARGEST_RADIUS)

    force_change = state.forces - end.forces
    convex = (_dot(move, force_change) > _LEAST_CURVATURE * _dot(move, move))[:, None, None]
    accepted = gain > 0
    return RelaxationState(
        positions=torch.where(accepted[:, None, None], end.positions, state.positions),
        energy=torch.where(accepted, end.energy, state.energy),
        forces=torch.where(accepted[:, None, None], end.forces, state.forces),
        radius=radius,
        # `where`, because the energy of an impossible structure need not be finite.
        moves=(*state.moves, torch.where(convex, move, 0.0)),
        force_changes=(*state.force_changes, torch.where(convex, force_change, 0.0)),
    )


@torch.no_grad()
def relax(
    potential: Potential, graph: GraphBatch, positions: Tensor, max_force: float, max_evaluations: int
) -> Relaxation:
    """Relax every molecule until no atom has a force above `max_force`, eV/angstrom, or `max_evaluations` are used up.

    Molecules that are done leave the batch and others take their places, the largest first, so that as many are
    evaluated together as memory allows. Positions are (B, N, 3), angstrom.
    """
    sizes = graph.atom_mask.sum(1)
    waiting = sizes.argsort(descending=True)
    result = Relaxation(
        positions.clone(),
        positions.new_full((len(positions),), torch.nan),
        torch.zeros_like(positions),
        torch.zeros_like(sizes, dtype=torch.bool),
        torch.zeros_like(sizes),
    )
    rows, state = waiting[:0], None
    while len(rows) > 0 or len(waiting) > 0:
        num_atoms = int(sizes[rows if len(rows) > 0 else waiting].max())
        room = graph.truncated(num_atoms).rows_at_once - len(rows)
        if len(waiting) > 0 and room > len(rows):  # an evaluation of few costs a device as much as one of many
            newcomers, waiting = waiting[:room], waiting[room:]
            fresh = relaxation_init(potential, graph[newcomers].truncated(num_atoms), positions[newcomers, :num_atoms])
            result.num_evaluations[newcomers] = 1
            rows = torch.cat([rows, newcomers])
            state = fresh if state is None else state.truncated(num_atoms).joined(fresh)
            present = graph[rows].truncated(num_atoms)
        else:
            assert state is not None
            state = relaxation_step(potential, present, state)
            result.num_evaluations[rows] += 1
        done = (state.largest_force <= max_force) | (result.num_evaluations[rows] >= max_evaluations)
        if done.any():
            left, ended = rows[done], state[done]
            result.positions[left, : ended.positions.shape[1]] = ended.positions
            result.forces[left, : ended.positions.shape[1]] = ended.forces
            result.energy[left] = ended.energy.to(result.energy.dtype)
            result.converged[left] = ended.largest_force <= max_force
            rows, state, present = rows[~done], state[~done], present[~done]
        # What only molecules that have left would remember.
        oldest = int(result.num_evaluations[rows].max()) - 1 if len(rows) > 0 else 0
        state = state.forget_all_but(oldest)
    return result


def next_move(graph: GraphBatch, state: RelaxationState) -> Tensor:
    """The step that `relaxation_step` would try, (B, N, 3), angstrom."""
    return cut_to_radius(quasi_newton_wish(graph, state), state.radius)


def quasi_newton_wish(graph: GraphBatch, state: RelaxationState) -> Tensor:
    """Where L-BFGS would go, (B, N, 3), angstrom: H^-1 F by the two-loop recursion.

    Nocedal & Wright, Numerical Optimization, algorithm 7.4.
    """
    known = []
    forces = state.forces
    for move, force_change in zip(reversed(state.moves), reversed(state.force_changes), strict=True):
        curvature = _dot(move, force_change)
        inverse = torch.where(curvature > 0, 1 / curvature, 0.0)
        share = inverse * _dot(move, forces)
        forces = forces - share[:, None, None] * force_change
        known.append((move, force_change, inverse, share))
    wish = precondition(state.positions, forces, graph.pair_types, graph.atomic_numbers)
    for move, force_change, inverse, share in reversed(known):
        wish = wish + (share - inverse * _dot(force_change, wish))[:, None, None] * move
    return wish


def _gain(state: RelaxationState, end: RelaxationState, move: Tensor) -> Tensor:
    """By how much the energy falls along `move`, (B,), eV.

    Where the difference drowns in rounding, near the minimum, the forces at both ends tell it (trapezoidal rule).
    """
    difference = state.energy - end.energy
    rounding = 8 * torch.finfo(difference.dtype).eps * state.energy.abs()
    return torch.where(difference.abs() > rounding, difference, _dot(state.forces + end.forces, move) / 2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-1, -2))


def _largest_norm(a: Tensor) -> Tensor:
    return a.norm(dim=-1).amax(-1)
