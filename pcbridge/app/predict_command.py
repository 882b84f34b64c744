"""`pcbridge predict`: options, and what is done with them."""

import argparse
import csv
import os
import re
import sys
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from modeling_pcbridge.errors import PCBridgeError

from .prediction_settings import CONFORMERS, METHODS_WITHOUT_NOISE, OF_CONFORMERS, OF_OTHER_METHODS, PredictionSettings

# torch and RDKit are imported late, so that --help does not wait for them.

EXAMPLES = """examples:
  pcbridge predict molecules.smi --output structures.sdf
  pcbridge predict molecules.csv --smiles_column SMILES --num_conformers 20 --relax --output ensembles.parquet
  pcbridge predict pm6.sdf --method refine --output refined.xyz
  pcbridge predict library.smi.gz --output ensembles/
  echo 'C[C@H](N)C(=O)O alanine' | pcbridge predict - --method ddim --num_samples 3 --output_format xyz > alanine.xyz

Molecules that fail are listed with place and reason, the others are done. Each structure is checked against its
molecule: bonds, distances, stereo marks, flat rings and double bonds. What fails is drawn again, then made by RDKit
and refined, then listed as failed; it is never written. Of each molecule the file says in `beyond_training` what about
it no training molecule of the model had: its size, its charge, the surroundings of its atoms.
An output that is a folder is for libraries: all cores, one file for each --shard_size molecules and their failures,
and the same command goes on after an interruption.
exit codes: 0 all molecules done, 1 some failed, 2 wrong usage, no input or no model"""
INPUT_FORMATS = {".smi": "smi", ".csv": "csv", ".sdf": "sdf", ".mol": "sdf", ".xyz": "xyz", ".extxyz": "xyz"}
OUTPUT_FORMATS = {".sdf": "sdf", ".xyz": "xyz", ".extxyz": "xyz", ".parquet": "parquet"}
# Options of an output that is a folder, and the default of the last.
_OF_LIBRARIES = ("workers", "scheduler", "shard_size")
_SHARD_SIZE = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = PredictionSettings()
    add = parser.add_argument
    add("input", help="SMILES (.smi), .csv, .sdf or .xyz file, or one of these as .gz; - for standard input")
    add("-o", "--output", default="-", help=".sdf, .xyz or .parquet file, or a folder/ (default: standard output)")
    add(
        "--model",
        help="drug_like, consistency, multi-task, qm9, a checkpoint folder or hub name (default: drug_like)",
    )
    methods = "from noise by DDIM or in one step; from the structures of the file with a little noise or none, or as "
    methods += "minima of the model's other level of theory, such as those of GFN2-xTB; an ensemble of RDKit's "
    methods += f"conformers, refined (default: {default.method})"
    choices = ["ddim", "denoising", "refine", "mean_shift", "correct", CONFORMERS]
    add("--method", choices=choices, default=default.method, help=methods)
    samples = f"structures that the model draws for a molecule (default: {default.num_samples})"
    add("--num_samples", type=_positive, metavar="N", help=samples)
    ranks = "order the structures of a molecule: lowest energy first, or closest to the others first"
    add("--rank_by", choices=["energy", "centrality"], help=ranks)
    conformers = f"of RDKit, for an ensemble of at most as many (default: {default.num_conformers})"
    add("--num_conformers", type=_positive, metavar="N", help=conformers)
    window = f"of an ensemble, above its lowest conformer (default: {default.energy_window:g})"
    add("--energy_window", type=_not_negative, metavar="KCAL/MOL", help=window)
    twins = f"conformers with heavy atoms no farther apart are one (default: {default.rmsd_threshold:g})"
    add("--rmsd_threshold", type=_not_negative, metavar="ANGSTROM", help=twins)
    add("--dispersion", action="store_true", help="energies and forces with D3(BJ) (the dispersion extra)")
    add("--relax", action="store_true", help="relax structures with the model's own forces")
    add("--allow_unlearned_forces", action="store_true", help="relax also with a model that has learned no forces")
    shifts = f"after other methods, to sharpen (default: {default.mean_shift_steps})"
    add("--mean_shift_steps", type=int, default=default.mean_shift_steps, metavar="N", help=shifts)
    evaluations = "model evaluations per structure (default: 20; of mean_shift and conformers by the model's config)"
    add("--steps", type=_positive, metavar="N", help=evaluations)
    add("--seed", type=int, default=default.seed, help=f"of the noise (default: {default.seed})")
    add("--batch_size", type=_positive, default=64, metavar="N", help="structures at once (default: 64)")
    add("--level_of_theory", metavar="NAME", help="of energies, if the model has several (default: its first)")
    seconds = f"for the bonds of a molecule without any, and for RDKit's structures (default: {default.timeout:g})"
    add("--timeout", type=_seconds, default=default.timeout, metavar="SECONDS", help=seconds)
    add("--device", help="such as cpu or cuda (default: a GPU where there is one)")
    add("--smiles_column", default="smiles", metavar="NAME", help="of a CSV file (default: smiles)")
    add("--input_format", choices=sorted(set(INPUT_FORMATS.values())), help="(default: by the file's name, else smi)")
    add("--output_format", choices=sorted(set(OUTPUT_FORMATS.values())), help="(default: by the file's name, else sdf)")
    add("--failures", metavar="FILE", help="write failures as CSV: place, name, input, reason")
    processes = "processes, one thread each, if the output is a folder (default: one per core, on a GPU one)"
    add("--workers", type=_positive, metavar="N", help=processes)
    add("--scheduler", metavar="ADDRESS", help="of a running dask scheduler, in place of --workers")
    shards = f"molecules of each file, if the output is a folder (default: {_SHARD_SIZE})"
    add("--shard_size", type=_positive, metavar="N", help=shards)


