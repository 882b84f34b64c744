"""Train PCBridge: stage 1, stage 2 with the consistency losses and without, evaluation, table and pictures.

    accelerate launch train_accelerate.py                                  # the mini preset on the bundled data
    accelerate launch train_accelerate.py --config configs/paper.yaml
    accelerate launch train_accelerate.py --seed 1 --output_dir outputs/seed1 --stage2.losses.kT 0.2
    accelerate launch train_accelerate.py --output_dir outputs/mini --resume latest
    accelerate launch train_accelerate.py --push_to_hub true --hub_model_id me/my-model      # after `hf auth login`

Every option is a field of `pcbridge.training.config.TrainingConfig`; `--help` lists them with their meaning.
"""

import logging
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.options import underscored
from pcbridge.training.config import SourceConfig, TrainingConfig

_HERE = Path(__file__).parent
# In a clone beside this file; a wheel carries them inside pcbridge, see pyproject.toml.
CONFIGS = next(folder for folder in (_HERE / "configs", _HERE / "pcbridge/configs") if folder.is_dir())


def _source(fields: dict) -> SourceConfig:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SourceConfig)
    return SourceConfig(**parser.parse_object(fields))


# As one value, so that a list of sources replaces another; else each would inherit what it leaves out from the one
# that was in its place.
register_type(SourceConfig, serializer=asdict, deserializer=_source)


def parse(arguments: list[str] | None = None) -> TrainingConfig:
    """The configuration of a command line; values not given come from --config, else from configs/mini.yaml."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", action="config", help=f"YAML file; later options override it. See those in {CONFIGS}"
    )
    parser.add_class_arguments(TrainingConfig)
    arguments = underscored(sys.argv[1:] if arguments is None else arguments)
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", str(CONFIGS / "mini.yaml"), *arguments]
    values = parser.instantiate(parser.parse_args(arguments)).as_dict()
    values.pop("config")
    return TrainingConfig(**values)


def main() -> None:
    with errors_as_sentences():
        config = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from pcbridge.training.interruption import TrainingInterrupted
    from pcbridge.training.run import run

    try:
        with errors_as_sentences():
            run(config)
    except TrainingInterrupted as interruption:
        logging.warning("%s; --resume latest goes on", interruption)
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
