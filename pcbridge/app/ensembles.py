"""Conformer ensembles: what is kept of a molecule's conformers, and how much each counts."""

from dataclasses import replace

import numpy as np

from modeling_pcbridge.constants import BOLTZMANN_EV_PER_KELVIN
from pcbridge.evaluation.metrics import heavy_atom_rmsd

from .molecule_files import Prediction

TEMPERATURE = 298.15  # kelvin, of the weights
# More permutations of equivalent atoms, of several t-butyl groups for instance, would take seconds; twins may be kept.
_MAX_MATCHES = 10_000


def ensemble(conformers: list[Prediction], energy_window: float, rmsd_threshold: float) -> list[Prediction]:
    """The distinct conformers of one molecule, lowest energy first, with relative energies and Boltzmann weights.

    Of conformers that are near to each other the lowest is kept. Mirror images are different conformers. The weights
    are those of the model's energies alone: no vibrations, no solvent.

    Args:
        conformers: at least one.
        energy_window: eV above the lowest; what is higher is left out.
        rmsd_threshold: angstrom, of heavy atoms under the symmetries of the graph; what is not farther is the same.
    """
    by_energy = sorted(conformers, key=lambda conformer: conformer.energy)
    kept: list[Prediction] = []
    for conformer in by_energy:
        if conformer.energy - by_energy[0].energy <= energy_window and not _is_among(kept, conformer, rmsd_threshold):
            kept.append(conformer)
    relative = np.array([conformer.energy for conformer in kept]) - by_energy[0].energy
    weights = np.exp(-relative / (BOLTZMANN_EV_PER_KELVIN * TEMPERATURE))
    weights /= weights.sum()
    return [
        replace(conformer, sample=k, relative_energy=float(relative[k]), boltzmann_weight=float(weights[k]))
        for k, conformer in enumerate(kept)
    ]


def _is_among(kept: list[Prediction], conformer: Prediction, rmsd_threshold: float) -> bool:
    if not kept:
        return False
    others = np.array([other.positions for other in kept])
    distances = heavy_atom_rmsd(conformer.molecule.mol, others, conformer.positions, _MAX_MATCHES)
    return bool((distances <= rmsd_threshold).any())
