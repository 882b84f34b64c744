"""Time and distance to the DFT structure of one structure, by this model and by classical programs, one thread."""

import shutil
import time
from collections.abc import Callable

import numpy as np
import torch
from rdkit import Chem

from dataset_scripts.quantum_chemistry import pm6_minimum
from modeling_pcbridge import PCBridgeConfig, PCBridgeModel
from modeling_pcbridge.errors import CalculationError
from modeling_pcbridge.graph_batch import pad_graphs, pad_positions
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.evaluate import mean_over_molecules, structure_record
from pcbridge.evaluation.references import ReferenceMolecule, load_references, mmff_structures, pm6_structures

_EVALUATION = EvaluationConfig(split="test", max_molecules=32)


def measure(checkpoint: str | None) -> list[dict]:
    """One record per method: seconds per molecule and, unless the model is untrained, mean errors in angstrom."""
    torch.set_num_threads(1)
    references = load_references(_EVALUATION)
    if checkpoint is not None:
        model = PCBridgeModel.from_pretrained(checkpoint).eval()
    else:
        model = PCBridgeModel(PCBridgeConfig()).eval()
    starts = pm6_structures(_EVALUATION)
    mmff = mmff_structures(num_samples=1, seed=0)
    graphs = pad_graphs([reference.example.graph for reference in references])
    positions = pad_positions([starts(reference)[0] for reference in references])

    records = []
    for name, options in (
        ("PCBridge, 20 DDIM steps", {"method": "ddim", "num_inference_steps": 20}),
        ("PCBridge, one evaluation", {"method": "denoising"}),
        ("PCBridge, refined from PM6", {"method": "refine"}),
    ):
        torch.manual_seed(0)
        start = time.perf_counter()
        samples = model.predict_structure(**graphs, positions=positions, **options).positions.double().numpy()
        seconds = (time.perf_counter() - start) / len(references)
        cut = [x[:, : reference.example.graph.num_atoms] for x, reference in zip(samples, references, strict=True)]
        records.append(_record(name, seconds, references, cut if checkpoint is not None else None))

    conformers: dict[str, np.ndarray | None] = {}

    def embed(reference: ReferenceMolecule) -> np.ndarray | None:
        conformers[reference.example.molecule_id] = mmff(reference)
        return conformers[reference.example.molecule_id]

    def optimise(reference: ReferenceMolecule) -> np.ndarray | None:
        start = conformers[reference.example.molecule_id]
        if start is None:
            return None
        numbers, charge = reference.example.graph.atomic_numbers.tolist(), Chem.GetFormalCharge(reference.mol)
        try:
            return pm6_minimum(numbers, start[0], charge)[0][None]
        except CalculationError:
            return None

    records.append(_one_by_one("ETKDGv3 + MMFF94", embed, references))
    if shutil.which("mopac"):
        records.append(_one_by_one("PM6 optimisation from it (MOPAC)", optimise, references))
    return records


def _one_by_one(
    name: str,
    structures: Callable[[ReferenceMolecule], np.ndarray | None],
    references: list[ReferenceMolecule],
) -> dict:
    found, kept, seconds = [], [], 0.0
    for reference in references:
        start = time.perf_counter()
        samples = structures(reference)
        seconds += time.perf_counter() - start
        if samples is not None:
            found.append(samples)
            kept.append(reference)
    return _record(name, seconds / len(references), kept, found)


def _record(name: str, seconds: float, references: list[ReferenceMolecule], samples: list | None) -> dict:
    record = {"name": name, "seconds": seconds}
    if samples is not None:
        errors = mean_over_molecules([structure_record(r, x) for r, x in zip(references, samples, strict=True)])
        record |= {key: errors[key] for key in ("heavy_rmsd_mean", "heavy_rmsd_median", "bond_length_error")}
    return record
