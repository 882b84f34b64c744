"""`pcbridge predict`: options, and what is done with them."""

import argparse
import csv
import os
import sys
import time
from pathlib import Path

# torch and RDKit are imported late, so that --help does not wait for them.

EXAMPLES = """examples:
  pcbridge predict molecules.smi --output structures.sdf
  pcbridge predict molecules.csv --smiles_column SMILES --num_samples 10 --rank_by energy --relax -o best.parquet
  pcbridge predict pm6.sdf --method refine --output refined.xyz
  echo 'C[C@H](N)C(=O)O alanine' | pcbridge predict - --output_format xyz > alanine.xyz

Molecules that fail are listed with place and reason, the others are done. Each structure is checked against its
molecule: bonds, distances, stereo marks, flat rings and double bonds. What fails is drawn again, then made by RDKit
and refined, then listed as failed; it is never written. Of each molecule the file says in `beyond_training` what about
it no training molecule of the model had: its size, its charge, the surroundings of its atoms.
exit codes: 0 all molecules done, 1 some failed, 2 wrong usage, no input or no model"""
INPUT_FORMATS = {".smi": "smi", ".csv": "csv", ".sdf": "sdf", ".mol": "sdf", ".xyz": "xyz", ".extxyz": "xyz"}
OUTPUT_FORMATS = {".sdf": "sdf", ".xyz": "xyz", ".extxyz": "xyz", ".parquet": "parquet"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", help="SMILES (.smi), .csv, .sdf or .xyz file; - for standard input")
    add("-o", "--output", default="-", help=".sdf, .xyz or .parquet file (default: standard output)")
    add("--model", help="consistency, multi-task, qm9, a checkpoint folder or hub name (default: consistency)")
    add("--num_samples", type=_positive, default=1, metavar="N", help="structures per molecule (default: 1)")
    ranks = "order the structures of a molecule: lowest energy first, or closest to the others first"
    add("--rank_by", choices=["energy", "centrality"], help=ranks)
    add("--relax", action="store_true", help="relax structures with the model's own forces")
    add("--allow_unlearned_forces", action="store_true", help="relax also with a model that has learned no forces")
    methods = "from noise by DDIM or in one step; from the structures of the file with a little noise or none; from "
    methods += "RDKit's conformers without noise (default: ddim)"
    choices = ["ddim", "denoising", "refine", "mean_shift", "conformers"]
    add("--method", choices=choices, default="ddim", help=methods)
    add("--mean_shift_steps", type=int, default=10, metavar="N", help="after other methods, to sharpen (default: 10)")
    add("--steps", type=_positive, default=20, metavar="N", help="model evaluations per structure (default: 20)")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--batch_size", type=_positive, default=64, metavar="N", help="structures at once (default: 64)")
    add("--level_of_theory", metavar="NAME", help="of energies, if the model has several (default: its first)")
    seconds = "for the bonds of a molecule without any, and for RDKit's structures (default: 10)"
    add("--timeout", type=_seconds, default=10.0, metavar="SECONDS", help=seconds)
    add("--device", help="such as cpu or cuda (default: a GPU where there is one)")
    add("--smiles_column", default="smiles", metavar="NAME", help="of a CSV file (default: smiles)")
    add("--input_format", choices=sorted(set(INPUT_FORMATS.values())), help="(default: by the file's name, else smi)")
    add("--output_format", choices=sorted(set(OUTPUT_FORMATS.values())), help="(default: by the file's name, else sdf)")
    add("--failures", metavar="FILE", help="write failures as CSV: place, name, input, reason")


def run(arguments: argparse.Namespace, error) -> int:
    """Predict; returns the exit code. `error` ends the program with a message on wrong usage."""
    from rdkit import RDLogger
    from transformers.utils.logging import disable_progress_bar

    input_format = _format(arguments.input, arguments.input_format, INPUT_FORMATS, "smi", error)
    output_format = _format(arguments.output, arguments.output_format, OUTPUT_FORMATS, "sdf", error)
    _check_files(arguments, output_format, error)
    _check_extras(output_format, error)
    RDLogger.DisableLog("rdApp.*")
    disable_progress_bar()
    records, pipeline = _load(arguments, input_format, error)
    if pipeline.model.config.coverage is None:
        print("this model does not know what molecules it has learned from", file=sys.stderr)
    _check_numbers(arguments, pipeline.model.config.num_train_timesteps, error)
    if arguments.level_of_theory is not None:
        try:
            pipeline.model.config.find_level_of_theory(arguments.level_of_theory)
        except ValueError as problem:
            error(f"--level_of_theory: {problem}")

    start = time.perf_counter()
    try:
        num_done, num_structures, failures = _predict_and_write(arguments, pipeline, records, output_format)
        if arguments.failures:
            _write_failures(failures, arguments.failures)
    except BrokenPipeError:  # the reader of standard output, such as head, has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for Python's own flush at its end
        return 1
    except OSError as problem:  # no right to write there, or the disk is full; what was written stays
        error(str(problem))
    print(
        f"{num_done} of {len(records)} molecules done, {len(failures)} failed; "
        f"{num_structures} structures in {time.perf_counter() - start:.1f} s",
        file=sys.stderr,
    )
    return 1 if failures else 0


def _check_files(arguments: argparse.Namespace, output_format: str, error) -> None:
    if output_format == "parquet" and arguments.output == "-":
        error("Parquet cannot go to standard output; name a file by --output")
    for path in filter(None, (arguments.output, arguments.failures)):
        if not Path(path).parent.is_dir():
            error(f"there is no folder {Path(path).parent}")
        if Path(path).is_dir():
            error(f"{path} is a folder")
    named = [path for path in (arguments.input, arguments.output, arguments.failures) if path not in (None, "-")]
    if len({Path(path).resolve() for path in named}) < len(named):
        error("input, --output and --failures must be different files")


def _check_extras(output_format: str, error) -> None:
    from modeling_pcbridge.extras import require_extra

    try:
        if output_format == "xyz":
            require_extra("ase", "ase", "xyz output")
    except ValueError as problem:
        error(str(problem))


def _load(arguments: argparse.Namespace, input_format: str, error) -> tuple:
    """The records of the input, and the pipeline."""
    from .default_model import find_model
    from .molecule_files import read_records
    from .predict_records import load_pipeline

    try:
        records = list(read_records(arguments.input, input_format, arguments.smiles_column, arguments.timeout))
        pipeline = load_pipeline(find_model(arguments.model), arguments.device)
        if arguments.relax and not arguments.allow_unlearned_forces:
            pipeline.model.config.check_forces_are_learned("--relax")
    except (OSError, ValueError, ImportError) as problem:
        error(str(problem))
    except (RuntimeError, AssertionError) as problem:  # torch knows no such device, or was built without it
        error(f"--device {arguments.device}: {str(problem).splitlines()[0]}")
    if not records:
        error(f"there is no molecule in {arguments.input}")
    for record in records:
        if record.note:
            print(f"{record.place}: {record.note}", file=sys.stderr)
    return records, pipeline


def _check_numbers(arguments: argparse.Namespace, num_timesteps: int, error) -> None:
    from modeling_pcbridge.sampling import check_num_steps

    if not -(2**63) <= arguments.seed < 2**63:
        error(f"--seed must fit into 64 bits, which {arguments.seed} does not")
    if arguments.mean_shift_steps < 0:
        error(f"--mean_shift_steps must not be negative, but is {arguments.mean_shift_steps}")
    try:
        check_num_steps(arguments.method, arguments.steps, num_timesteps)
    except ValueError as problem:
        error(f"--steps: {problem}")


def _write_failures(failures: list, path: str) -> None:
    rows = [(failure.place, failure.name, failure.text, failure.error) for failure in failures]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("place", "name", "input", "reason"), *rows])


