"""Compute B3LYP/6-31G* energies and forces, the level of PubChemQC B3LYP/6-31G*//PM6, with PySCF.

    python -m dataset_scripts.label_generation --rows rows.parquet --output labels.jsonl --geometries pm6 pm6_displaced

`--rows` is Parquet in `dataset_scripts.schema.FEATURES`; its `positions` are the structures. The output has one JSON
object a line and is flushed after each: a killed run goes on where it stopped, and `build_bundled` reads the lines
back. A molecule that fails is a line too, with its reason, and is not tried again. Needs the `qc` extra.
"""

import argparse
import hashlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from modeling_pcbridge.constants import HARTREE_PER_BOHR_TO_EV_PER_ANGSTROM, HARTREE_TO_EV

# "pm6" is the structure itself; "pm6_displaced" moves every coordinate by Gaussian noise of one of these widths.
GEOMETRIES = ("pm6", "pm6_displaced")
DISPLACEMENTS = (0.03, 0.06, 0.1)  # angstrom


def displaced(positions: np.ndarray, molecule_id: str) -> np.ndarray:
    """The structure with Gaussian noise on every coordinate, the same for the same molecule on every run."""
    seed = int.from_bytes(hashlib.sha256(molecule_id.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    return positions + rng.normal(size=positions.shape) * rng.choice(DISPLACEMENTS)


def b3lyp_energy_and_forces(
    atomic_numbers: list[int], positions: np.ndarray, total_charge: int
) -> tuple[float, np.ndarray]:
    """Restricted B3LYP/6-31G* with density fitting, Cartesian d functions and the VWN form of Gaussian and GAMESS.

    Returns:
        The total electronic energy in eV and the (N, 3) forces in eV/angstrom.

    Raises:
        RuntimeError: the self-consistent field did not converge.
    """
    from pyscf import dft, gto

    atoms = [(int(z), position) for z, position in zip(atomic_numbers, positions, strict=True)]
    molecule = gto.M(atom=atoms, basis="6-31g*", cart=True, charge=total_charge, unit="Angstrom", verbose=0)
    field = dft.RKS(molecule, xc="b3lyp").density_fit()
    field.grids.level = 1
    field.conv_tol = 1e-8
    energy = field.kernel()
    if not field.converged:
        raise RuntimeError("the self-consistent field did not converge")
    gradient = field.nuc_grad_method().kernel()
    return energy * HARTREE_TO_EV, -gradient * HARTREE_PER_BOHR_TO_EV_PER_ANGSTROM


def label_row(row: dict, geometry: str) -> dict:
    """One output line for one row and geometry; on failure it has an `error` in place of the labels."""
    positions = np.array(row["positions"], dtype=np.float64)
    if geometry == "pm6_displaced":
        positions = displaced(positions, row["molecule_id"])
    line = {"molecule_id": row["molecule_id"], "geometry": geometry}
    try:
        energy, forces = b3lyp_energy_and_forces(row["atomic_numbers"], positions, row["total_charge"])
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        return line | {"error": str(error)}
    return line | {
        "positions": positions.round(6).tolist(),
        "energy_ev": energy,
        "forces_ev_ang": forces.round(6).tolist(),
    }


def read_lines(path: Path) -> list[dict]:
    """All whole lines of an output file; a last line cut short by a kill is dropped from the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="Parquet files in the project's schema")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--geometries", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--seed", type=int, default=0, help="order in which molecules are taken")
    parser.add_argument("--max_molecules", type=int, default=None)
    arguments = parser.parse_args()

    rows = [row for path in arguments.rows for row in pq.read_table(path).to_pylist() if row["energy"] is None]
    random.Random(arguments.seed).shuffle(rows)
    done = {(line["molecule_id"], line["geometry"]) for line in read_lines(arguments.output)}
    tasks = [(row, geometry) for row in rows[: arguments.max_molecules] for geometry in arguments.geometries]
    tasks = [(row, geometry) for row, geometry in tasks if (row["molecule_id"], geometry) not in done]
    with arguments.output.open("a") as output:
        for row, geometry in tqdm(tasks, desc="B3LYP/6-31G*", unit="structure"):
            output.write(json.dumps(label_row(row, geometry)) + "\n")
            output.flush()
            os.fsync(output.fileno())


if __name__ == "__main__":
    main()
