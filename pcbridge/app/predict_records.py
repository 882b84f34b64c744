"""Predicting many molecules, of which some may be bad."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem.rdForceFieldHelpers import MMFFHasAllMoleculeParams

from modeling_pcbridge import PCBridgeModel, PCBridgePipeline, PCBridgeProcessor
from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from modeling_pcbridge.errors import CalculationError
from modeling_pcbridge.rdkit_molecules import unmarked_stereo
from modeling_pcbridge.rdkit_structures import rdkit_structures
from modeling_pcbridge.sampling import METHODS_FROM_POSITIONS, OnStep
from pcbridge.evaluation.metrics import distances_to_others

from .cores import num_cores
from .ensembles import ensemble
from .molecule_files import Failure, Molecule, Prediction, Record
from .prediction_settings import CONFORMERS, PredictionSettings

# Options of `PCBridgeModel.predict_structure` that refine these, in as many steps as its config says.
REFINEMENT = {"method": "mean_shift"}
_LAST_RESORT_SAMPLES = 4  # from noise, where none of RDKit's conformers comes out sound
# eV/angstrom, at a refined conformer. Of 150 drug-like molecules the largest is .92, by models that know forces less
# well 1.9; where the structure and E of the model contradict each other, as in benzyne and PCl5, it is 3.5 to 8.6.
_LARGEST_FORCE = 3.0
_TIMED_OUT = "RDKit: no conformer within"


def load_pipeline(model: str, device: str | None = None, dispersion: bool = False) -> PCBridgePipeline:
    """The pipeline of a checkpoint folder or hub name, on a GPU where there is one; with D3(BJ), if it is asked for.

    Raises:
        OSError, ValueError: there is no sound checkpoint.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    changes: dict[str, Any] = {"dispersion": "d3bj"} if dispersion else {}
    loaded = PCBridgeModel.from_pretrained(model, **changes)
    return PCBridgePipeline(loaded, processor=PCBridgeProcessor.of_config(loaded.config), device=device)


# Sound structures of a molecule, and why there are not more.
Found = tuple[list[Prediction], list[str]]


