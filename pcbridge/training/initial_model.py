"""The model that a run begins with, new or of a checkpoint: a head and reference energies for each level of theory."""

import copy
import logging
from collections.abc import Sequence
from math import ceil

import numpy as np
import torch

from dataset_scripts.collator import Example
from modeling_pcbridge.configuration_pcbridge import PCBridgeConfig
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.training_coverage import TrainingCoverage
from pcbridge.evaluation.batches import energies_and_forces
from pcbridge.training.config import TrainingConfig
from pcbridge.training.data import TrainingData, reference_energies_of, sample_rows

logger = logging.getLogger(__name__)

# Reference energies are fitted to this many rows of each source.
_REFERENCE_ROWS = 10_000
# And, where E of a checkpoint is predicted for them, to this many with each element.
_PREDICTED_ROWS = 100


def initial_model(config: TrainingConfig) -> tuple[PCBridgeModel, TrainingData]:
    """The model of `init_from`, or a new one, and its data, to which missing reference energies are fitted.

    Raises:
        InputError: no training row has an energy at a new level of theory, or `model` differs from that of `init_from`.
    """
    if config.init_from is None:
        nothing = {"has_learned_forces": False, "training_coverage": TrainingCoverage().to_json()}
        model = PCBridgeModel(PCBridgeConfig.from_preset(config.preset, **config.model, **nothing))
    else:
        model = PCBridgeModel.from_pretrained(config.init_from)
        changed = {key for key, value in config.model.items() if getattr(model.config, key, None) != value}
        added = {key for key in changed & {*_TERMS, "level_differences"} if config.model[key] is True}
        if differing := sorted(changed - added - {"energy_levels_of_theory"}):
            raise InputError(
                f"model: {', '.join(differing)} of {config.init_from} cannot be changed; of a checkpoint that training "
                f"goes on from, only energy_levels_of_theory can, and {', '.join(_TERMS)} and level_differences can be "
                "added"
            )
        model = with_terms(model, added & set(_TERMS))
        if "level_differences" in added:
            model = with_level_differences(model)
        levels = config.model.get("energy_levels_of_theory", model.config.energy_levels_of_theory)
        model = with_levels_of_theory(model, levels)
    data = TrainingData(config, model)
    for index in range(len(model.config.energy_levels_of_theory)):
        _fit_references(model, data, config, index)
    return model, data


def _fit_references(model: PCBridgeModel, data: TrainingData, config: TrainingConfig, index: int) -> None:
    """Fit the reference energies that a level lacks, all of a new one or those of new elements, to the training labels.

    Of a checkpoint to what the other reference energies and the heads leave of them: the head of a new level starts as
    a copy, which knows much of the energies already.

    Raises:
        InputError: no training row has an energy at a level without any reference energy.
    """
    level = model.config.energy_levels_of_theory[index]
    references = model.energy_decoder.reference_energies.by_level[index]
    known = set(references.nonzero().flatten().tolist())
    sources = data.examples(config.sources, "train")
    elements = set().union(*(source.elements for source in sources))
    if elements <= known:
        return
    rows = [
        row
        for source in sources
        if level in source.label_levels and not source.elements <= known
        for row in sample_rows(source, _REFERENCE_ROWS)
        if row.energy is not None and row.level == index and not known.issuperset(row.graph.atomic_numbers.tolist())
    ]
    if not rows and not known:
        raise InputError(f"no training row has an energy at {level}, so its reference energies cannot be fitted")
    if rows:
        if config.init_from is None:
            predicted = np.zeros(len(rows))
        else:
            rows = _some_of_each_element(rows, known)
            graphs, positions = [row.graph for row in rows], [row.positions for row in rows]
            predicted, _ = energies_and_forces(model, graphs, positions, config.batch_size, level)
        new_atoms = [row.graph.atomic_numbers[~np.isin(row.graph.atomic_numbers, list(known))] for row in rows]
        left = np.array([row.energy for row in rows]) - predicted
        for atomic_number, energy in reference_energies_of(new_atoms, left).items():
            references[atomic_number] = energy
    if missing := sorted(elements - set(references.nonzero().flatten().tolist())):
        logger.warning(
            "no energy at %s among %d rows of each source has atomic numbers %s, so total energies of molecules with "
            "them will be far off",
            level,
            _REFERENCE_ROWS,
            missing,
        )


