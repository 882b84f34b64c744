"""The model that a run begins with, new or of a checkpoint: a head and reference energies for each level of theory."""

import copy
import logging

import torch

from modeling_pcbridge.configuration_pcbridge import PCBridgeConfig
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from modeling_pcbridge.training_coverage import TrainingCoverage
from pcbridge.training.config import TrainingConfig
from pcbridge.training.data import TrainingData, reference_energies_of, sample_rows

logger = logging.getLogger(__name__)

# Reference energies are fitted to this many rows of each source.
_REFERENCE_ROWS = 10_000


def initial_model(config: TrainingConfig) -> tuple[PCBridgeModel, TrainingData]:
    """The model of `init_from`, or a new one, and its data; levels that are new have reference energies fitted to it.

    Raises:
        InputError: no training row has an energy at a new level of theory, or `model` differs from that of `init_from`.
    """
    known: list[str] = []
    if config.init_from is None:
        nothing = {"has_learned_forces": False, "training_coverage": TrainingCoverage().to_json()}
        model = PCBridgeModel(PCBridgeConfig.from_preset(config.preset, **config.model, **nothing))
    else:
        model = PCBridgeModel.from_pretrained(config.init_from)
        known = model.config.energy_levels_of_theory
        changed = {key for key, value in config.model.items() if getattr(model.config, key, None) != value}
        new_terms = {key for key in changed & set(_TERMS) if config.model[key] is True}
        if differing := sorted(changed - new_terms - {"energy_levels_of_theory"}):
            raise InputError(
                f"model: {', '.join(differing)} of {config.init_from} cannot be changed; of a checkpoint that training "
                f"goes on from, only energy_levels_of_theory can, and {' and '.join(_TERMS)} can be added"
            )
        model = with_terms(model, new_terms)
        model = with_levels_of_theory(model, config.model.get("energy_levels_of_theory", known))
    data = TrainingData(config, model)
    for index, level in enumerate(model.config.energy_levels_of_theory):
        if level not in known:
            _fit_references(model, data, config, index)
    return model, data


def _fit_references(model: PCBridgeModel, data: TrainingData, config: TrainingConfig, index: int) -> None:
    level = model.config.energy_levels_of_theory[index]
    sources = data.examples(config.sources, "train")
    rows = [row for source in sources for row in sample_rows(source, _REFERENCE_ROWS)]
    references = reference_energies_of(rows, index)
    if not references:
        raise InputError(f"no training row has an energy at {level}, so its reference energies cannot be fitted")
    for atomic_number, energy in references.items():
        model.energy_decoder.reference_energies.by_level[index, atomic_number] = energy
    missing = sorted(set().union(*(source.elements for source in sources)) - set(references))
    if missing:
        logger.warning(
            "no energy at %s among %d rows of each source has atomic numbers %s, so total energies of molecules with "
            "them will be far off",
            level,
            _REFERENCE_ROWS,
            missing,
        )


# Parts of E that a checkpoint may lack, and that training can add to it.
_TERMS = ("torsion_terms", "out_of_plane_terms")
# Heads that add nothing at first have zeros here only; zeros in both layers would never leave zero.
_OUTPUTS_OF_HEADS = tuple(
    f"energy_decoder.{name}." for name in ("mlp.down", "torsions.weights", "out_of_plane.weights")
)


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
    for name, tensor in extended.energy_decoder.state_dict(prefix="energy_decoder.").items():
        if tensor.shape != state[name].shape:  # a part per level
            parts = state[name].unflatten(0, (len(known), -1))[places]
            if name.startswith(_OUTPUTS_OF_HEADS):
                parts[adds_nothing] = 0.0
            state[name] = parts.flatten(0, 1)
    extended.load_state_dict(state)
    for index, level in enumerate(levels):
        if level not in known:
            extended.energy_decoder.reference_energies.by_level[index] = 0.0
    return extended
