"""FSDP2: weights, gradients, optimiser moments and averages spread over the processes.

The whole model is one unit: forces are a backward pass inside the forward one, which the hooks of smaller units do not
expect. `gathered` says when its parameters are whole, so that processes may compute different numbers of batches.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, accelerator: Accelerator) -> None:
    """Leave each process its part of every parameter of `module`; in place, and for good.

    What trains which parameter has to be the same on all processes. It is: the collator leaves every loss a row.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    fully_shard(module, mesh=mesh, reshard_after_forward=False).set_reshard_after_backward(False)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within the context the parameters of `module` are whole; every process has to enter. No-op if not sharded."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """`tensor` gathered from all processes, all of which have to call; itself if it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process has, as a view; itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, target: Tensor) -> Tensor:
    """The part of `tensor`, which every process has whole, that belongs to this one if `target` is sharded."""
    if not isinstance(target, DTensor) or tensor.shape != target.shape:
        return tensor
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
