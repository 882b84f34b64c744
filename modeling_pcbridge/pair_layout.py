"""Which pairs of atoms a layer sees, and how what is known of each is stored.

Two layouts with the same methods, so that the model is written once. `AllPairs`: every atom sees every atom, and what
is symmetric is kept for the T = N (N + 1) / 2 pairs i <= j only. `NeighbourLists`: each atom has a list of the K it
sees at most, T = N K. Under a cutoff both give the same, but time and memory of the first grow with N^2, of the second
with N.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .atoms_of import atoms_of
from .molecular_graph import PAIR_PADDING, PAIR_PATH_OF_2

# Molecules of fewer atoms are faster with all pairs.
FEWEST_ATOMS_FOR_LISTS = 128


class Sight(NamedTuple):
    """Which atoms an atom sees.

    Attributes:
        cutoff: those within it, angstrom, by an envelope that falls to zero there.
        num_bonds: and those at most so many bonds away, 2 or more, however far; 0 for none.
    """

    cutoff: float
    num_bonds: int = 0

    def is_joined(self, codes: Tensor) -> Tensor:
        """Whether pairs of these codes of `pair_types` are seen at any distance."""
        return (codes > PAIR_PADDING) & (codes <= PAIR_PATH_OF_2 - 2 + self.num_bonds)

    def envelope(self, distances: Tensor, codes: Tensor) -> Tensor:
        """By how much each pair is seen, 0 to 1, from `distances` in angstrom and codes of `pair_types`."""
        envelope = smooth_envelope(distances / self.cutoff)
        return torch.where(self.is_joined(codes), 1.0, envelope) if self.num_bonds else envelope


def smooth_envelope(x: Tensor) -> Tensor:
    """1 - 10 x^3 + 15 x^4 - 6 x^5 for x >= 0, and 0 from x = 1 on; two derivatives are zero at either end.

    Factorised, as the sum of powers rounds to less than zero near 1.
    """
    x = x.clamp(max=1)
    return (1 - x).pow(3) * (1 + x * (3 + 6 * x))


class AllPairs(NamedTuple):
    """Pair (i, j), i <= j, of N atoms is number j (j + 1) / 2 + i, whatever N is; K = N.

    Attributes:
        rows, columns: (T,) i and j.
        places: (N, N) number of pair (i, j), or (j, i).
    """

    rows: Tensor
    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, num_atoms: int, device: torch.device) -> "AllPairs":
        # Not torch.triu_indices, for which torch.compile would compile every number of atoms anew.
        numbers = torch.arange(num_atoms * (num_atoms + 1) // 2, device=device)
        columns = (((8 * numbers + 1).double().sqrt() - 1) / 2).long()
        atoms = torch.arange(num_atoms, device=device)
        smaller, larger = torch.minimum(atoms[:, None], atoms), torch.maximum(atoms[:, None], atoms)
        return cls(numbers - columns * (columns + 1) // 2, columns, larger * (larger + 1) // 2 + smaller)

    @property
    def is_self(self) -> Tensor:
        """(1, T) whether the pair is an atom and itself."""
        return (self.rows == self.columns).unsqueeze(0)

    def take(self, square: Tensor) -> Tensor:
        """(..., N, N) -> (..., T)."""
        return _gather_last(square.flatten(-2), self.rows * square.shape[-1] + self.columns)

    def differences(self, positions: Tensor) -> Tensor:
        """(B, N, 3) -> (B, T, 3) from one atom to the other, in either direction."""
        return positions.index_select(1, self.rows) - positions.index_select(1, self.columns)

    def products(self, features: Tensor) -> Tensor:
        """x_i . x_j, (B, T), of features (B, N, C)."""
        return self.take(features @ features.mT)

    def unfold(self, pairs: Tensor) -> Tensor:
        """(..., T) -> (..., N, K)."""
        # The compiler derives and fuses plain operations itself.
        unfold = _Unfold.forward if torch.compiler.is_compiling() else _Unfold.apply
        return unfold(pairs, *self)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Products (B, H, N, K) of queries (B, H, N, d) with the keys (B, H, N, d) that they see."""
        return queries @ keys.mT

    def gather_sum(self, weights: Tensor, values: Tensor) -> Tensor:
        """Sums (B, H, N, d) of the values (B, H, N, d) that an atom sees, by weights (B, H, N, K)."""
        return weights @ values


