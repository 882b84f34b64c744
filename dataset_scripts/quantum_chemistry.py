"""The programs that make labels: one function a calculation, in angstrom, eV and eV/angstrom.

| function | level of theory | program |
| --- | --- | --- |
| `pm6_minimum` | PM6 | MOPAC 22 (the program `mopac`; Debian package of that name) |
| `b3lyp_energy_and_forces`, `b3lyp_energy` | B3LYP/6-31G*, that of PubChemQC B3LYP/6-31G*//PM6 | PySCF (extra `qc`) |
| `b3lyp_minimum` | the same | PySCF and geomeTRIC (extra `qc`) |
| `gfn2_energy_and_forces`, `gfn2_minimum`, `gfn2_relaxed`, `gfn2_snapshot` | GFN2-xTB | tblite and ASE (extra `xtb`) |
| `xtb_minimum` | GFN2-xTB, in half the time | the program `xtb` (6.5 or later; Debian package of that name) |

All take (atomic_numbers, positions, total_charge) of a closed-shell molecule and use one thread (GFN2-xTB: as many as
OMP_NUM_THREADS says when it is first used). A calculation that fails raises RuntimeError or ValueError with the
program's reason; a program that is not installed, ImportError.
"""

import io
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rdkit import Chem

from modeling_pcbridge.constants import (
    HARTREE_PER_BOHR_TO_EV_PER_ANGSTROM,
    HARTREE_TO_EV,
    KCAL_PER_MOL_TO_EV,
)
from modeling_pcbridge.errors import CalculationError, InputError

# Above this the structure is not called a minimum, whatever MOPAC says; PRECISE reaches .05 (median).
MAX_PM6_GRADIENT_NORM = 1.0  # kcal/mol/angstrom, over all coordinates
MOPAC_TIMEOUT = 3600  # seconds; molecules of PubChem's size take seconds

MAX_B3LYP_STEPS = 100

_HEAVIEST_OF_GFN2 = 86
MAX_GFN2_FORCE = 0.01  # eV/angstrom, on any atom of a minimum
MAX_GFN2_STEPS = 500
XTB_TIMEOUT = 3600  # seconds

DYNAMICS_STEPS = 200  # of 1 fs
DYNAMICS_FRICTION = 0.02  # 1/fs


def pm6_minimum(atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int) -> tuple[np.ndarray, float]:
    """The PM6 minimum below (N, 3) `positions` by MOPAC, keywords `PM6 PRECISE EF INT`.

    MOPAC's internal coordinates take less time than its own choice for drug-like molecules (Cartesian L-BFGS) and end
    nearer the minimum; where they fail, its own choice is tried.

    Returns:
        The (N, 3) structure, in a frame of its own, and its heat of formation in eV, which is PM6's energy.

    Raises:
        RuntimeError: MOPAC gave no structure (its messages: no self-consistence, too many cycles, atoms too close,
            unknown element), stopped far from a minimum, or took longer than `MOPAC_TIMEOUT`.
        ImportError: there is no program `mopac`.
    """
    if shutil.which("mopac") is None:
        raise ImportError("PM6 needs the program mopac (MOPAC 22; Debian package mopac)")
    try:
        return _pm6_optimised(atomic_numbers, positions, total_charge, " EF INT")
    except CalculationError:
        return _pm6_optimised(atomic_numbers, positions, total_charge, "")


