"""The mean of the weights of checkpoints that began from one, in place of the best of them (Wortsman et al. 2022).

    python -m experiments.averaged_checkpoint outputs/drug_like_minima/consistency \\
        outputs/drug_like_arms/consistency-{0,1,2}/consistency --output outputs/drug_like_mean/consistency

What trainings from one start with other batches have learned in common stays, and what each has of its own averages
out. The configuration is that of the first.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from modeling_pcbridge import PCBridgeModel


def mean_of(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor, in its own precision.

    Raises:
        ValueError: the states are not of one architecture.
    """
    first = states[0]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("the checkpoints are not of one architecture")
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first[name].dtype) for name in first
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    models = [PCBridgeModel.from_pretrained(checkpoint) for checkpoint in arguments.checkpoints]
    models[0].load_state_dict(mean_of([model.state_dict() for model in models]))
    models[0].save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