def run(arguments: argparse.Namespace, error) -> int:
    """Predict; returns the exit code. `error` ends the program with a message on wrong usage."""
    from rdkit import RDLogger
    from transformers.utils.logging import disable_progress_bar

    is_library = arguments.output.endswith("/") or Path(arguments.output).is_dir()
    unpacked = re.sub(r"\.gz$", "", arguments.input, flags=re.IGNORECASE)
    input_format = _format(unpacked, arguments.input_format, INPUT_FORMATS, "smi", error)
    named = "-" if is_library else arguments.output
    output_format = _format(named, arguments.output_format, OUTPUT_FORMATS, "sdf", error)
    _check_files(arguments, output_format, is_library, error)
    settings = _settings(arguments, error)
    _check_extras(output_format, settings, error)
    RDLogger.DisableLog("rdApp.*")
    disable_progress_bar()
    records = [] if is_library else _read(arguments, input_format, error)
    pipeline = _load(arguments, settings, error)
    if pipeline.model.config.coverage is None:
        print("this model does not know what molecules it has learned from", file=sys.stderr)
    start = time.perf_counter()
    try:
        if is_library:
            summary, num_failed = _predict_library(arguments, settings, pipeline, input_format, output_format)
        else:
            summary, num_failed = _predict_file(arguments, settings, pipeline, records, output_format)
    except BrokenPipeError:  # the reader of standard output, such as head, has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for Python's own flush at its end
        return 1
    except (
        OSError,
        ImportError,
        PCBridgeError,
    ) as problem:  # the disk is full, for instance; what was written stays
        error(str(problem))
    print(f"{summary} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return 1 if num_failed else 0


def _settings(arguments: argparse.Namespace, error) -> PredictionSettings:
    for name in OF_OTHER_METHODS if arguments.method == CONFORMERS else OF_CONFORMERS:
        if getattr(arguments, name) is not None:
            error(f"--{name} is no option of --method {arguments.method}")
    if arguments.method in METHODS_WITHOUT_NOISE and (arguments.num_samples or 1) > 1:
        error(f"--method {arguments.method} draws nothing, so all --num_samples would be the same")
    if not -(2**63) <= arguments.seed < 2**63:
        error(f"--seed must fit into 64 bits, which {arguments.seed} does not")
    if arguments.mean_shift_steps < 0:
        error(f"--mean_shift_steps must not be negative, but is {arguments.mean_shift_steps}")
    given = {field.name: getattr(arguments, field.name) for field in fields(PredictionSettings)}
    return PredictionSettings(**{name: value for name, value in given.items() if value is not None})


def _check_files(arguments: argparse.Namespace, output_format: str, is_library: bool, error) -> None:
    if is_library and arguments.input == "-":
        error("what goes into a folder must come from a file, which is read again when a run goes on")
    if is_library and arguments.failures:
        error("a folder lists the failures itself; leave --failures out")
    for name in () if is_library else _OF_LIBRARIES:
        if getattr(arguments, name) is not None:
            error(f"--{name} needs an --output that is a folder, {arguments.output}/ for instance")
    if output_format == "parquet" and arguments.output == "-":
        error("Parquet cannot go to standard output; name a file by --output")
    for path in filter(None, (arguments.output, arguments.failures)):
        if not Path(path).parent.is_dir():
            error(f"there is no folder {Path(path).parent}")
    if arguments.failures and Path(arguments.failures).is_dir():
        error(f"{arguments.failures} is a folder")
    paths = [path for path in (arguments.input, arguments.output, arguments.failures) if path not in (None, "-")]
    if len({Path(path).resolve() for path in paths}) < len(paths):
        error("input, --output and --failures must be different files")


def _check_extras(output_format: str, settings: PredictionSettings, error) -> None:
    from modeling_pcbridge.extras import require_extra

    try:
        if output_format == "xyz":
            require_extra("ase", "ase", "xyz output")
        if settings.dispersion:
            require_extra("dispersion", "tad_dftd3", "--dispersion")
    except ValueError as problem:
        error(str(problem))


def _load(arguments: argparse.Namespace, settings: PredictionSettings, error):
    """The pipeline, of a model that can do what is asked for."""
    from modeling_pcbridge.sampling import check_num_steps

    from .default_model import find_model
    from .predict_records import load_pipeline

    try:
        pipeline = load_pipeline(find_model(arguments.model), arguments.device, settings.dispersion)
        config = pipeline.model.config
        if settings.relax and not arguments.allow_unlearned_forces:
            config.check_forces_are_learned("--relax")
        if settings.method == "correct":
            config.find_other_level_of_theory(None)
    except (OSError, ValueError, ImportError) as problem:
        error(str(problem))
    except (RuntimeError, AssertionError) as problem:  # torch knows no such device, or was built without it
        error(f"--device {arguments.device}: {str(problem).splitlines()[0]}")
    try:
        _, has_dispersion = config.find_level_of_theory(settings.level_of_theory)
    except ValueError as problem:
        error(f"--level_of_theory: {problem}")
    if settings.dispersion and not has_dispersion:
        error(f"--dispersion is of {config.energy_level_of_theory}; leave it or --level_of_theory out")
    if settings.steps is not None:
        try:
            check_num_steps(settings.method, settings.steps, config.num_train_timesteps)
        except ValueError as problem:
            error(f"--steps: {problem}")
    return pipeline


def _read(arguments: argparse.Namespace, input_format: str, error) -> list:
    """The records of the input, parsed."""
    from modeling_pcbridge.sampling import METHODS_FROM_POSITIONS

    from .molecule_files import Molecule, read_records

    try:
        records = list(read_records(arguments.input, input_format, arguments.smiles_column, arguments.timeout))
    except (OSError, ValueError) as problem:
        error(str(problem))
    if not records:
        error(f"there is no molecule in {arguments.input}")
    for record in records:
        if record.note:
            print(f"{record.place}: {record.note}", file=sys.stderr)
    has_structures = any(isinstance(record, Molecule) and record.mol.GetNumConformers() for record in records)
    if has_structures and arguments.method not in METHODS_FROM_POSITIONS:
        print(
            f"--method {arguments.method} makes new structures and leaves those of {arguments.input} aside; "
            "--method mean_shift refines them",
            file=sys.stderr,
        )
    return records


def _predict_file(
    arguments: argparse.Namespace, settings: PredictionSettings, pipeline, records: list, output_format: str
) -> tuple[str, int]:
    """What is said of the run, and the number of failures."""
    from tqdm import tqdm

    from modeling_pcbridge.beyond_training import beyond_as_text

    from .molecule_files import open_writer
    from .predict_records import predict

    num_done, num_structures, failures = 0, 0, []
    with (
        open_writer(arguments.output, output_format) as write,
        tqdm(total=len(records), unit="molecule", file=sys.stderr, disable=None) as bar,
    ):
        for predictions, failed in predict(pipeline, records, settings, arguments.batch_size):
            write(predictions)
            done = {prediction.molecule.place: prediction for prediction in predictions}
            for place, prediction in done.items():
                if beyond := prediction.beyond_training:
                    named = f"{place}: {prediction.molecule.text}"
                    bar.write(f"{named}: beyond what trained the model: {beyond_as_text(beyond)}", file=sys.stderr)
            num_done += len(done)
            num_structures += len(predictions)
            failures += failed
            for failure in failed:
                bar.write(f"{failure.place}: {failure.text}: {failure.error}", file=sys.stderr)
            bar.update(len(done.keys() | {failure.place for failure in failed}))
    if arguments.failures:
        rows = [(failure.place, failure.name, failure.text, failure.error) for failure in failures]
        with open(arguments.failures, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("place", "name", "input", "reason"), *rows])
    counts = f"{num_done} of {len(records)} molecules done, {len(failures)} failed; {num_structures} structures"
    return counts, len(failures)


