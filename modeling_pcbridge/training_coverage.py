"""What the data that trained a model covered, as its configuration carries it."""

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from .errors import InputError

# Bonds around an atom that its environment reaches. With two, nine of ten unseen drug-like molecules would have an atom
# that no label covers; with one it is three of ten, and bonds of just these atoms are what refinement does not improve.
ENVIRONMENT_RADIUS = 1
_NUM_DIGITS = 8


@dataclass(frozen=True)
class TrainingCoverage:
    """The sizes, charges and atom environments of training molecules.

    Attributes:
        largest_structure: heavy atoms of the largest molecule whose equilibrium structure was learned; 0 for none.
        largest_labelled: heavy atoms of the largest molecule with an energy or forces; 0 for none.
        total_charges: of all molecules, elementary charges.
        labelled_environments: of the heavy atoms of molecules with an energy or forces at any level of theory of the
            model, as `atom_environments` hashes them with `ENVIRONMENT_RADIUS`.
    """

    largest_structure: int = 0
    largest_labelled: int = 0
    total_charges: frozenset[int] = frozenset()
    labelled_environments: frozenset[int] = frozenset()

    def __or__(self, other: "TrainingCoverage") -> "TrainingCoverage":
        """What both cover."""
        return TrainingCoverage(
            max(self.largest_structure, other.largest_structure),
            max(self.largest_labelled, other.largest_labelled),
            self.total_charges | other.total_charges,
            self.labelled_environments | other.labelled_environments,
        )

    def to_json(self) -> dict[str, Any]:
        """For config.json; the environments are one string of sorted hashes of eight hexadecimal digits."""
        return {
            "largest_structure": self.largest_structure,
            "largest_labelled": self.largest_labelled,
            "total_charges": sorted(self.total_charges),
            "labelled_environments": "".join(f"{each:0{_NUM_DIGITS}x}" for each in sorted(self.labelled_environments)),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainingCoverage":
        """The inverse of `to_json`.

        Raises:
            InputError: it is damaged.
        """
        if set(values) != {field.name for field in fields(cls)}:
            raise InputError(f"training_coverage has the keys {', '.join(sorted(values))}")
        sizes = [values["largest_structure"], values["largest_labelled"]]
        charges, digits = values["total_charges"], values["labelled_environments"]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise InputError(f"the sizes in training_coverage must be whole numbers, not {sizes}")
        if not isinstance(charges, list) or not all(type(charge) is int for charge in charges):
            raise InputError(f"total_charges in training_coverage must be whole numbers, not {charges!r}")
        if not isinstance(digits, str) or not re.fullmatch(rf"([0-9a-f]{{{_NUM_DIGITS}}})*", digits):
            raise InputError(
                f"labelled_environments in training_coverage must be {_NUM_DIGITS} hexadecimal digits each"
            )
        return cls(sizes[0], sizes[1], frozenset(charges), _hashes(digits))


@lru_cache(8)  # models in use, whose configurations are asked again and again
def _hashes(digits: str) -> frozenset[int]:
    return frozenset(int(digits[k : k + _NUM_DIGITS], 16) for k in range(0, len(digits), _NUM_DIGITS))
