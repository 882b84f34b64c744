"""Errors that a person can mend, told apart from defects by their common base; and checks of settings."""

from typing import Any, Literal, get_args, get_origin, get_type_hints


class PCBridgeError(Exception):
    """What this project raises about what it was given; commands print its message without a traceback."""


class InputError(PCBridgeError, ValueError):
    """A molecule, a file, a setting or a tensor is not what it has to be."""


class CalculationError(PCBridgeError, RuntimeError):
    """A calculation or a run could not be done with sound input; the message says why."""


def require(is_right: bool, name: str, what: str, value: object) -> None:
    """Raises InputError that says what `name` must be, unless it `is_right`."""
    if not is_right:
        raise InputError(f"{name} must be {what}, not {value}")


def require_choices(settings: Any) -> None:
    """Raises InputError where a field of a dataclass is not among the choices of its `Literal` annotation."""
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal:
            value, choices = getattr(settings, name), get_args(hint)
            require(value in choices, name, f"one of {', '.join(map(repr, choices))}", repr(value))