def _predict_and_write(arguments, pipeline, records: list, output_format: str) -> tuple[int, int, list]:
    """The numbers of molecules done and of structures written, and the records that failed."""
    import torch
    from tqdm import tqdm

    from modeling_pcbridge.beyond_training import beyond_as_text
    from pcbridge.evaluation.evaluate import RELAXATION_STEPS

    from .molecule_files import open_writer
    from .predict_records import predict

    batches = predict(
        pipeline,
        records,
        molecules_at_once=max(1, arguments.batch_size // arguments.num_samples),
        rank_by=arguments.rank_by,
        timeout=arguments.timeout,
        level_of_theory=arguments.level_of_theory,
        method=arguments.method,
        num_samples=arguments.num_samples,
        num_inference_steps=arguments.steps,
        mean_shift_steps=arguments.mean_shift_steps,
        relaxation_steps=RELAXATION_STEPS if arguments.relax else 0,
        allow_unlearned_forces=arguments.allow_unlearned_forces,
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    num_done, num_structures, failures = 0, 0, []
    with (
        open_writer(arguments.output, output_format) as write,
        tqdm(total=len(records), unit="molecule", file=sys.stderr, disable=None) as bar,
    ):
        for predictions, failed in batches:
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
    return num_done, num_structures, failures


def _format(path: str, chosen: str | None, formats: dict[str, str], of_stream: str, error) -> str:
    if chosen or path == "-":
        return chosen or of_stream
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        error(f"cannot tell the format of {path}; its name should end in one of {', '.join(formats)}")
    return formats[suffix]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text}")
    return seconds


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)
