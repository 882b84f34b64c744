"""What the package exports, made known to transformers' Auto classes and pipelines."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_pcbridge import PCBridgeConfig
from .losses import LossSettings
from .modeling_pcbridge import PCBridgeModel
from .outputs import PCBridgeOutput, StructureOutput
from .pipeline_pcbridge import PCBridgePipeline
from .processing_pcbridge import PCBridgeProcessor

AutoConfig.register("pcbridge", PCBridgeConfig)
AutoModel.register(PCBridgeConfig, PCBridgeModel)
AutoProcessor.register(PCBridgeConfig, PCBridgeProcessor)

__all__ = [
    "LossSettings",
    "PCBridgeConfig",
    "PCBridgeModel",
    "PCBridgeOutput",
    "PCBridgePipeline",
    "PCBridgeProcessor",
    "StructureOutput",
]
