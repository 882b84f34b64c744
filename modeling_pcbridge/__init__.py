"""PCBridge: equilibrium structures, energies and forces of molecules (Ren et al., NeurIPS 2024)."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_pcbridge import PCBridgeConfig
from .losses import LossSettings
from .modeling_pcbridge import PCBridgeModel, PCBridgeOutput, StructureOutput
from .pipeline_pcbridge import PCBridgePipeline
from .processing_pcbridge import PCBridgeProcessor

AutoConfig.register("pcbridge", PCBridgeConfig)
AutoModel.register(PCBridgeConfig, PCBridgeModel)
AutoProcessor.register(PCBridgeConfig, PCBridgeProcessor)
# Saved checkpoints carry this code, so that trust_remote_code=True loads them without the package.
PCBridgeConfig.register_for_auto_class()
PCBridgeModel.register_for_auto_class("AutoModel")
PCBridgeProcessor.register_for_auto_class()

__all__ = [
    "LossSettings",
    "PCBridgeConfig",
    "PCBridgeModel",
    "PCBridgeOutput",
    "PCBridgePipeline",
    "PCBridgeProcessor",
    "StructureOutput",
]