def predict(
    pipeline: PCBridgePipeline,
    records: list[Record],
    settings: PredictionSettings,
    batch_size: int,
    on_step: OnStep | None = None,
    on_step_from_noise: OnStep | None = None,
) -> Iterator[tuple[list[Prediction], list[Failure]]]:
    """Predictions and failures, a batch of molecules at a time, in the order of `records`.

    Only sound structures are predictions (see `StructureChecks`). What the model cannot draw soundly is replaced by
    RDKit's structures, refined, and the other way round; a molecule that lacks structures all the same is among the
    failures too. Of conformers one is enough.

    Args:
        records: molecules, or failures already.
        batch_size: structures at once.
        on_step: told of each step in which structures of RDKit are refined, see `PCBridgeModel.predict_structure`.
        on_step_from_noise: the same of structures that are drawn from noise.

    Yields:
        All predictions of some molecules, and the failures of the batch.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    # RDKit works on the CPU, one molecule a thread; one model a core leaves it that core.
    num_threads = 1 if pipeline.device.type == "cpu" else num_cores()
    molecules_at_once = max(1, batch_size // settings.num_structures)
    with ThreadPoolExecutor(num_threads) as threads:
        for first in range(0, len(records), molecules_at_once):
            batch = [_checked(record, pipeline, settings) for record in records[first : first + molecules_at_once]]
            molecules = [record for record in batch if isinstance(record, Molecule)]
            failures = [record for record in batch if isinstance(record, Failure)]
            draw = partial(_drawn, pipeline, batch_size=batch_size, generator=generator, on_step=on_step_from_noise)
            by_rdkit = partial(_refined, pipeline, settings=settings, batch_size=batch_size, threads=threads)
            if settings.method == CONFORMERS:
                all_found = by_rdkit(molecules, [settings.num_conformers] * len(molecules), on_step=on_step)
                # Allenes for instance, which MMFF94 lets turn, come out of noise as they are. What takes RDKit long is
                # large, and would take the model much longer.
                empty = [
                    place
                    for place, (found, reasons) in enumerate(all_found)
                    if not found and not reasons[0].startswith(_TIMED_OUT)
                ]
                last_resort = replace(settings, num_samples=_LAST_RESORT_SAMPLES, steps=None)
                drawn = draw([molecules[k] for k in empty], last_resort, "ddim")
                for place, (found, reasons) in zip(empty, drawn, strict=True):
                    one_isomer = found[:1] if unmarked_stereo(molecules[place].mol) else found
                    all_found[place] = _both(all_found[place], (one_isomer, reasons))
            else:
                drawn = draw(molecules, settings, settings.method)
                missing = [settings.num_samples - len(found) for found, _ in drawn]
                all_found = list(map(_both, drawn, by_rdkit(molecules, missing)))
            predictions: list[Prediction] = []
            for molecule, (found, reasons) in zip(molecules, all_found, strict=True):
                structures, failure = _chosen(molecule, found, reasons, settings)
                predictions += structures
                failures += failure
            yield predictions, failures


def _both(one: Found, other: Found) -> Found:
    return one[0] + other[0], one[1] + other[1]


def _checked(record: Record, pipeline: PCBridgePipeline, settings: PredictionSettings) -> Record:
    """The record, without the structure of the file if it is not to be started from; or its failure."""
    if not isinstance(record, Molecule):
        return record
    mol = Chem.Mol(record.mol)
    if settings.method not in METHODS_FROM_POSITIONS:
        mol.RemoveAllConformers()
    elif mol.GetNumConformers() == 0:
        return record.failed("the method starts from a 3D structure, and there is none")
    try:
        pipeline.processor(mol)
    except ValueError as error:
        return record.failed(str(error.__cause__ or error))  # without the number within the batch
    return replace(record, mol=mol)


def _results(pipeline: PCBridgePipeline, molecules: list[Molecule], batch_size: int, options: dict) -> list[dict]:
    return pipeline([m.mol for m in molecules], batch_size=batch_size, **options) if molecules else []


def _drawn(
    pipeline: PCBridgePipeline,
    molecules: list[Molecule],
    settings: PredictionSettings,
    method: str,
    batch_size: int,
    generator: torch.Generator,
    on_step: OnStep | None,
) -> list[Found]:
    """What the model draws for each molecule, by a method of `predict_structure`."""
    options = _shared_options(settings) | {
        "method": method,
        "num_samples": settings.num_samples,
        "num_inference_steps": settings.steps,
        "mean_shift_steps": settings.mean_shift_steps,
        "generator": generator,
        "on_step": on_step,
    }
    origin, level = f"PCBridge, {method}", _level(pipeline, settings)
    largest_force = _force_limit(pipeline, settings)
    results = _results(pipeline, molecules, batch_size, options)
    return [_sorted_out(*pair, origin, level, largest_force) for pair in zip(molecules, results, strict=True)]


def _refined(
    pipeline: PCBridgePipeline,
    molecules: list[Molecule],
    numbers: list[int],
    settings: PredictionSettings,
    batch_size: int,
    threads: ThreadPoolExecutor,
    on_step: OnStep | None = None,
) -> list[Found]:
    """So many of RDKit's structures of each molecule, refined."""

    def starts_of(molecule: Molecule, number: int) -> tuple[list[Molecule], list[str]]:
        if number == 0:
            return [], []
        begun = time.monotonic()
        try:
            mols = rdkit_structures(molecule.mol, number, settings.timeout, settings.seed)
        except CalculationError as error:
            return [], [str(error)]
        in_time = time.monotonic() - begun < settings.timeout
        missing = "RDKit: no conformer" if in_time else f"{_TIMED_OUT} {settings.timeout:g} s, see --timeout"
        return [replace(molecule, mol=mol) for mol in mols], [] if mols else [missing]

    starts = list(threads.map(starts_of, molecules, numbers))
    steps = settings.steps if settings.method == CONFORMERS else None
    options = _shared_options(settings) | REFINEMENT | {"num_inference_steps": steps, "on_step": on_step}
    results = iter(_results(pipeline, list(chain(*(found for found, _ in starts))), batch_size, options))
    level, largest_force = _level(pipeline, settings), _force_limit(pipeline, settings)
    refined: list[Found] = []
    for molecule, (of_molecule, reasons) in zip(molecules, starts, strict=True):
        found: list[Prediction] = []
        origin = _origin(molecule.mol)
        for start in of_molecule:
            more, broken = _sorted_out(start, next(results), origin, level, largest_force)
            found += more
            reasons += broken
        refined.append((found, reasons[:1]))
    return refined