def _pm6_optimised(
    atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int, optimiser: str
) -> tuple[np.ndarray, float]:
    """As `pm6_minimum`, with MOPAC's keywords for one optimiser."""
    symbol = Chem.GetPeriodicTable().GetElementSymbol
    atoms = "".join(
        f"{symbol(int(z))} {x:.8f} 1 {y:.8f} 1 {w:.8f} 1\n"
        for z, (x, y, w) in zip(atomic_numbers, positions, strict=True)
    )
    with TemporaryDirectory(prefix="pm6_") as folder:
        job = Path(folder) / "molecule.mop"
        job.write_text(f"PM6 PRECISE{optimiser} THREADS=1 CHARGE={total_charge}\n\n\n{atoms}")
        try:
            subprocess.run(["mopac", job.name], cwd=folder, capture_output=True, timeout=MOPAC_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise CalculationError(f"MOPAC took longer than {MOPAC_TIMEOUT} s") from error
        # The archive file is written only when there is a result.
        archive, output = job.with_suffix(".arc"), job.with_suffix(".out")
        if not archive.exists():
            raise CalculationError(f"MOPAC: {_mopac_messages(output.read_text() if output.exists() else '')}")
        summary = archive.read_text()
        geometry = output.read_text().rpartition("CARTESIAN COORDINATES")[2].partition("Empirical Formula")[0]

    norm = re.search(r"GRADIENT NORM\s+=\s+(\S+)", summary)  # not there for a single atom
    if norm and float(norm[1]) > MAX_PM6_GRADIENT_NORM:
        raise CalculationError(f"PM6 did not reach a minimum (gradient norm {norm[1]} kcal/mol/angstrom)")
    heat = re.search(r"HEAT OF FORMATION\s+=\s+(\S+) KCAL/MOL", summary)
    rows = re.findall(r"^ *\d+ +[A-Z][a-z]?" + r" +(-?\d+\.\d+)" * 3 + "$", geometry, re.MULTILINE)
    if heat is None or len(rows) != len(atomic_numbers):
        raise CalculationError("MOPAC's output has no energy or not every atom")
    return np.array(rows, dtype=np.float64), float(heat[1]) * KCAL_PER_MOL_TO_EV


def _mopac_messages(output: str) -> str:
    """The messages that MOPAC repeats at the end of its output, or the last lines where it gives none."""
    box = output.partition("Error and normal termination messages")[2]
    messages = [m for m in re.findall(r"^ \* (.*\S) *\*$", box, re.MULTILINE) if m != "JOB ENDED NORMALLY"]
    last_lines = [line.strip() for line in output.splitlines() if line.strip(" *")][-6:]
    return " ".join(messages or last_lines) or "no output"


def b3lyp_energy_and_forces(
    atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int, exact: bool = False
) -> tuple[float, np.ndarray]:
    """Restricted B3LYP/6-31G*, Cartesian d functions and the VWN form of Gaussian and GAMESS.

    Args:
        exact: exact two-electron integrals and PySCF's default grid (level 3), so that energies are Gaussian's to
            1e-6 hartree (water), in place of density fitting and grid level 1. Density fitting shifts total energies
            of molecules of up to seven heavy atoms by up to 3e-4 hartree: do not mix the two in one data set.

    Returns:
        The total electronic energy in eV and the (N, 3) forces in eV/angstrom.

    Raises:
        RuntimeError: the self-consistent field did not converge.
        ValueError: an element beyond krypton, for which there is no 6-31G*.
    """
    from pyscf import lib

    field = _b3lyp_field(atomic_numbers, positions, total_charge, exact)
    with lib.with_omp_threads(1):
        energy = _self_consistent_energy(field)
        gradient = field.nuc_grad_method().kernel()
    return energy, -gradient * HARTREE_PER_BOHR_TO_EV_PER_ANGSTROM


def b3lyp_energy(atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int) -> float:
    """As `b3lyp_energy_and_forces`: the energy in eV alone, in about half the time."""
    from pyscf import lib

    with lib.with_omp_threads(1):
        return _self_consistent_energy(_b3lyp_field(atomic_numbers, positions, total_charge, exact=False))


def b3lyp_minimum(atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int) -> tuple[np.ndarray, float]:
    """The minimum of B3LYP/6-31G* below (N, 3) `positions` by geomeTRIC's default thresholds, and its energy in eV.

    Raises:
        RuntimeError: no minimum in `MAX_B3LYP_STEPS` steps, or no self-consistent field.
        ValueError: an element beyond krypton, for which there is no 6-31G*.
        ImportError: geometric is not installed.
    """
    return b3lyp_optimised(atomic_numbers, positions, total_charge)[:2]


def b3lyp_optimised(
    atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int
) -> tuple[np.ndarray, float, int]:
    """As `b3lyp_minimum`: the minimum, its energy in eV, and how many gradients it took."""
    from pyscf import lib
    from pyscf.geomopt import geometric_solver

    if len(atomic_numbers) == 1:  # geomeTRIC has no coordinates for it
        return positions, b3lyp_energy(atomic_numbers, positions, total_charge), 1
    energies = []
    with lib.with_omp_threads(1), _logging_kept(), redirect_stderr(io.StringIO()):
        field = _b3lyp_field(atomic_numbers, positions, total_charge, exact=False)
        # Net forces and torques are errors of the grid; left in, they rock molecules near the minimum for ten steps.
        converged, optimised = geometric_solver.kernel(
            field, callback=lambda step: energies.append(step["energy"]), maxsteps=MAX_B3LYP_STEPS, subfrctor=2
        )
    if not converged:
        raise CalculationError(f"geomeTRIC found no minimum in {MAX_B3LYP_STEPS} steps")
    return optimised.atom_coords(unit="Angstrom"), float(energies[-1]) * HARTREE_TO_EV, len(energies)


@contextmanager
def _logging_kept() -> Iterator[None]:
    """geomeTRIC takes the root logger over, to write to standard error; afterwards it is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _b3lyp_field(atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int, exact: bool):
    from pyscf import dft, gto

    atoms = [(int(z), position) for z, position in zip(atomic_numbers, positions, strict=True)]
    _check_elements(atomic_numbers, 36, "6-31G*")
    molecule = gto.M(atom=atoms, basis="6-31g*", cart=True, charge=total_charge, unit="Angstrom", verbose=0)
    field = dft.RKS(molecule, xc="b3lyp")
    if not exact:
        field = field.density_fit()
        field.grids.level = 1
    field.conv_tol = 1e-8
    return field


def _self_consistent_energy(field) -> float:
    """In eV."""
    energy = field.kernel()
    if not field.converged:
        raise CalculationError("the self-consistent field did not converge")
    return energy * HARTREE_TO_EV


def _check_elements(atomic_numbers: Sequence[int], heaviest: int, method: str) -> None:
    """Raises InputError that names an element beyond the heaviest one of a method."""
    if heavy := [int(number) for number in atomic_numbers if number > heaviest]:
        raise InputError(f"{method} has no {Chem.GetPeriodicTable().GetElementSymbol(heavy[0])}")


def gfn2_energy_and_forces(
    atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int
) -> tuple[float, np.ndarray]:
    """The GFN2-xTB total energy in eV and (N, 3) forces in eV/angstrom.

    Raises:
        ValueError: an element beyond radon, for which GFN2-xTB has no parameters; so do the functions below.
    """
    atoms = _gfn2_atoms(atomic_numbers, positions, total_charge)
    return atoms.get_potential_energy(), atoms.get_forces()


def gfn2_minimum(atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int) -> tuple[np.ndarray, float]:
    """The GFN2-xTB minimum below (N, 3) `positions` (L-BFGS) and its total energy in eV.

    Raises:
        RuntimeError: forces are above `MAX_GFN2_FORCE` after `MAX_GFN2_STEPS` steps.
    """
    from ase.optimize import LBFGS

    atoms = _gfn2_atoms(atomic_numbers, positions, total_charge)
    if not LBFGS(atoms, logfile=os.devnull).run(fmax=MAX_GFN2_FORCE, steps=MAX_GFN2_STEPS):
        raise CalculationError(f"GFN2-xTB did not reach a minimum in {MAX_GFN2_STEPS} steps")
    return atoms.positions, atoms.get_potential_energy()


def xtb_minimum(atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int) -> tuple[np.ndarray, float]:
    """The GFN2-xTB minimum below (N, 3) `positions` by the program xtb, keywords `--opt tight`, and its energy in eV.

    Of drug-like molecules it takes half the time of `gfn2_minimum`; its forces are some .01 eV/angstrom, too.

    Raises:
        RuntimeError: xtb found no minimum, stopped, or took longer than `XTB_TIMEOUT`.
        ImportError: there is no program `xtb`.
    """
    if shutil.which("xtb") is None:
        raise ImportError("this level needs the program xtb (6.5 or later; Debian package xtb)")
    _check_elements(atomic_numbers, _HEAVIEST_OF_GFN2, "GFN2-xTB")
    symbol = Chem.GetPeriodicTable().GetElementSymbol
    atoms = "".join(
        f"{symbol(int(z))} {x:.8f} {y:.8f} {w:.8f}\n" for z, (x, y, w) in zip(atomic_numbers, positions, strict=True)
    )
    with TemporaryDirectory(prefix="xtb_") as folder:
        job = Path(folder) / "molecule.xyz"
        job.write_text(f"{len(atomic_numbers)}\n\n{atoms}")
        command = ["xtb", job.name, "--gfn", "2", "--opt", "tight", "--chrg", str(total_charge), "--parallel", "1"]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            result = subprocess.run(
                command, cwd=folder, capture_output=True, timeout=XTB_TIMEOUT, env=os.environ | threads
            )
        except subprocess.TimeoutExpired as error:
            raise CalculationError(f"xtb took longer than {XTB_TIMEOUT} s") from error
        optimised = job.with_name("xtbopt.xyz")
        if result.returncode or not optimised.exists():
            raise CalculationError(f"xtb: {_xtb_message(result.stdout + result.stderr)}")
        if len(atomic_numbers) > 1 and b"GEOMETRY OPTIMIZATION CONVERGED" not in result.stdout:
            raise CalculationError("xtb did not reach a minimum")
        _, title, *rows = optimised.read_text().splitlines()
    energy = re.search(r"energy:\s+(\S+)", title)
    if energy is None or len(rows) != len(atomic_numbers):
        raise CalculationError("xtb's structure has no energy or not every atom")
    return np.array([row.split()[1:4] for row in rows], dtype=np.float64), float(energy[1]) * HARTREE_TO_EV


def _xtb_message(output: bytes) -> str:
    """What xtb says of its failure, or its last lines."""
    text = output.decode(errors="replace")
    said = [line.strip(" -#") for line in text.splitlines() if line.startswith(("-", "[ERROR]"))]
    return " ".join([line for line in said if line][-3:] or text.split("\n")[-4:]).strip() or "no output"


def gfn2_relaxed(
    atomic_numbers: Sequence[int], positions: np.ndarray, total_charge: int, held: Sequence[int], steps: int
) -> np.ndarray:
    """(N, 3) `positions` after at most so many L-BFGS steps on GFN2-xTB, the atoms `held` left where they are."""
    from ase.constraints import FixAtoms
    from ase.optimize import LBFGS

    atoms = _gfn2_atoms(atomic_numbers, positions, total_charge)
    atoms.set_constraint(FixAtoms(held))
    LBFGS(atoms, logfile=os.devnull).run(fmax=MAX_GFN2_FORCE, steps=steps)
    return atoms.positions


def gfn2_snapshot(
    atomic_numbers: Sequence[int],
    positions: np.ndarray,
    total_charge: int,
    temperature: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """(N, 3) `positions` after `DYNAMICS_STEPS` of Langevin dynamics on GFN2-xTB at a temperature in kelvin.

    From a minimum: it starts with twice the kinetic energy, half of which becomes potential energy.
    """
    from ase import units
    from ase.md.langevin import Langevin

    atoms = _gfn2_atoms(atomic_numbers, positions, total_charge)
    widths = np.sqrt(atoms.get_masses() * units.kB * 2 * temperature)
    atoms.set_momenta(rng.standard_normal(atoms.positions.shape) * widths[:, None])
    friction = DYNAMICS_FRICTION / units.fs
    Langevin(atoms, units.fs, temperature_K=temperature, friction=friction, fixcm=False, rng=rng).run(DYNAMICS_STEPS)
    return atoms.positions


def _gfn2_atoms(atomic_numbers, positions, total_charge):
    from ase import Atoms
    from tblite.ase import TBLite

    _check_elements(atomic_numbers, _HEAVIEST_OF_GFN2, "GFN2-xTB")
    atoms = Atoms(atomic_numbers, positions)
    atoms.calc = TBLite(method="GFN2-xTB", charge=total_charge, verbosity=0)
    return atoms
