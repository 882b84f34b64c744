"""D3(BJ) dispersion, added exactly to what E has learned at a level of theory that lacks it.

Grimme, Ehrlich, Goerigk, J. Comput. Chem. 32, 1456 (2011): pairs of atoms, rational damping, no three-body term. Large
flexible molecules fold by it, and B3LYP/6-31G* knows nothing of it. Computed by tad-dftd3 (extra `dispersion`).
"""

from functools import cache

import torch
from torch import Tensor

from .constants import BOHR_TO_ANGSTROM, HARTREE_TO_EV
from .errors import InputError

# Damping parameters of a functional, from the paper's supporting information; s6 is 1.
_DAMPING = {"B3LYP": {"a1": 0.3981, "s8": 1.9889, "a2": 4.4211}}


def with_d3bj(level_of_theory: str) -> str:
    """The name of a level of theory with D3(BJ): B3LYP/6-31G* becomes B3LYP-D3(BJ)/6-31G*.

    Raises:
        InputError: its functional has no damping parameters here.
    """
    functional, slash, basis = level_of_theory.partition("/")
    if functional not in _DAMPING:
        raise InputError(f"there are D3(BJ) parameters for {', '.join(_DAMPING)}, not for {level_of_theory}")
    return f"{functional}-D3(BJ){slash}{basis}"


def d3bj_energy(level_of_theory: str, atomic_numbers: Tensor, positions: Tensor) -> Tensor:
    """The dispersion energy of each molecule, (B,), eV; differentiable in the positions.

    Args:
        level_of_theory: that lacks it, such as "B3LYP/6-31G*".
        atomic_numbers: (B, N), 0 on padding.
        positions: (B, N, 3), angstrom.

    Raises:
        ImportError: tad-dftd3 is not installed.
    """
    try:
        import tad_dftd3
    except ImportError as error:
        raise ImportError("dispersion needs tad-dftd3: pip install 'pcbridge[dispersion]'") from error
    damping = {"s6": 1.0, "s9": 0.0, **_DAMPING[level_of_theory.partition("/")[0]]}
    with torch.autocast(positions.device.type, enabled=False):
        parameters = {name: positions.new_tensor(value) for name, value in damping.items()}
        reference = _reference(positions.device, positions.dtype)
        atoms = tad_dftd3.dftd3(atomic_numbers, positions / BOHR_TO_ANGSTROM, parameters, ref=reference)
    return atoms.sum(-1) * HARTREE_TO_EV


def d3bj_energy_and_gradient(level_of_theory: str, atomic_numbers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """`d3bj_energy` (B,) and its gradient (B, N, 3), eV/angstrom, as constants."""
    with torch.enable_grad():
        positions = positions.detach().requires_grad_()
        energy = d3bj_energy(level_of_theory, atomic_numbers, positions)
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
    return energy.detach(), gradient


@cache
def _reference(device: torch.device, dtype: torch.dtype):
    """The C6 coefficients of reference systems, which tad-dftd3 reads from a file."""
    from tad_dftd3.reference import Reference

    return Reference(device=device, dtype=dtype)
