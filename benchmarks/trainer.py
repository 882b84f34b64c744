"""Trains one program on given labels for given processor time, in that program's own environment, and evaluates it.

    python -m benchmarks.trainer MOLECULES.npz SECONDS SUBJECT [OPTIONS]

Needs PyTorch and NumPy only, besides the program itself; see `benchmarks.worker` for what a subject is. The last line
of its output is the result, as JSON.
"""

import importlib
import json
import sys
import time

import numpy as np
import torch

from benchmarks.molecules import Molecule

_EVALUATION_BATCH = 32


def read(path: str) -> dict[str, list[Molecule]]:
    """The molecules of each part of a file that `benchmarks.accuracy` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        data = dict(archive)
    ends = np.cumsum(data["sizes"])
    parts: dict[str, list[Molecule]] = {}
    for k, (start, end) in enumerate(zip(ends - data["sizes"], ends, strict=True)):
        molecule = Molecule(
            str(data["mapped_smiles"][k]),
            data["atomic_numbers"][start:end].astype(np.int64),
            data["positions"][start:end],
            float(data["energies"][k]),
            data["forces"][start:end],
        )
        parts.setdefault(str(data["parts"][k]), []).append(molecule)
    return parts


def batches_of(subject, molecules: list[Molecule], batch_size: int) -> list:
    """Batches of molecules of about one size."""
    molecules = sorted(molecules, key=lambda molecule: len(molecule.atomic_numbers))
    return [subject.collate(molecules[start : start + batch_size]) for start in range(0, len(molecules), batch_size)]


def train(subject, molecules: list[Molecule], seconds: float) -> dict[str, int]:
    """Updates until the processor time is used up; the learning rate falls to zero with it, after a warm-up of 2%."""
    peak, batch_size = subject.schedule["learning_rate"], subject.schedule["batch_size"]
    batches = batches_of(subject, molecules, batch_size)
    loss(subject, batches[0]).backward()  # what is compiled at the first pass is not counted
    rng = np.random.default_rng(0)
    order: list[int] = []
    updates, start = 0, time.process_time()
    while (used := (time.process_time() - start) / seconds) < 1:
        order = order or rng.permutation(len(batches)).tolist()
        for group in (group for optimizer in subject.optimizers for group in optimizer.param_groups):
            group["lr"] = peak * min(1.0, (used + 1e-3) / 0.02, 1 - used)
        for optimizer in subject.optimizers:
            optimizer.zero_grad()
        loss(subject, batches[order.pop()]).backward()
        torch.nn.utils.clip_grad_norm_(subject.model.parameters(), 10.0)
        for optimizer in subject.optimizers:
            optimizer.step()
        updates += 1
    return {"updates": updates, "molecules": updates * batch_size}


def loss(subject, batch) -> torch.Tensor:
    """|E - label| + 0.5 times the sum over atoms of the lengths of force errors, mean over molecules."""
    energy, forces, energy_label, forces_label = subject.predicted(batch)
    norms = ((forces - forces_label).square().sum(-1) + 1e-8).sqrt()
    return (energy - energy_label).abs().mean() + 0.5 * norms.sum() / len(energy)


def evaluate(subject, molecules: list[Molecule]) -> dict[str, float]:
    """Errors, and how many molecules per second get energies and forces."""
    batches = batches_of(subject, molecules, _EVALUATION_BATCH)
    subject.energy_and_forces(batches[0])
    start = time.process_time()
    for batch in batches:
        subject.energy_and_forces(batch)
    seconds = time.process_time() - start
    of_energies, of_forces = [], []
    for batch in batches:
        energy, forces, energy_label, forces_label = (tensor.detach() for tensor in subject.predicted(batch))
        of_energies.append((energy - energy_label).abs())
        of_forces.append((forces - forces_label).abs().flatten())
    return {
        "structures": len(molecules),
        "energy_mae": float(torch.cat(of_energies).mean()),
        "force_mae": float(torch.cat(of_forces).mean()),
        "molecules_per_second": len(molecules) / seconds,
    }


def main() -> None:
    torch.set_num_threads(1)
    path, seconds, name, *options = sys.argv[1:]
    subject = importlib.import_module(f"benchmarks.subjects.{name}").Subject(*options)
    parts = read(path)
    result = train(subject, parts.pop("training"), float(seconds))
    subject.model.eval()
    print(json.dumps({**result, "errors": {part: evaluate(subject, some) for part, some in parts.items()}}))


if __name__ == "__main__":
    main()
