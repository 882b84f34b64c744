"""PCBridge: equilibrium structures, energies and forces of molecules (Ren et al., NeurIPS 2024)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auto_classes import (
        LossSettings,
        PCBridgeConfig,
        PCBridgeModel,
        PCBridgeOutput,
        PCBridgePipeline,
        PCBridgeProcessor,
        StructureOutput,
    )

__all__ = [
    "LossSettings",
    "PCBridgeConfig",
    "PCBridgeModel",
    "PCBridgeOutput",
    "PCBridgePipeline",
    "PCBridgeProcessor",
    "StructureOutput",
]


def __getattr__(name: str) -> Any:
    """Import the public names with the first of them that is used: torch and transformers take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".auto_classes", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