class NeighbourLists(NamedTuple):
    """The K atoms at most that each atom sees, itself among them; made from positions.

    Attributes:
        neighbours: (B, N, K), padded by the atom itself.
        is_real: (B, N, K) bool, False on padding.
        opposites: (B, N, K), where in the N K entries the same pair is, seen from its other atom; padding is its own.
    """

    neighbours: Tensor
    is_real: Tensor
    opposites: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, pair_types: Tensor, positions: Tensor, sight: Sight) -> "NeighbourLists":
        """From (B, N, N) codes and (B, N, 3) positions in angstrom. Waits for the device, which must count K.

        Distances of all pairs are compared here: 1,000 atoms take a core .02 s, 5,000 take .6 s and 0.26 GB.
        """
        is_seen = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist") < sight.cutoff
        is_seen &= pair_types != PAIR_PADDING
        if sight.num_bonds:
            is_seen |= sight.is_joined(pair_types)
        num_atoms = is_seen.shape[-1]
        atoms = torch.arange(num_atoms, device=positions.device)
        is_seen |= atoms == atoms[:, None]
        lengths = is_seen.sum(-1)
        longest = int(lengths.max())
        is_real = torch.arange(longest, device=positions.device) < lengths.unsqueeze(-1)
        neighbours = atoms[:, None].repeat(len(positions), 1, longest)
        # Both run through the atoms in order, and through what each sees in order.
        neighbours[is_real] = is_seen.nonzero()[:, -1]
        places = torch.arange(num_atoms * longest, device=positions.device).view(num_atoms, longest)
        # How many atoms j sees before i, which is where i is in its list.
        before = (is_seen.cumsum(-1, dtype=torch.int32) - 1).mT.gather(-1, neighbours)
        return cls(neighbours, is_real, torch.where(is_real, neighbours * longest + before, places))

    @property
    def is_self(self) -> Tensor:
        """(B, T) whether the pair is an atom and itself."""
        atoms = torch.arange(self.neighbours.shape[1], device=self.neighbours.device)
        return (self.neighbours == atoms[:, None]).flatten(1)

    def take(self, square: Tensor) -> Tensor:
        """(B, N, N) codes -> (B, T), 0 on padding, which is `PAIR_PADDING`."""
        return (square.gather(-1, self.neighbours) * self.is_real).flatten(1)

    def differences(self, positions: Tensor) -> Tensor:
        """(B, N, 3) -> (B, T, 3) from one atom to the other, in either direction."""
        return (positions.unsqueeze(2) - atoms_of(positions, self.neighbours)).flatten(1, 2)

    def products(self, features: Tensor) -> Tensor:
        """x_i . x_j, (B, T), of features (B, N, C)."""
        return (features.unsqueeze(2) * atoms_of(features, self.neighbours)).sum(-1).flatten(1)

    def unfold(self, pairs: Tensor) -> Tensor:
        """(..., T) -> (..., N, K)."""
        return pairs.unflatten(-1, self.neighbours.shape[1:])

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Products (B, H, N, K) of queries (B, H, N, d) with the keys (B, H, N, d) that they see."""
        return _Scores.apply(queries, keys.to(queries.dtype), self.neighbours, self.opposites)

    def gather_sum(self, weights: Tensor, values: Tensor) -> Tensor:
        """Sums (B, H, N, d) of the values (B, H, N, d) that an atom sees, by weights (B, H, N, K)."""
        return _GatherSum.apply(weights.to(values.dtype), values, self.neighbours, self.opposites)


PairLayout = AllPairs | NeighbourLists


def layout_of(pair_types: Tensor, positions: Tensor, sight: Sight | None) -> PairLayout:
    """The faster layout for (B, N, N) codes and (B, N, 3) positions; all pairs where there is no `sight`.

    All pairs too in compiled code and CUDA graphs, as the length of lists depends on the data.
    """
    if sight is None or positions.shape[1] < FEWEST_ATOMS_FOR_LISTS or _is_fixed(positions):
        return AllPairs.of(positions.shape[1], positions.device)
    return NeighbourLists.of(pair_types, positions, sight)


def _is_fixed(positions: Tensor) -> bool:
    """Whether operations are being recorded, to be repeated with other data."""
    return torch.compiler.is_compiling() or (positions.is_cuda and torch.cuda.is_current_stream_capturing())


def _gather_last(values: Tensor, index: Tensor) -> Tensor:
    """`values[..., index]` for 1-D `index`; on CPUs `gather` is more than twice as fast as indexing."""
    return values.gather(-1, index.expand(*values.shape[:-1], -1))


class _Unfold(torch.autograd.Function):
    """Copies pairs i <= j to both halves of a symmetric matrix. Linear; `_Fold` is its transpose."""

    @staticmethod
    def forward(pairs, rows, columns, places):
        return _gather_last(pairs, places.flatten()).unflatten(-1, places.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient):
        return _Fold.apply(gradient, *ctx.saved_tensors), None, None, None


class _Fold(torch.autograd.Function):
    """Adds the two halves of a matrix: (..., N, N) -> (..., T)."""

    @staticmethod
    def forward(square, rows, columns, places):
        upper = AllPairs(rows, columns, places).take(square)
        lower = AllPairs(columns, rows, places).take(square)
        return upper.add_(lower.mul_((rows != columns).to(lower.dtype)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient):
        return _Unfold.apply(gradient, *ctx.saved_tensors), None, None, None


# Of lists the gathered keys and values, (B, N, K, C), would be most of what autograd keeps. These gather them anew
# instead, and are each other's derivatives, to any order. As lists are symmetric, what an atom gives to those that see
# it is gathered from them too.


class _Scores(torch.autograd.Function):
    """s_ij = x_i . y_n(i, j): (B, H, N, d) twice, neighbours and opposites (B, N, K) -> (B, H, N, K)."""

    @staticmethod
    def forward(queries, keys, neighbours, opposites):
        with torch.autocast(keys.device.type, enabled=False):
            products = queries.transpose(1, 2).unsqueeze(-2) @ _seen(keys, neighbours).mT
        return products.squeeze(-2).transpose(1, 2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        queries, keys, *lists = ctx.saved_tensors
        of_queries = of_keys = None
        if ctx.needs_input_grad[0]:
            of_queries = _GatherSum.apply(gradient, keys, *lists)
        if ctx.needs_input_grad[1]:
            of_keys = _GatherSum.apply(_Opposite.apply(gradient, lists[1]), queries, *lists)
        return of_queries, of_keys, None, None


class _GatherSum(torch.autograd.Function):
    """x_i = sum_j w_ij y_n(i, j): (B, H, N, K), (B, H, N, d), neighbours and opposites (B, N, K) -> (B, H, N, d)."""

    @staticmethod
    def forward(weights, values, neighbours, opposites):
        with torch.autocast(values.device.type, enabled=False):
            sums = weights.transpose(1, 2).unsqueeze(-2) @ _seen(values, neighbours)
        return sums.squeeze(-2).transpose(1, 2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        weights, values, *lists = ctx.saved_tensors
        of_weights = of_values = None
        if ctx.needs_input_grad[0]:
            of_weights = _Scores.apply(gradient, values, *lists)
        if ctx.needs_input_grad[1]:
            of_values = _GatherSum.apply(_Opposite.apply(weights, lists[1]), gradient, *lists)
        return of_weights, of_values, None, None


class _Opposite(torch.autograd.Function):
    """w_ij -> w_ji, (B, H, N, K), by the opposites (B, N, K). Its own transpose."""

    @staticmethod
    def forward(weights, opposites):
        return (
            weights.flatten(-2)
            .gather(-1, opposites.flatten(1).unsqueeze(1).expand(-1, weights.shape[1], -1))
            .view_as(weights)
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, gradient):
        return _Opposite.apply(gradient, *ctx.saved_tensors), None


def _seen(values: Tensor, neighbours: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H, K, d)."""
    heads = values.transpose(1, 2)
    # Rows of all heads at once, as short ones are slow to take.
    return atoms_of(heads.flatten(2), neighbours).unflatten(-1, heads.shape[2:]).transpose(2, 3)
