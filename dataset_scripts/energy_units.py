"""Whether total energies can be in eV, judged by those of the free atoms."""

import numpy as np

from dataset_scripts.bad_rows import BadRowError
from modeling_pcbridge.constants import HARTREE_TO_EV, KCAL_PER_MOL_TO_EV

# Total energies of the free atoms, hartree, to 1%: all-electron methods agree on them that well, and bonds add less.
_ATOMS = {1: -0.5, 5: -24.6, 6: -37.8, 7: -54.5, 8: -75.0, 9: -99.7, 14: -289.3, 15: -341.2, 16: -398.1, 17: -460.1}
# Methods without the core electrons, whose energies are another part of these.
_VALENCE_ONLY = ("xtb", "gfn", "pm", "am1", "mndo", "dftb", "om2", "om3", "ani", "mmff", "uff")
# How much of one eV another unit's number is.
_UNITS = {"hartree": HARTREE_TO_EV, "kcal/mol": KCAL_PER_MOL_TO_EV, "kJ/mol": KCAL_PER_MOL_TO_EV / 4.184}
_TOLERANCE = 0.2


def check_energy_unit(name: str, atomic_numbers: list[int], energy: float | None, level_of_theory: str | None) -> None:
    """Refuses an energy that is a total energy in another unit than eV.

    Only where the unit can be told: methods of all electrons, elements up to chlorine. Energies relative to something
    else pass.

    Raises:
        BadRowError: naming the unit.
    """
    if energy is None or any(word in (level_of_theory or "").lower() for word in _VALENCE_ONLY):
        return
    if not set(atomic_numbers) <= set(_ATOMS):
        return
    expected = sum(_ATOMS[z] for z in atomic_numbers) * HARTREE_TO_EV
    for unit, in_ev in _UNITS.items():
        if abs(np.log(max(energy * in_ev / expected, 1e-9))) < _TOLERANCE:
            reason = f"the energy looks like one in {unit}, but labels are in eV"
            raise BadRowError(name, reason, f"{energy:.6g}; the free atoms have {expected:.6g} eV")
