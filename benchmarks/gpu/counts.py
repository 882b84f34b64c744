"""What a computation asks of a device, counted on CPU tensors: launches, floating-point operations, bytes.

Every operation of PyTorch that is no view and makes no empty tensor is one launch of a kernel (a sum over much may take
two), so their number is what the host has to hand to a GPU. Bytes are those of all tensors that operations read and
write: an upper bound, since a cache keeps some of them from one operation to the next.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that launch nothing although they are no views: what only makes room, or notes something.
_NOTHING = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "_reshape_alias", "detach", "lift_fresh"),
    *("_record_function_enter_new", "_record_function_exit"),
}


@dataclass
class Counts:
    """What one call of a function did.

    Attributes:
        launches: by the name of the operation.
        flops: of matrix products; a multiplication and an addition are two.
        moved: bytes.
    """

    launches: Counter[str] = field(default_factory=Counter)
    flops: int = 0
    moved: int = 0


class _Counting(TorchDispatchMode):
    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _NOTHING:
            self.counts.launches[name] += 1
            self.counts.flops += _flops(name, args)
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.counts.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count(function: Callable[[], object]) -> Counts:
    """What one call does, backward passes within it included; its tensors must be on the CPU."""
    counts = Counts()
    # The backward pass in this thread, where the counting is.
    with _Counting(counts), torch.autograd.set_multithreading_enabled(False):
        function()
    return counts


def _flops(name: str, args: tuple) -> int:
    if name in ("mm", "bmm"):
        first, second = args[:2]
    elif name in ("addmm", "baddbmm"):
        first, second = args[1:3]
    else:
        return 0
    return 2 * first.numel() * second.shape[-1]
