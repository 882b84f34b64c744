"""Reference energies of the elements: what of total energies is a constant per atom, the same in every molecule."""

from collections.abc import Sequence

import numpy as np

from modeling_pcbridge.errors import InputError


def fit_reference_energies(atomic_numbers: Sequence[Sequence[int]], energies: Sequence[float]) -> dict[int, float]:
    """Per-element energies in eV by least squares, atomic number -> energy.

    Args:
        atomic_numbers: of each molecule.
        energies: total energies, eV.

    Raises:
        ValueError: no molecules.
    """
    if len(energies) == 0:
        raise InputError("there is no energy to fit reference energies to")
    elements = sorted({int(z) for molecule in atomic_numbers for z in molecule})
    counts = np.array([[list(molecule).count(z) for z in elements] for molecule in atomic_numbers], dtype=np.float64)
    # The least-norm solution, for elements that always come together.
    solution = np.linalg.lstsq(counts, np.asarray(energies, dtype=np.float64), rcond=None)[0]
    return dict(zip(elements, solution.tolist(), strict=True))
