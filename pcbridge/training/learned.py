"""What a run teaches a model besides its weights: which molecules its data covered, and whether forces were in it.

Training writes this into the configuration of what it saves; what an initial checkpoint says of itself stays. For a
checkpoint from before training did so,

    python -m pcbridge.training.learned checkpoints/drug_like --config configs/drug_like.yaml

writes it from the stages and sources of a training configuration. Options are those of train_accelerate.py; for a model
of stage 1 alone add `--stage2 null`.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from dataset_scripts.command_errors import errors_as_sentences
from modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.configuration_pcbridge import PCBridgeConfig
from modeling_pcbridge.training_coverage import TrainingCoverage
from pcbridge.training.config import StageConfig
from pcbridge.training.data import LABEL_LOSSES, TrainingData


def record_learned(config: PCBridgeConfig, data: TrainingData, stages: Iterable[StageConfig]) -> None:
    """Add to the configuration of a model what these stages taught it.

    A coverage that was not known before is not known after.
    """
    coverage = config.coverage
    for stage in stages:
        in_use = {name for name, weight in stage.losses.weights().items() if weight > 0}
        for source in stage.sources:
            covered = data.coverage(source)
            if "force_weight" in in_use and covered.has_forces:
                config.has_learned_forces = True
            if coverage is not None and in_use & LABEL_LOSSES:
                coverage |= covered.by_labels
            if coverage is not None and in_use - LABEL_LOSSES:
                coverage |= covered.by_structures
    config.training_coverage = None if coverage is None else coverage.to_json()


def main() -> None:
    from train_accelerate import parse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder whose config.json is changed")
    arguments, options = parser.parse_known_args()
    with errors_as_sentences():
        training = parse(options)
        model = PCBridgeModel.from_pretrained(arguments.checkpoint)
        config = model.config
        config.has_learned_forces = bool(config.has_learned_forces)
        if config.coverage is None:
            config.training_coverage = TrainingCoverage().to_json()
        record_learned(config, TrainingData(training, model), filter(None, (training.stage1, training.stage2)))
        path = arguments.checkpoint / "config.json"
        learned = {"has_learned_forces": config.has_learned_forces, "training_coverage": config.training_coverage}
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(json.loads(path.read_text()) | learned, indent=2, sort_keys=True) + "\n")
        aside.rename(path)
    coverage = TrainingCoverage.from_json(learned["training_coverage"])
    print(f"has_learned_forces: {config.has_learned_forces}")
    for name, value in vars(coverage).items():
        print(f"{name}: {len(value) if name == 'labelled_environments' else value}")


if __name__ == "__main__":
    main()
