"""What an evaluation can be told, as a dataclass that a YAML file or the command line fills."""

from dataclasses import dataclass

from dataset_scripts.splits import SPLITS
from modeling_pcbridge.errors import require


@dataclass(frozen=True)
class EvaluationConfig:
    """What the evaluation after training does.

    Attributes:
        split: of the bundled data; choose settings on "validation", report "test".
        max_molecules: structures of so many molecules, evenly from small to large; null for all.
        num_samples: structures per molecule, for each sampling method.
        num_inference_steps, eta: of DDIM, see `PCBridgeModel.predict_structure`.
        batch_size: structures evaluated at once.
        num_pictures: molecules in the picture of predicted over reference structures.
    """

    split: str = "test"
    max_molecules: int | None = None
    num_samples: int = 5
    num_inference_steps: int = 20
    eta: float = 1.0
    batch_size: int = 128
    num_pictures: int = 6

    def __post_init__(self):
        require(self.split in SPLITS, "evaluation.split", f"one of {', '.join(SPLITS)}", repr(self.split))
        for name in ("num_samples", "batch_size"):
            require(getattr(self, name) >= 1, f"evaluation.{name}", "at least 1", getattr(self, name))
        steps, molecules = self.num_inference_steps, self.max_molecules
        require(steps >= 2, "evaluation.num_inference_steps", "at least 2", steps)  # as DDIM has it
        require(molecules is None or molecules >= 1, "evaluation.max_molecules", "at least 1", molecules)
        require(0 <= self.eta <= 1, "evaluation.eta", "at least 0 and at most 1", self.eta)
        require(self.num_pictures >= 0, "evaluation.num_pictures", "zero or more", self.num_pictures)
