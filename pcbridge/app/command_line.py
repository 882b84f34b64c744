"""The `pcbridge` command: which part of the project does what."""

import argparse
import importlib
import signal
import sys
from importlib.metadata import PackageNotFoundError, version

from dataset_scripts.options import underscored

from . import predict_command

EXAMPLES = """examples:
  pcbridge predict molecules.smi --output structures.sdf
  pcbridge predict library.smi --model drug_like --method conformers --output ensembles/
  pcbridge evaluate --checkpoints.mine outputs/mini/consistency --output_dir outputs/evaluation
  pcbridge train --output_dir outputs/mine --seed 1
  pcbridge data fragments library.smi --output fragments.smi
  pcbridge data label --level gfn2 --geometries minimum --inputs fragments.smi --output minima.jsonl
  pcbridge data prepare own --input minima.jsonl --output data/minima
  pcbridge serve
Each command has its own --help."""
# Commands with a parser of their own: the module whose `main` reads the rest of the command line, and what it does.
MODULES = {
    "evaluate": ("pcbridge.evaluation.checkpoints", "evaluate checkpoints against DFT structures"),
    "check": ("pcbridge.evaluation.validity", "check the structures of SDF files by PoseBusters"),
    "train": ("train_accelerate", "train a model; on several GPUs use accelerate launch train_accelerate.py"),
    "data fragments": ("dataset_scripts.fragments", "choose the fragments of a library that are worth labelling"),
    "data label": ("dataset_scripts.label_generation", "compute PM6, B3LYP/6-31G* or GFN2-xTB labels"),
    "data prepare": ("dataset_scripts.prepare", "turn a public data set, or your own files, into training shards"),
    "data push": ("dataset_scripts.push", "push prepared shards to the Hugging Face Hub"),
    "data pack": ("dataset_scripts.packed_labels", "labels as one small file, and back"),
    "data select": ("dataset_scripts.drug_like", "choose the molecules of the bundled drug-like sets"),
    "data build": ("dataset_scripts.build_bundled", "build the bundled data set from raw labels"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns its exit code, or exits by itself on wrong usage."""
    try:
        return _run(underscored(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("interrupted; what was written is kept", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(arguments: list[str]) -> int:
    for words in (1, 2):
        command = " ".join(arguments[:words])
        if command in MODULES:
            module = importlib.import_module(MODULES[command][0])
            sys.argv = [f"pcbridge {command}", *arguments[words:]]
            module.main()
            return 0
    parsed = _parser().parse_args(arguments)
    return parsed.run(parsed, parsed.error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pcbridge",
        description="Structures, energies and forces of molecules: predict, evaluate, train, make data, look.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pcbridge {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    predict = commands.add_parser(
        "predict",
        help="predict structures, energies and forces",
        description="Predict structures, energies (eV) and forces (eV/angstrom) of molecules.",
        epilog=predict_command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict_command.add_arguments(predict)
    predict.set_defaults(run=predict_command.run, error=predict.error)
    for command in ("evaluate", "check", "train"):
        commands.add_parser(command, help=MODULES[command][1])
    data = commands.add_parser("data", help="make training data").add_subparsers(metavar="STEP", required=True)
    for command in MODULES:
        if command.startswith("data "):
            data.add_parser(command.removeprefix("data "), help=MODULES[command][1])
    serve = commands.add_parser("serve", help="a web page to look at predictions")
    serve.add_argument("--model", help="released model, checkpoint folder or hub name (default: drug_like)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=_port, default=7860, help="(default: 7860)")
    serve.set_defaults(run=_serve, error=serve.error)
    return parser


def _version() -> str:
    try:
        return version("pcbridge")
    except PackageNotFoundError:  # run from a folder, not installed
        return "not installed"


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"must be a whole number below 65536, not {text}")
    return int(text)


def _serve(arguments: argparse.Namespace, error) -> int:
    from modeling_pcbridge.extras import require_extra

    from .default_model import find_model

    try:
        for package in ("starlette", "uvicorn"):
            require_extra("serve", package, "the web page")
        from .web.server import create_app, run

        run(create_app(find_model(arguments.model)), arguments.host, arguments.port)
    except (OSError, ValueError) as problem:  # no extra, no model, or the port is taken
        error(str(problem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
