"""PCBridge: equilibrium structures, energies and forces of molecules (Ren et al., NeurIPS 2024)."""

from .configuration_pcbridge import PCBridgeConfig
from .losses import LossSettings
from .modeling_pcbridge import PCBridgeModel, PCBridgeOutput, StructureOutput

__all__ = ["LossSettings", "PCBridgeConfig", "PCBridgeModel", "PCBridgeOutput", "StructureOutput"]
