"""Structures of a library at a cheap level, moved to a model's own level: what its structure decoder should give.

    python -m pcbridge.training.corrected_library --model outputs/drug_like/stage1 --output data/corrected \\
        --sources drug_like data/fragments_gfn2

Each minimum of a level that the model has a head for is corrected once, see `PCBridgeModel.correct_structure`; a stage
with `--output` among its sources then denoises the corrected structures like any others (Eq. 7). Each source is a
bundled configuration or a folder that `dataset_scripts.prepare` wrote. One shard per source and split, written whole,
so that a killed run goes on with the next; with another model or other options that is refused. Structures of other
levels, and those that do not pass `StructureChecks` afterwards, are left out and counted.

`--by relax` relaxes minima of any level, PM6 or MMFF94 too, on the model's own energy instead: where labels are wanted,
at any level, if E is to be trusted there (`label_generation --geometries given` of the shards).
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset, load_dataset
from tqdm.auto import tqdm

from dataset_scripts.bundled import files_of_source
from dataset_scripts.collator import Example, example_from_row
from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.options import underscored
from dataset_scripts.schema import FEATURES
from dataset_scripts.tables import write_rows
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.molecular_graph import MolecularGraph
from modeling_pcbridge.structure_checks import StructureChecks
from pcbridge.evaluation.batches import padded_batches, unpadded
from pcbridge.model_identity import sha256_of

_SPLITS = ("train", "validation")
_BATCH_SIZE = {"cpu": 8, "cuda": 256}
_SETTINGS = b"corrected_library"  # in the metadata of a shard
_NO_LABELS = dict.fromkeys(("energy", "forces", "energy_level_of_theory"))


def read_minima(source: str, split: str) -> Dataset:
    """The rows of a source that are minima at some level.

    Raises:
        InputError: neither a bundled configuration nor a folder with that split.
    """
    files = list(map(str, files_of_source(source, split)))
    rows = load_dataset("parquet", data_files=files, split="train", features=FEATURES)
    return rows.filter(lambda level: level is not None, input_columns="equilibrium_level_of_theory")


def corrected_rows(
    model: PCBridgeModel, rows: Dataset, num_processes: int = 1, by: Literal["correct", "relax"] = "correct"
) -> tuple[list[dict], Counter[str]]:
    """The rows at the model's own level of theory, without labels, and how many were left out for which reason.

    Graphs are made and structures checked by so many processes.
    """
    own, others = model.config.energy_level_of_theory, model.config.energy_levels_of_theory[1:]
    by_level: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_level[row["equilibrium_level_of_theory"]].append(row)
    corrected: list[dict] = []
    left_out: Counter[str] = Counter()
    for level, of_level in by_level.items():
        if by == "correct" and level not in others:
            left_out[f"at {level}, for which the model has no head beside {own}"] += len(of_level)
            continue
        with Pool(num_processes) if num_processes > 1 else nullcontext() as pool:
            in_parallel = map if pool is None else partial(pool.map, chunksize=16)
            structures, graphs = _corrected_structures(model, of_level, level, in_parallel, by)
            faults = list(in_parallel(_faults, list(zip(graphs, structures, strict=True))))
        for row, structure, has_faults in zip(of_level, structures, faults, strict=True):
            if structure is None:
                left_out["its relaxation did not converge"] += 1
            elif has_faults:
                left_out["is no longer a structure of its graph"] += 1
            else:
                positions, at = structure.round(6).tolist(), f"{own} by PCBridge from {level}"
                corrected.append(row | _NO_LABELS | {"positions": positions, "equilibrium_level_of_theory": at})
    return corrected, left_out


def _corrected_structures(
    model: PCBridgeModel, rows: list[dict], level: str, in_parallel: Callable[..., Iterable[Example]], by: str
) -> tuple[list[np.ndarray | None], list[MolecularGraph]]:
    """Of each row the structure (N, 3), angstrom, at the model's own level, and the graph; None if not converged."""
    rows.sort(key=lambda row: len(row["atomic_numbers"]))  # so that batches have little padding
    parse = partial(example_from_row, levels_of_theory=(), resonance_invariant=model.config.resonance_invariant)
    examples = list(in_parallel(parse, rows))
    graphs, starts = [e.graph for e in examples], [e.positions for e in examples]
    structures: list[np.ndarray | None] = []
    with tqdm(total=len(graphs), unit="molecule", mininterval=10) as bar:
        for graph, positions in padded_batches(model, graphs, starts, _BATCH_SIZE.get(model.device.type, 8)):
            if by == "relax":
                relaxed = model.relax_structure(positions, **graph.inputs)
                assert relaxed.converged is not None
                of_batch = unpadded(graph, relaxed.positions)
                structures += [s if c else None for s, c in zip(of_batch, relaxed.converged.tolist(), strict=True)]
            else:
                structures += unpadded(graph, model.correct_structure(positions, level, **graph.inputs))
            bar.update(len(positions))
    return structures, graphs


def _faults(of_graph: tuple[MolecularGraph, np.ndarray | None]) -> bool:
    graph, structure = of_graph
    return structure is not None and bool(StructureChecks(graph).faults(structure))


def _names(sources: Iterable[str]) -> dict[str, str]:
    """The sources by the names of their shards."""
    names: dict[str, str] = {}
    for source in sources:
        if (other := names.setdefault(Path(source).name, source)) != source:
            raise InputError(f"{other} and {source} would have the same shard; take two outputs")
    return names


def _check_settings(path: Path, settings: str) -> None:
    """Whether a shard that is there was made with the model and options of this run.

    Raises:
        InputError: with others.
    """
    earlier = (pq.read_schema(path).metadata or {}).get(_SETTINGS, b"").decode()
    if earlier and earlier != settings:
        raise InputError(
            f"{path} was made with model (SHA-256), by, max_molecules {earlier}, not {settings}; take a new output"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or hub name")
    parser.add_argument("--sources", nargs="+", required=True, help="bundled configurations or prepared folders")
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--by", choices=["correct", "relax"], default="correct")
    parser.add_argument("--max_molecules", type=int, help="of each source and split, by chance (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes that make graphs and check structures")
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    with errors_as_sentences():
        model = PCBridgeModel.from_pretrained(arguments.model).eval()
        model.config.check_forces_are_learned("correcting a library")
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        settings = json.dumps([sha256_of(model), arguments.by, arguments.max_molecules])
        for name, source in _names(arguments.sources).items():
            for split in _SPLITS:
                path = arguments.output / split / f"{name}.parquet"
                if path.exists():
                    _check_settings(path, settings)
                    continue
                minima = read_minima(source, split).shuffle(seed=0)
                minima = minima.select(range(min(arguments.max_molecules or len(minima), len(minima))))
                rows, left_out = corrected_rows(model, minima, arguments.workers, arguments.by)
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_suffix(".unfinished")
                write_rows(unfinished, rows, {_SETTINGS: settings})
                unfinished.rename(path)
                reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
                print(f"{source}, {split}: {len(rows)} rows; left out: {reasons}", flush=True)


if __name__ == "__main__":
    main()
