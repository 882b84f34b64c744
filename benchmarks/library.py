"""Conformers of a drug-like library by `pcbridge predict`, RDKit and xtb: writes benchmarks/results/library.*.

    python -m benchmarks.library [--molecules 200] [--conformers 10] [--xtb 5]

Molecules are the first of the bundled `drug_like` test split, by their SMILES. `pcbridge predict --model drug_like
--method conformers` runs as its users run it, with one worker and with two; RDKit makes the same conformers by ETKDGv3
and relaxes them with MMFF94; the program xtb relaxes one of these a molecule by GFN2-xTB, both counted. One thread a
process. What the command takes for two molecules is its start, imports above all, and taken off.

Processor seconds depend little on what else the machine does. Molecules per second, cores used and the parallel
efficiency are of the clock, and mean something on a quiet machine only.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

from rdkit import Chem, RDLogger

from dataset_scripts.bundled import load_bundled
from dataset_scripts.quantum_chemistry import xtb_minimum
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.rdkit_structures import etkdg_conformers, mmff_minima

_ROOT = Path(__file__).parents[1]
_RESULTS = Path(__file__).parent / "results"
_SHARD_SIZE = 20
_WORKERS = (1, 2)


def measured(work: Callable[[], int]) -> dict:
    """Seconds of the clock and of the processor, here and in child processes, and the structures that came out."""
    clock, processor = time.perf_counter(), _processor_seconds()
    structures = work()
    return {
        "seconds": time.perf_counter() - clock,
        "processor_seconds": _processor_seconds() - processor,
        "structures": structures,
    }


def _processor_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def by_pcbridge(smiles: list[str], conformers: int, workers: int, shard_size: int = _SHARD_SIZE) -> int:
    """The structures that the command writes."""
    with tempfile.TemporaryDirectory() as folder:
        library, output = Path(folder, "library.smi"), Path(folder, "out")
        library.write_text("".join(f"{one} {number}\n" for number, one in enumerate(smiles)))
        command = [sys.executable, "-m", "pcbridge.app.command_line", "predict", str(library), "--output", f"{output}/"]
        command += ["--model", "drug_like", "--method", "conformers", "--num_conformers", str(conformers)]
        command += ["--workers", str(workers), "--shard_size", str(shard_size), "--device", "cpu"]
        subprocess.run(command, cwd=_ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        return sum(path.read_text().count("$$$$") for path in output.glob("part-*.sdf"))


def by_rdkit(smiles: list[str], conformers: int) -> int:
    """The MMFF94 minima of ETKDGv3 conformers."""
    number = 0
    for one in smiles:
        mol = mol_from_smiles(one)
        found = etkdg_conformers(mol, conformers, seed=0, timeout=10)
        minima = None if found is None else mmff_minima(mol, found)
        number += 0 if minima is None else len(minima)
    return number


def by_xtb(smiles: list[str]) -> int:
    """One GFN2-xTB minimum a molecule, from MMFF94's, whose time is counted too."""
    number = 0
    for one in smiles:
        mol = mol_from_smiles(one)
        found = etkdg_conformers(mol, 1, seed=0, timeout=10)
        minima = None if found is None else mmff_minima(mol, found)
        if minima is not None:
            atomic_numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
            xtb_minimum(atomic_numbers, minima[0], Chem.GetFormalCharge(mol))
            number += 1
    return number


def measure(num_molecules: int, conformers: int, num_xtb: int) -> list[dict]:
    """A record for each program."""
    smiles = load_bundled("drug_like", "test")["smiles"][:num_molecules]
    few = smiles[:2]  # a shard for each worker
    records = []
    for workers in _WORKERS:
        whole = measured(partial(by_pcbridge, smiles, conformers, workers))
        start = measured(partial(by_pcbridge, few, conformers, workers, shard_size=1))
        record = {key: whole[key] - start[key] for key in whole} | {
            "start_processor_seconds": start["processor_seconds"]
        }
        about = {"name": f"PCBridge, workers: {workers}", "molecules": len(smiles) - len(few), "conformers": conformers}
        records.append(about | record)
    about = {"name": "RDKit, ETKDGv3 + MMFF94", "molecules": len(smiles), "conformers": conformers}
    records.append(about | measured(partial(by_rdkit, smiles, conformers)))
    if num_xtb and shutil.which("xtb"):
        about = {"name": "xtb, GFN2-xTB minimum", "molecules": num_xtb, "conformers": 1}
        records.append(about | measured(partial(by_xtb, smiles[:num_xtb])))
    return records


def table(result: dict) -> list[str]:
    """Lines of library.md."""
    about = f"{result['date']}, commit {result['commit']}, {result['machine']}; load at the end {result['load']:.1f}."
    lines = ["# A library of drug-like molecules", "", about, "", *__doc__.splitlines()[4:], ""]
    lines += [
        "| | molecules | conformers of each | structures | processor s per conformer | molecules per second | cores |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in result["records"]:
        seconds, processor = record["seconds"], record["processor_seconds"]
        lines.append(
            f"| {record['name']} | {record['molecules']} | {record['conformers']} | {record['structures']} "
            f"| {processor / record['molecules'] / record['conformers']:.3f} "
            f"| {record['molecules'] / seconds:.2f} | {processor / seconds:.2f} |"
        )
    one, two = result["records"][:2]
    by_clock = one["seconds"] / two["seconds"] / _WORKERS[1]
    by_processor = two["processor_seconds"] / one["processor_seconds"]
    return [
        *lines,
        "",
        "Structures of PCBridge are those that differ and lie within the energy window. Two workers have a parallel "
        f"efficiency of {by_clock:.0%} by the clock and take {by_processor:.2f} times the processor time of one; their "
        f"start takes {two['start_processor_seconds']:.0f} processor seconds.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=200)
    parser.add_argument("--conformers", type=int, default=10)
    parser.add_argument("--xtb", type=int, default=5, help="molecules, as one takes seconds")
    arguments = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    records = measure(arguments.molecules, arguments.conformers, arguments.xtb)
    describe = ["git", "describe", "--always", "--dirty"]
    result = {
        "date": date.today().isoformat(),
        "commit": subprocess.run(describe, cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "conformers": arguments.conformers,
        "records": records,
    }
    (_RESULTS / "library.json").write_text(json.dumps(result, indent=2) + "\n")
    (_RESULTS / "library.md").write_text("\n".join(table(result)))


if __name__ == "__main__":
    main()
