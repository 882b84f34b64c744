"""How PCBridge models get their weights: initialised, or loaded from safetensors that fit."""

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_pcbridge import PCBridgeConfig
from .diffusion import DiffusionSchedule
from .energy_decoder import ReferenceEnergies
from .errors import InputError
from .pair_features import PairFeatures, PairProjection
from .structure_decoder import StructureDecoder

# Ratio of the last layer's initial weights to the others': the untrained model starts close to the reference
# energies and to the preconditioned input.
_OUTPUT_INIT_SCALE = 0.1


class PCBridgePreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading shared by PCBridge models."""

    config_class = PCBridgeConfig
    base_model_prefix = "pcbridge"
    main_input_name = "atomic_numbers"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but from safetensors only, and weights that are not those of this model are refused.

        Raises:
            ValueError: the weights are damaged, missing, left over, of another shape than the config says, or not
                finite.
            OSError: there is no `model.safetensors`. Pickled weights are never read.
        """
        # transformers initialises at random what is missing and only logs it; here it is collected and refused.
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise InputError(f"the weights of {pretrained_model_name_or_path} are damaged: {error}") from error
        wrong = {
            "are missing": sorted(info["missing_keys"]),
            "are not of this model": sorted(info["unexpected_keys"]),
            "have another shape than the config says": sorted(name for name, *_ in info["mismatched_keys"]),
            "are not finite": [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()],
        }
        reasons = [f"{names[0]} ({len(names)} in all) {reason}" for reason, names in wrong.items() if names]
        if reasons:
            raise InputError(f"the weights of {pretrained_model_name_or_path} do not fit: {'; '.join(reasons)}")
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        # `use_safetensors` does not look at the files that the index of a sharded checkpoint names.
        for file in checkpoint_files or ():
            if not str(file).endswith(".safetensors"):
                raise OSError(f"{file} is not a safetensors file; pickled weights are not read")
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PairFeatures):
            module.init_parameters()
        elif isinstance(module, PairProjection):
            module.init_parameters(std)
        elif isinstance(module, DiffusionSchedule):
            init.copy_(module.alphas_cumprod, module.compute_alphas_cumprod())
        elif isinstance(module, ReferenceEnergies):
            init.zeros_(module.energies)
        elif isinstance(module, StructureDecoder):
            init.normal_(module.displacement.weight, mean=0.0, std=std * _OUTPUT_INIT_SCALE)
