"""Molecules of the QM9 benchmark, and the cheap structures they are compared with and refined from.

Starts come in two kinds. "same conformer": the cheap method's minimum below the DFT structure, which a refinement can
bring back. "from the graph": what a user has, ETKDGv3 and then the cheap method; its conformer is often another one.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import example_from_row, mol_from_row
from dataset_scripts.label_generation import read_lines
from dataset_scripts.quantum_chemistry import pm6_minimum
from modeling_pcbridge.rdkit_structures import etkdg_conformers, mmff_minima
from pcbridge.evaluation.references import ReferenceMolecule

_ORDER_SEED = 0
SAME_CONFORMER, FROM_GRAPH = "same conformer", "from the graph"
MMFF, PM6 = "MMFF94", "PM6"
# Structures that `cheap_structures` makes: method, kind.
STARTS = ((MMFF, SAME_CONFORMER), (PM6, SAME_CONFORMER), (MMFF, FROM_GRAPH), (PM6, FROM_GRAPH))


@dataclass(frozen=True)
class CheapStructures:
    """Structures (N, 3) of one molecule by (method, kind); what failed is missing."""

    molecule_id: str
    positions: dict[tuple[str, str], np.ndarray]


def load_molecules(folder: Path, split: str, number: int | None) -> list[ReferenceMolecule]:
    """The first `number` molecules of a split in a random order that is always the same, or all.

    Molecules that stage 2 sees in the bundled training data, which is split otherwise, are left out (66 of 10,831).

    Args:
        folder: shards that `dataset_scripts.prepare qm9pack --split published` wrote.

    Raises:
        FileNotFoundError: no shards.
    """
    paths = sorted((folder / split).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"no shards in {folder / split}; python -m dataset_scripts.prepare qm9pack --split published "
            f"--on_error skip --output {folder}"
        )
    rows = sorted((row for path in paths for row in pq.read_table(path).to_pylist()), key=lambda r: r["molecule_id"])
    seen = set(load_bundled("pm6_displaced", "train")["molecule_id"])
    order = np.random.RandomState(_ORDER_SEED).permutation(len(rows))
    order = [i for i in order if rows[i]["molecule_id"] not in seen][:number]
    return [
        ReferenceMolecule(example_from_row(rows[i], [rows[i]["energy_level_of_theory"]]), mol_from_row(rows[i]))
        for i in order
    ]


def cheap_structures(references: Iterable[ReferenceMolecule], cache: Path) -> list[CheapStructures]:
    """What RDKit and MOPAC make of every molecule; computed once and kept in `cache`, a line a molecule.

    Raises:
        ImportError: MOPAC is not installed and a molecule is not in the cache.
    """
    known = {line["molecule_id"]: line["positions"] for line in read_lines(cache)}
    cache.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with cache.open("a") as output:
        for reference in tqdm(list(references), desc="cheap structures", unit="molecule"):
            name = reference.example.molecule_id
            if name not in known:
                positions = {"/".join(key): x.round(5).tolist() for key, x in _make(reference).items()}
                output.write(json.dumps({"molecule_id": name, "positions": positions}) + "\n")
                output.flush()
                known[name] = positions
            by_key = {tuple(key.split("/")): np.array(x) for key, x in known[name].items()}
            found.append(CheapStructures(name, by_key))
    return found


def _make(reference: ReferenceMolecule) -> dict[tuple[str, str], np.ndarray]:
    begins = {SAME_CONFORMER: reference.positions}
    embedded = etkdg_conformers(reference.mol, 1, seed=0)
    if embedded is not None:
        begins[FROM_GRAPH] = embedded[0]
    positions: dict[tuple[str, str], np.ndarray] = {}
    for kind, begin in begins.items():
        relaxed = mmff_minima(reference.mol, begin[None])
        if relaxed is not None:
            positions[MMFF, kind] = relaxed[0]
        try:
            pm6_begin = relaxed[0] if kind == FROM_GRAPH and relaxed is not None else begin
            positions[PM6, kind] = pm6_minimum(reference.example.graph.atomic_numbers, pm6_begin, 0)[0]
        except RuntimeError:
            continue  # MOPAC found no minimum: the row of that start has a molecule less
    return positions
