"""What the page says of its model."""

from collections.abc import Iterable

from rdkit import Chem

from modeling_pcbridge import PCBridgeConfig

_UNKNOWN = "the model does not say"


def about_model(name: str, config: PCBridgeConfig) -> dict:
    """The model's name and facts (term, text) of its configuration, for JSON."""
    own, *others = dict.fromkeys([config.energy_level_of_theory, *config.energy_levels_of_theory])
    levels = f"{own}, which is shown; it also knows {', '.join(others)}" if others else own
    table = Chem.GetPeriodicTable()
    charges, coverage = config.supported_total_charges, config.coverage
    forces = {True: "learned", False: "not learned: gradients of the energy, no forces", None: _UNKNOWN}
    trained_on = _UNKNOWN
    if coverage is not None:
        trained_on = (
            f"{_molecules('structures', coverage.largest_structure)}; "
            f"{_molecules('energies or forces', coverage.largest_labelled)}, with "
            f"{len(coverage.labelled_environments):,} different surroundings of heavy atoms; "
            f"total charges {_signed(coverage.total_charges)}"
        )
    facts = {
        "Level of theory": levels,
        "Elements": ", ".join(table.GetElementSymbol(number) for number in config.supported_elements),
        "Total charges": _UNKNOWN if charges is None else f"{_signed(charges)}; others are refused",
        "Forces": forces[config.has_learned_forces],
        "Trained on": trained_on,
    }
    return {"name": name, "facts": list(facts.items())}


def _molecules(what: str, largest: int) -> str:
    return f"{what} of molecules of up to {largest} heavy atoms" if largest else f"no {what}"


def _signed(charges: Iterable[int]) -> str:
    return ", ".join(f"{charge:+d}" if charge else "0" for charge in sorted(charges))