def _predict_library(
    arguments: argparse.Namespace, settings: PredictionSettings, pipeline, input_format: str, output_format: str
) -> tuple[str, int]:
    """What is said of the run, and the number of failures."""
    from pcbridge.model_identity import sha256_of

    from .predict_library import LibraryInput, LibraryTask, predict_library

    task = LibraryTask(
        model=arguments.model,
        model_sha256=sha256_of(pipeline.model),
        device=arguments.device,
        settings=settings,
        file_format=output_format,
        batch_size=arguments.batch_size,
    )
    num_records, num_failed = predict_library(
        LibraryInput(Path(arguments.input), input_format, arguments.smiles_column, arguments.timeout),
        Path(arguments.output),
        task,
        shard_size=arguments.shard_size or _SHARD_SIZE,
        workers=arguments.workers or _default_workers(pipeline.device.type),
        scheduler=arguments.scheduler,
    )
    said = f"{num_records - num_failed:,} of {num_records:,} molecules done, {num_failed:,} failed"
    return said, num_failed


def _default_workers(device_type: str) -> int:
    """One a core, or one process, which says so, where the packages for several are missing; on a GPU one."""
    from .cores import num_cores

    workers = num_cores() if device_type == "cpu" else 1
    if workers > 1 and find_spec("distributed") is None:
        print("one process works; for all cores: pip install 'pcbridge[cluster]'", file=sys.stderr)
        return 1
    return workers


def _format(path: str, chosen: str | None, formats: dict[str, str], of_stream: str, error) -> str:
    if chosen or path == "-":
        return chosen or of_stream
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        error(f"cannot tell the format of {path}; its name should end in one of {', '.join(formats)}")
    return formats[suffix]


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number that is not negative, not {text}")
    return number


def _seconds(text: str) -> float:
    if not (seconds := _not_negative(text)):
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return seconds


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)
