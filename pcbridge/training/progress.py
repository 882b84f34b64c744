"""How far a stage is: what a saved state remembers beside tensors."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BestSoFar:
    """The validated weights that are kept.

    Attributes:
        step: updates they were made by.
        loss: their validation loss.
        validations_since: how many validations since then were no better.
    """

    step: int
    loss: float
    validations_since: int = 0


@dataclass
class Progress:
    """The state of a stage's loop.

    Attributes:
        settings: what the stage is trained with; a run with others does not go on from here.
        step: updates done.
        ended: whether no more are to be done.
        history: records of losses, see `train_stage`.
        best: where validation is on and has been.
    """

    settings: dict
    step: int = 0
    ended: bool = False
    history: list[dict] = field(default_factory=list)
    best: BestSoFar | None = None

    @classmethod
    def from_dict(cls, values: dict) -> "Progress":
        """From `dataclasses.asdict` of one, as JSON gives it back."""
        best = values.get("best")
        return cls(**{**values, "best": None if best is None else BestSoFar(**best)})
