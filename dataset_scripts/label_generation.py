"""Compute labels: PM6 minima, B3LYP/6-31G* energies and forces, GFN2-xTB; on one machine or on a cluster.

    python -m dataset_scripts.label_generation --level pm6 --inputs molecules.smi --output pm6.jsonl --workers 8
    python -m dataset_scripts.label_generation --level b3lyp --inputs pm6.jsonl --output b3lyp.jsonl \\
        --geometries given torsion dynamics displaced --workers 8

Input: SMILES files (`SMILES name` a line), SDF, Parquet in `dataset_scripts.schema.FEATURES`, or the output of another
run. What has no structure gets one from ETKDGv3 and MMFF94. Output: one JSON object per line, a row of the schema with
its `geometry` and `level`; `pcbridge data prepare own` takes it. A molecule that fails is a line with the reason as its
`error`. A killed run goes on where it stopped when it is started again.

What a label is: `labelling`; which structures there are: `geometries`. A level of your own: put a `labelling.Level`
into a module and give `--level my_module:MY_LEVEL`. Programs: `quantum_chemistry`.
Several workers need the `cluster` extra; `--scheduler tcp://host:8786` uses the workers of a running dask scheduler
(`dask worker --nthreads 1`), which need this package and the programs.
On Linux, PySCF's big arrays go back to the system and come again all the time; with the environment variables
MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 glibc keeps them, for about a fifth less CPU time.
"""

import argparse
import importlib
import json
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.file_lock import lock
from dataset_scripts.geometries import GEOMETRIES, parse_geometry
from dataset_scripts.labelling import LEVELS, Level, empty_line, find_level, fingerprint, label
from dataset_scripts.options import underscored
from dataset_scripts.parallel import WorkerDiedError, results_of
from dataset_scripts.sdf import read_sdf
from dataset_scripts.tables import read_parquet, read_smiles
from dataset_scripts.text_files import open_text
from modeling_pcbridge.errors import InputError

logger = logging.getLogger(__name__)


def read_molecules(path: Path) -> list[dict]:
    """The molecules of one input file, not parsed yet: `molecule_id` with `smiles` or `mol_block`, maybe `positions`.

    Molecules without a name are numbered by line or record: "file_000001".

    Raises:
        ValueError: a file of another kind, or rows without `mapped_smiles`.
    """
    suffix = path.suffix.lower()
    if suffix in (".smi", ".smiles"):
        with open_text(path) as file:
            found = [{"smiles": smiles, "molecule_id": name} for _, smiles, name in read_smiles(file)]
    elif suffix == ".sdf":
        with path.open("rb") as file:
            blocks = list(read_sdf(file, str(path)))
        found = [{"mol_block": block, "molecule_id": block.partition("\n")[0].strip()} for block in blocks]
    elif suffix in (".parquet", ".jsonl"):
        rows = list(read_parquet(path)) if suffix == ".parquet" else read_lines(path)
        rows = [row for row in rows if "error" not in row]
        for number, row in enumerate(rows, start=1):
            if missing := [key for key in ("molecule_id", "mapped_smiles") if key not in row]:
                raise InputError(f"{path}, row {number}: no {' and no '.join(missing)}; see dataset_scripts.schema")
        found = [row | {"smiles": row["mapped_smiles"]} for row in rows]
    else:
        raise InputError(f"{path}: not one of .smi, .smiles, .sdf, .parquet, .jsonl")
    for number, molecule in enumerate(found, start=1):
        molecule["molecule_id"] = molecule["molecule_id"] or f"{path.stem}_{number:06d}"
    return found


def label_all(
    tasks: Iterable[tuple[dict, str]], level_name: str, workers: int = 1, scheduler: str | None = None
) -> Iterator[dict]:
    """The lines of (molecule, geometry) tasks: in order by one worker, as they come by several (`parallel`)."""
    of_level = ((molecule, geometry, level_name) for molecule, geometry in tasks)
    for task, line in results_of(label, of_level, workers, scheduler):
        yield empty_line(*task) | {"error": str(line)} if isinstance(line, WorkerDiedError) else line