def _origin(mol: Chem.Mol) -> str:
    has_parameters = MMFFHasAllMoleculeParams(mol)
    if mol.GetNumConformers():
        return f"{'MMFF94 minimum of ' if has_parameters else ''}the given structure, refined by PCBridge"
    force_field = " + MMFF94" if has_parameters else ", for which MMFF94 has no parameters"
    unmarked = unmarked_stereo(mol)
    isomer = f"; no stereo mark at {', '.join(unmarked)}, so all are of one isomer" if unmarked else ""
    return f"RDKit ETKDGv3{force_field}, refined by PCBridge{isomer}"


def _force_limit(pipeline: PCBridgePipeline, settings: PredictionSettings) -> float:
    """Of conformers and what is drawn in their place, and of given structures; other samples may have larger forces."""
    is_from_structures = settings.method == CONFORMERS or settings.method in METHODS_FROM_POSITIONS
    is_checked = is_from_structures and pipeline.model.config.has_learned_forces is not False
    return _LARGEST_FORCE if is_checked else np.inf


def _shared_options(settings: PredictionSettings) -> dict:
    """Options of the pipeline, whatever structures are made from."""
    return {
        "level_of_theory": settings.level_of_theory,
        "relaxation_steps": "converged" if settings.relax else None,
        "allow_unlearned_forces": settings.allow_unlearned_forces,
    }


def _level(pipeline: PCBridgePipeline, settings: PredictionSettings) -> str:
    return f"PCBridge of {settings.level_of_theory or pipeline.model.config.energy_level_of_theory}"


def _sorted_out(molecule: Molecule, result: dict, origin: str, level_of_theory: str, largest_force: float) -> Found:
    """The sound structures of a result of the pipeline, and what is wrong with the first of the others."""
    found, broken = [], []
    for k, faults in enumerate(result["faults"]):
        energy, force = float(result["energy"][k]), np.linalg.norm(result["forces"][k], axis=-1).max()
        if not faults and not np.isfinite([energy, force]).all():
            faults = ["the predicted energy or forces are not finite"]
        if not faults and force > largest_force:
            faults = [f"forces of up to {force:.1f} eV/angstrom, so that no minimum is near"]
        if faults:
            broken.append(f"{origin}: {faults[0]}")
            continue
        found.append(
            Prediction(
                molecule=molecule,
                sample=k,
                positions=result["positions"][k],
                energy=energy,
                forces=result["forces"][k],
                origin=origin,
                level_of_theory=level_of_theory,
                beyond_training=result["beyond_training"],
            )
        )
    return found, broken[:1]


def _chosen(
    molecule: Molecule, found: list[Prediction], reasons: list[str], settings: PredictionSettings
) -> tuple[list[Prediction], list[Failure]]:
    """What is written of the sound structures of a molecule, and a failure if there are too few."""
    num_asked = 1 if settings.method == CONFORMERS else settings.num_samples
    failures = []
    if len(found) < num_asked:
        said = f"{num_asked - len(found)} of {num_asked} structures are left out" if found else "no sound structure"
        failures = [molecule.failed(f"{said} ({'; '.join(reasons or ['RDKit: too few conformers'])})")]
    if settings.method == CONFORMERS and found:
        return ensemble(found, settings.energy_window * KCAL_PER_MOL_TO_EV, settings.rmsd_threshold), failures
    return _ranked(found, settings.rank_by), failures


def _ranked(predictions: list[Prediction], rank_by: str | None) -> list[Prediction]:
    order = np.arange(len(predictions))
    if rank_by == "energy":
        order = np.argsort([prediction.energy for prediction in predictions], kind="stable")
    elif rank_by == "centrality" and predictions:
        order = np.argsort(distances_to_others(np.array([p.positions for p in predictions])), kind="stable")
    return [replace(predictions[k], sample=rank) for rank, k in enumerate(order)]
