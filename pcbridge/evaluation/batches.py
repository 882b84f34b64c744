"""Evaluating many structures in padded batches on the model's device, and back to arrays of each molecule."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import send_to_device

from modeling_pcbridge.graph_batch import GraphBatch, pad_graphs, pad_positions
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.molecular_graph import MolecularGraph


def padded_batches(
    model: PCBridgeModel, graphs: Sequence[MolecularGraph], structures: Sequence[np.ndarray], batch_size: int
) -> Iterator[tuple[GraphBatch, torch.Tensor]]:
    """`graphs` and `structures`, (N_i, 3) in angstrom, `batch_size` at a time: padded, on the model's device."""
    for start in range(0, len(graphs), batch_size):
        rows = slice(start, start + batch_size)
        inputs, positions = send_to_device((pad_graphs(graphs[rows]), pad_positions(structures[rows])), model.device)
        yield GraphBatch(**inputs), positions


def moved(
    model: PCBridgeModel,
    graphs: Sequence[MolecularGraph],
    structures: Sequence[np.ndarray],
    batch_size: int,
    move: Callable[[GraphBatch, torch.Tensor], torch.Tensor],
) -> list[np.ndarray]:
    """Every structure (N_i, 3) after `move`, such as `model.mean_shift`, which takes and gives padded positions."""
    return [
        array
        for graph, positions in padded_batches(model, graphs, structures, batch_size)
        for array in unpadded(graph, move(graph, positions))
    ]


def refined(model: PCBridgeModel, graph: GraphBatch, positions: torch.Tensor) -> torch.Tensor:
    """`positions` (B, N, 3), angstrom, refined as users do it, by the defaults of the model's config."""
    return model.predict_structure(method="mean_shift", positions=positions, **graph.inputs).positions[:, 0]


def energies_and_forces(
    model: PCBridgeModel,
    graphs: Sequence[MolecularGraph],
    structures: Sequence[np.ndarray],
    batch_size: int,
    level_of_theory: str | None = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies (S,) in eV and forces (N_i, 3) in eV/angstrom of S structures (N_i, 3); by default at the own level."""
    energies: list[float] = []
    forces: list[np.ndarray] = []
    for graph, positions in padded_batches(model, graphs, structures, batch_size):
        energy, force = model.energy_and_forces(graph, positions, level_of_theory)
        energies += energy.tolist()
        forces += unpadded(graph, force)
    return np.array(energies), forces


def unpadded(graph: GraphBatch, vectors: torch.Tensor) -> list[np.ndarray]:
    """(B, N, 3) as B arrays (N_i, 3) in float64."""
    arrays, sizes = vectors.double().cpu().numpy(), graph.atom_mask.sum(-1).tolist()
    return [array[:size] for array, size in zip(arrays, sizes, strict=True)]