def read_lines(path: Path) -> list[dict]:
    """All whole lines of an output file, without a last one cut short by a kill; none where there is no file.

    Raises:
        ValueError: a line is not JSON.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], start=1):
        if text.endswith(b"\n"):
            try:
                lines.append(json.loads(text))
            except ValueError as error:
                raise InputError(f"{path}, line {number} is not JSON ({error})") from error
    return lines


def generate(
    level: str,
    inputs: list[Path],
    output: Path,
    geometries: list[str] | None = None,
    max_molecules: int | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    retry_failed: bool = False,
    in_order: bool = False,
) -> Counter:
    """The command (see its options): append the missing lines to `output`, and count the new ones by error or "done".

    Raises:
        ValueError: bad input, an output of another level or of other molecules, or one that another process is writing
            to.
    """
    for option, value in (("workers", workers), ("max_molecules", max_molecules)):
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, not {value}")
    functions = find_level(level)
    geometries = geometries or (["given"] if functions.energy_and_forces else ["minimum"])
    for geometry in geometries:
        parse_geometry(geometry)
        if (functions.minimum if geometry == "minimum" else functions.energy_and_forces) is None:
            raise InputError(f"level {level} cannot compute geometry {geometry!r}")
    molecules = [molecule for path in inputs for molecule in read_molecules(path)]
    if not molecules:
        raise InputError(f"there is no molecule in {', '.join(map(str, inputs))}")
    repeated = [name for name, count in Counter(m["molecule_id"] for m in molecules).items() if count > 1]
    if repeated:
        raise InputError(f"molecule_id {repeated[0]!r} is there more than once in the input")
    if not in_order:  # by chance, so that what is there at any time is a fair sample
        random.Random(0).shuffle(molecules)
    tasks_of = [[(m, g) for g in geometries if not _is_labelled(m, g, functions)] for m in molecules]
    if num_labelled := len(geometries) * len(molecules) - sum(map(len, tasks_of)):
        logger.warning("%d structures of the input are labelled at %s already", num_labelled, functions.level_of_theory)
    tasks = [task for tasks in list(filter(None, tasks_of))[:max_molecules] for task in tasks]

    with output.open("a+b") as file:
        done = _finished_tasks(file, level, retry_failed)
        for molecule, geometry in tasks:
            if done.get((molecule["molecule_id"], geometry)) not in (None, fingerprint(molecule)):
                raise InputError(
                    f"{output} holds labels of another molecule {molecule['molecule_id']!r} than the input's; give "
                    "another --output, or the molecules names of their own"
                )
        tasks = [(m, geometry) for m, geometry in tasks if (m["molecule_id"], geometry) not in done]
        lines = label_all(tasks, level, workers, scheduler)
        new: Counter[str] = Counter()
        for line in (progress := tqdm(lines, total=len(tasks), desc=functions.level_of_theory, unit="structure")):
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            new[line.get("error", "done")] += 1
            progress.set_postfix(failed=new.total() - new["done"])
    return new


def _is_labelled(molecule: dict, geometry: str, level: Level) -> bool:
    return geometry == "given" and molecule.get("energy_level_of_theory") == level.level_of_theory


def _finished_tasks(file: BinaryIO, level: str, retry_failed: bool) -> dict[tuple[str, str], str | None]:
    """Make the open output ours and whole; the fingerprints of molecules and geometries that need no new line."""
    lock(file, file.name)
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)  # a line cut short by a kill
    lines = read_lines(Path(file.name))
    if others := {line["level"] for line in lines} - {level}:
        raise InputError(f"{file.name} holds labels of level {others.pop()}; give another --output")
    kept = [line for line in lines if not (retry_failed and "error" in line)]
    return {(line["molecule_id"], line["geometry"]): line.get("input") for line in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", required=True, help=f"{', '.join(LEVELS)}, or module:attribute")
    parser.add_argument("--inputs", type=Path, nargs="+", required=True, help=".smi, .sdf, .parquet or .jsonl files")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--geometries", nargs="+", help=f"{', '.join(GEOMETRIES)} (default: given, else minimum)")
    parser.add_argument("--max_molecules", type=int, help="take only so many of the inputs, by chance or --in_order")
    parser.add_argument("--in_order", action="store_true", help="molecules in the order of the inputs, not by chance")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine, one thread each")
    parser.add_argument("--scheduler", help="address of a running dask scheduler, in place of --workers")
    parser.add_argument("--retry_failed", action="store_true", help="try again what has failed before")
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tblite reads it when it is loaded, which is later
    with errors_as_sentences():
        counts = generate(**vars(arguments))
    for reason, count in counts.most_common():
        print(f"{count:8,} {reason}")


if __name__ == "__main__":
    # Through the module, so that workers find its functions there and not in __main__.
    importlib.import_module("dataset_scripts.label_generation").main()
