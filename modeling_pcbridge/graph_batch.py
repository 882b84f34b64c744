"""A padded batch of molecular graphs: the conditioning input of every part of the model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .molecular_graph import MolecularGraph

# Pairs in one evaluation. Forces of molecules of 100 atoms then take 0.3 GB with the default sizes of a model, and 9 GB
# with the paper's.
_PAIRS_AT_ONCE = 2**18


@dataclass(frozen=True)
class GraphBatch:
    """B molecules padded to N atoms; see `MolecularGraph` for the codes.

    Attributes:
        atomic_numbers: (B, N) int64, 0 on padding.
        formal_charges: (B, N) int64.
        atom_mask: (B, N) bool, True on real atoms.
        pair_types: (B, N, N) uint8, 0 where either atom is padding.
        stereo_pair_types: (B, N, N) uint8.
        stereo_quadruples: (B, M, 4) int64 atom indices, -1 on padding; M may be 0.
        torsion_quadruples: (B, K, 4) int64 atom indices, -1 on padding; K may be 0.
    """

    atomic_numbers: Tensor
    formal_charges: Tensor
    atom_mask: Tensor
    pair_types: Tensor
    stereo_pair_types: Tensor
    stereo_quadruples: Tensor
    torsion_quadruples: Tensor

    @classmethod
    def of_inputs(cls, inputs: dict[str, Tensor], positions: Tensor | None = None) -> "GraphBatch":
        """The batch in the keyword arguments of a model's method, with which `positions` have to go, if there are any.

        Raises:
            TypeError: an argument that is neither an option of the method nor a tensor of the processor, or one of
                these is missing.
            InputError: positions that are not (B, N, 3).
        """
        if unknown := sorted(set(inputs) - set(GRAPH_KEYS)):
            raise TypeError(f"there is no option {unknown[0]!r}")
        if missing := [key for key in GRAPH_KEYS if key not in inputs]:
            raise TypeError(f"no {missing[0]}; give what the processor returns, with **")
        batch = cls(**inputs)
        if positions is not None:
            batch.check_positions(positions)
        return batch

    @property
    def inputs(self) -> dict[str, Any]:
        """As keyword arguments of a model's method; `of_inputs` inverts it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def check_positions(self, positions: Tensor) -> None:
        """Raises ValueError unless `positions` is (B, N, 3)."""
        expected = (*self.atomic_numbers.shape, 3)
        if positions.shape != expected:
            raise InputError(f"positions have shape {tuple(positions.shape)}, but the graphs are for {expected}")

    def __getitem__(self, rows: slice | Tensor) -> "GraphBatch":
        return self._map(lambda tensor: tensor[rows])

    def truncated(self, num_atoms: int) -> "GraphBatch":
        """Padded to no more than `num_atoms`, which must be the size of the largest molecule at least."""
        return replace(
            self,
            atomic_numbers=self.atomic_numbers[:, :num_atoms],
            formal_charges=self.formal_charges[:, :num_atoms],
            atom_mask=self.atom_mask[:, :num_atoms],
            pair_types=self.pair_types[:, :num_atoms, :num_atoms],
            stereo_pair_types=self.stereo_pair_types[:, :num_atoms, :num_atoms],
        )

    @property
    def rows_at_once(self) -> int:
        """Rows whose pairs are few enough for one evaluation in bounded memory; many samples are predicted in turns."""
        return max(_PAIRS_AT_ONCE // self.atom_mask.shape[1] ** 2, 1)

    def repeat(self, times: int) -> "GraphBatch":
        """Each molecule `times` times in a row: (B * times, ...)."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def cpu(self) -> "GraphBatch":
        """On the CPU; waits for the device."""
        return self._map(Tensor.cpu)

    def molecule(self, row: int) -> MolecularGraph:
        """The graph of one molecule, without padding; of a batch that is on the CPU."""
        n = int(self.atom_mask[row].sum())

        def unpadded(quadruples: Tensor) -> np.ndarray:
            return quadruples[quadruples[:, 0] >= 0].numpy()

        return MolecularGraph(
            atomic_numbers=self.atomic_numbers[row, :n].numpy(),
            formal_charges=self.formal_charges[row, :n].numpy(),
            pair_types=self.pair_types[row, :n, :n].numpy(),
            stereo_pair_types=self.stereo_pair_types[row, :n, :n].numpy(),
            stereo_quadruples=unpadded(self.stereo_quadruples[row]),
            torsion_quadruples=unpadded(self.torsion_quadruples[row]),
        )

    def molecules(self) -> list[MolecularGraph]:
        """The graphs of all molecules, without padding; waits for the device."""
        on_host = self.cpu()
        return [on_host.molecule(row) for row in range(len(on_host.atomic_numbers))]

    def outside_inference_mode(self) -> "GraphBatch":
        """Tensors made under `torch.inference_mode` copied, so that autograd may save them."""
        return self._map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def _map(self, function) -> "GraphBatch":
        return GraphBatch(**{name: function(tensor) for name, tensor in self.inputs.items()})


GRAPH_KEYS = tuple(field.name for field in fields(GraphBatch))


def pad_graphs(graphs: Sequence[MolecularGraph]) -> dict[str, Tensor]:
    """Stack `MolecularGraph`s into the tensors of `GraphBatch`, padded to the largest molecule."""

    def stacked(name: str, dtype: torch.dtype = torch.int64, padding: int = 0) -> Tensor:
        return _stacked([getattr(graph, name) for graph in graphs], dtype, padding)

    atomic_numbers = stacked("atomic_numbers")
    return {
        "atomic_numbers": atomic_numbers,
        "formal_charges": stacked("formal_charges"),
        "atom_mask": atomic_numbers > 0,
        "pair_types": stacked("pair_types", torch.uint8),
        "stereo_pair_types": stacked("stereo_pair_types", torch.uint8),
        "stereo_quadruples": stacked("stereo_quadruples", padding=-1),
        "torsion_quadruples": stacked("torsion_quadruples", padding=-1),
    }


def pad_positions(positions: Sequence[np.ndarray]) -> Tensor:
    """Stack (N_i, 3) arrays into (B, N, 3) float32, zero on padding."""
    return _stacked(positions, torch.float32, 0)


def _stacked(arrays: Sequence[np.ndarray], dtype: torch.dtype, padding: int) -> Tensor:
    """Arrays of as many axes, each padded at the end of its axes to the longest."""
    shape = np.max([array.shape for array in arrays], axis=0).tolist()
    whole = torch.full((len(arrays), *shape), padding, dtype=dtype)
    for row, array in zip(whole, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = torch.as_tensor(array)
    return whole
