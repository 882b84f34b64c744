"""What the cheap methods take, and PM6 beside them, in the tables of `experiments.outside`.

    python -m experiments.outside_references flexisol_validation.parquet

Times are of one core and one structure, from what a user would begin with: MMFF94 from ETKDG's structure of the graph
(both by RDKit), GFN2-xTB (the program xtb) from the MMFF94 minimum, PM6 (MOPAC) from the GFN2-xTB minimum, whose
conformer it keeps. Errors of MMFF94 and GFN2-xTB are those of the minima in the file, below the DFT structure; of PM6,
those of the minimum below GFN2-xTB's. An hour; molecules that are there are not done again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from tqdm import tqdm

from dataset_scripts.quantum_chemistry import pm6_minimum, xtb_minimum
from experiments.outside import GFN2, RESULTS, ROOT, cheap_minima, read, write_beside
from experiments.structure_errors import Molecule, measured
from modeling_pcbridge.errors import CalculationError

_DONE = ROOT / "outputs" / "outside_references.jsonl"


def references(molecule: Molecule) -> dict:
    """Seconds of each method, and the PM6 minimum (N, 3), angstrom; null where MOPAC finds none."""
    numbers, charge = molecule.graph.atomic_numbers.tolist(), Chem.GetFormalCharge(molecule.mol)
    seconds, pm6 = {}, None
    start = time.perf_counter()
    embedded = Chem.Mol(molecule.mol)
    rdDistGeom.EmbedMolecule(embedded, randomSeed=0)
    rdForceFieldHelpers.MMFFOptimizeMolecule(embedded, maxIters=2000)
    seconds["MMFF94"] = time.perf_counter() - start
    if molecule.mmff is not None and molecule.gfn2 is not None:
        start = time.perf_counter()
        xtb_minimum(numbers, molecule.mmff, charge)
        seconds[GFN2] = time.perf_counter() - start
        start = time.perf_counter()
        try:
            pm6 = pm6_minimum(numbers, molecule.gfn2, charge)[0].tolist()
            seconds["PM6"] = time.perf_counter() - start
        except CalculationError as error:
            tqdm.write(f"{molecule.name}: {error}")
    return {"name": molecule.name, "seconds": seconds, "pm6": pm6}


def pm6_minima(molecules: Sequence[Molecule]) -> list[np.ndarray | None]:
    """(N, 3), angstrom, where one was found."""
    done = _done()
    return [None if done[m.name]["pm6"] is None else np.array(done[m.name]["pm6"]) for m in molecules]


def _done() -> dict[str, dict]:
    """What `references` found so far, by name."""
    lines = _DONE.read_text().splitlines() if _DONE.exists() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    molecules = read(arguments.file)
    _DONE.parent.mkdir(exist_ok=True)
    done = _done()
    with _DONE.open("a") as file:
        for molecule in tqdm(molecules, unit="molecule"):
            if molecule.name not in done:
                done[molecule.name] = references(molecule)
                file.write(json.dumps(done[molecule.name]) + "\n")
                file.flush()
    of_each = [done[molecule.name] for molecule in molecules]
    pm6 = [None if line["pm6"] is None else np.array(line["pm6"]) for line in of_each]
    results = {}
    for name, structures in (cheap_minima(molecules) | {"PM6": pm6}).items():
        results[name] = measured(molecules, structures, None)
        results[name]["seconds"] = float(
            np.mean([line["seconds"][name] for line in of_each if name in line["seconds"]])
        )
    write_beside(results, molecules, arguments.file.name, RESULTS)


if __name__ == "__main__":
    main()
