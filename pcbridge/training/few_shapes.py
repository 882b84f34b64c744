"""Batches in few shapes, so that what a GPU does for one of them can be captured and replayed for others."""

from dataclasses import replace
from itertools import groupby
from typing import Any

from torch.nn.functional import pad

from dataset_scripts.collator import Example, collate, order_rows
from modeling_pcbridge.loss_terms import LabelRows

# Parts are padded to so many atoms, and to a multiple of so many rows.
_SHAPES = ((24, 32), (56, 16), (96, 8), (160, 4), (256, 2), (512, 1), (1024, 1))
# And to a multiple of so many quadruples per atom; drug-like molecules have fewer than one such multiple.
_TORSIONS_PER_ATOM, _STEREO_PER_ATOM = 4.0, 0.5


def in_few_shapes(examples: list[Example]) -> list[tuple[dict, list[str]]]:
    """A micro-batch in parts of similar molecules, each padded to one of few shapes; as `collate_in_parts`.

    Rows that fill a part up are copies of its first molecule without labels, so that no loss sees them.
    """
    examples = sorted(examples, key=lambda example: example.graph.num_atoms)
    parts = []
    for (num_atoms, multiple), group in groupby(examples, key=_shape_of):
        part = list(group)
        filler = replace(part[0], energy=None, forces=None, is_equilibrium=False)
        part = order_rows(part + [filler] * (-len(part) % multiple))
        parts.append((_padded(collate(part), num_atoms, multiple), [example.molecule_id for example in part]))
    return parts


def _shape_of(example: Example) -> tuple[int, int]:
    size = example.graph.num_atoms
    return next((shape for shape in _SHAPES if size <= shape[0]), (size, 1))


def _padded(batch: dict[str, Any], num_atoms: int, multiple: int) -> dict[str, Any]:
    """The batch with room for `num_atoms` atoms, and for losses on slices that start and end at multiples."""
    more = num_atoms - batch["atom_mask"].shape[1]
    padded = batch | {key: pad(batch[key], (0, more)) for key in ("atomic_numbers", "formal_charges", "atom_mask")}
    padded |= {key: pad(batch[key], (0, more, 0, more)) for key in ("pair_types", "stereo_pair_types")}
    padded |= {key: pad(batch[key], (0, 0, 0, more)) for key in ("positions", "forces")}
    for key, per_atom in (("torsion_quadruples", _TORSIONS_PER_ATOM), ("stereo_quadruples", _STEREO_PER_ATOM)):
        count, unit = batch[key].shape[1], int(per_atom * num_atoms)
        missing = -count % unit if count else unit
        padded[key] = pad(batch[key], (0, 0, 0, missing), value=-1)
    rows, size = batch["label_rows"], len(batch["positions"])
    labelled = slice(_down(rows.labelled.start, multiple), min(-_down(-rows.labelled.stop, multiple), size))
    return padded | {"label_rows": LabelRows(labelled, slice(_down(rows.structures.start, multiple), size))}


def _down(count: int, multiple: int) -> int:
    return count - count % multiple