def _some_of_each_element(rows: Sequence[Example], known: set[int]) -> list[Example]:
    """At most `_PREDICTED_ROWS` of `rows` for each element that is not `known`."""
    chosen: dict[int, Example] = {}
    for element in set().union(*(row.graph.atomic_numbers.tolist() for row in rows)) - known:
        places = [place for place, row in enumerate(rows) if element in row.graph.atomic_numbers]
        chosen |= {place: rows[place] for place in places[:: ceil(len(places) / _PREDICTED_ROWS)]}
    return list(chosen.values())


# Parts of E that a checkpoint may lack, and that training can add to it.
_TERMS = ("torsion_terms", "out_of_plane_terms")
# Heads that add nothing at first have zeros here only; zeros in both layers would never leave zero.
_OUTPUTS_OF_HEADS = tuple(
    f"energy_decoder.{name}." for name in ("mlp.down", "torsions.weights", "out_of_plane.weights")
)
# What has a part per level of theory, those of one level after those of the other.
_PARTS_OF_LEVELS = (*_OUTPUTS_OF_HEADS, "energy_decoder.mlp.up.", "energy_decoder.reference_energies.")


@torch.no_grad()
def with_terms(model: PCBridgeModel, names: set[str]) -> PCBridgeModel:
    """The same model with the parts of E that the fields `names` of its config stand for; they add nothing at first."""
    if not names:
        return model
    config, state = copy.deepcopy(model.config), model.state_dict()
    for name in names:
        setattr(config, name, True)
    extended = PCBridgeModel(config).to(model.dtype)
    extended.load_state_dict(state, strict=False)
    for name, parameter in extended.named_parameters():
        if name not in state and name.startswith(_OUTPUTS_OF_HEADS):
            parameter.zero_()
    return extended


def with_level_differences(model: PCBridgeModel) -> PCBridgeModel:
    """The same model with E at all levels as at the last, until training learns the differences (`level_differences`).

    Heads that were apart from the last one are lost, and so are their reference energies.
    """
    levels = model.config.energy_levels_of_theory
    last = with_levels_of_theory(model, levels[-1:])
    last.config.level_differences = True  # of one level there is none
    return with_levels_of_theory(last, levels)


@torch.no_grad()
def with_levels_of_theory(model: PCBridgeModel, levels: list[str]) -> PCBridgeModel:
    """The same model with heads for `levels`; those it has keep theirs, others start from a copy of its first.

    Raises:
        InputError: by `config.level_differences` the last of `levels` is what the others add to, and it is known as
            one that adds to another.
    """
    known = model.config.energy_levels_of_theory
    if levels == known:
        return model
    config = copy.deepcopy(model.config)
    places = [known.index(level) if level in known else 0 for level in levels]
    adds_nothing = [False] * len(levels)
    if config.level_differences:
        if levels[-1] in known[:-1]:
            raise InputError(
                f"energy_levels_of_theory: the checkpoint knows {levels[-1]} as {known[-1]} and a difference, so "
                f"{known[-1]}, or a level that is new to it, has to stay the last, not {levels[-1]}"
            )
        base = len(known) - 1
        places[-1] = base
        adds_nothing[:-1] = [place == base for place in places[:-1]]
    config.energy_levels_of_theory = levels
    extended = PCBridgeModel(config).to(model.dtype)
    state = model.state_dict()
    for name in extended.state_dict():
        if name.startswith(_PARTS_OF_LEVELS):
            parts = state[name].unflatten(0, (len(known), -1))[places]
            if name.startswith(_OUTPUTS_OF_HEADS):
                parts[adds_nothing] = 0.0
            state[name] = parts.flatten(0, 1)
    extended.load_state_dict(state)
    for index, level in enumerate(levels):
        if level not in known:
            extended.energy_decoder.reference_energies.by_level[index] = 0.0
    return extended
