"""DeepSpeed's ZeRO 1: the moments of Adam spread over the processes, behind the interface of any optimiser.

Weights and gradients stay whole on every process; gradients are averaged here (`average_gradients`) once per update.
So processes may compute different numbers of batches, and norms, clipping, dropped updates and training states are
those of every other run; DeepSpeed only steps. ZeRO 2 and 3 reduce at every backward pass, which excludes that.
"""

import torch
import torch.distributed
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

_MOMENTS = ("exp_avg", "exp_avg_sq")


def average_gradients(module: torch.nn.Module) -> None:
    """Mean over processes of all gradients, in place.

    What trains which parameter has to be the same on all processes. It is: the collator leaves every loss a row.
    """
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = parameters_to_vector(gradients)
    torch.distributed.all_reduce(flat)
    vector_to_parameters(flat / torch.distributed.get_world_size(), gradients)


class ZeroOptimizer(torch.optim.Optimizer):
    """`adam` over the parameters of `model` with its moments, and a float32 copy of the weights, spread by DeepSpeed.

    Args:
        model: called as before; its weights are changed in place from here on.
        adam: an optimiser with the moments of Adam over all parameters of `model`, in one group.
    """

    def __init__(self, model: torch.nn.Module, adam: torch.optim.Optimizer):
        import deepspeed

        super().__init__(adam.param_groups[0]["params"], {"lr": adam.param_groups[0]["lr"]})
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=model,
            optimizer=adam,
            config={
                "train_micro_batch_size_per_gpu": 1,  # it wants a number and makes no use of it
                "zero_optimization": {"stage": 1},
                "zero_allow_untested_optimizer": True,  # torch's Adam
                "gradient_clipping": 0.0,  # done before
            },
        )
        self._engine.set_gradient_accumulation_boundary(True)

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """One update by the gradients, which have to be the same on all processes; leaves none behind."""
        for group in self._zero.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self._engine.allreduce_gradients()  # hands each process its part
        self._engine.step()

    def state_dict(self) -> dict:
        """As of `adam` before it was spread; all processes have to call."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Tensor]] = {}
        for flat in self._zero.optimizer.state.values():
            for index, parameter in enumerate(self.param_groups[0]["params"]):
                moments = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
                state[index] = {"step": flat["step"].clone(), **moments}
        return {"state": state, "param_groups": [{"lr": self.param_groups[0]["lr"]}]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Take up the moments of `state_dict`, and the weights that the model has now."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.refresh_fp32_params()
        parameters = self.param_groups[0]["params"]
        # The moments are there from the first step on, so one that moves nothing.
        learning_rate, self.param_groups[0]["lr"] = self.param_groups[0]["lr"], 0.0
        with torch.enable_grad():
            sum(0.0 * parameter.sum() for parameter in parameters).backward()
        self.step()
        self.param_groups[0]["lr"] = learning_rate
        for index, moments in state_dict["state"].items():
            for key in _MOMENTS:
                safe_set_full_optimizer_state(parameters[index], moments[key].to(parameters[index].device), key)
            for flat in self._zero.optimizer.state.values():
                flat["step"].copy_(moments["step"])
