"""Forward and backward passes of a GPU captured once per shape of a batch and replayed, so that it waits for no host.

An update launches thousands of small kernels, one after another, and takes as long to launch as the GPU takes for
several; a CUDA graph launches them all at once.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_pcbridge.loss_terms import LabelRows

logger = logging.getLogger(__name__)

# A shape is captured when it comes for the third time: rare ones never are, and all that is made only once, is.
_EAGER_RUNS = 2

# What is captured: adds gradients to those of the parameters, and returns what is to be known of the losses.
Passes = Callable[[dict, dict[str, Tensor], torch.Generator], Tensor]


class _Captured(NamedTuple):
    """A CUDA graph, what it reads, and the tensor that it writes beside the gradients."""

    graph: torch.cuda.CUDAGraph
    generator: torch.Generator
    inputs: list[Tensor]
    output: Tensor


class CapturedPasses:
    """`passes` in CUDA graphs; gradients have to stay where they are between updates, `zero_grad(set_to_none=False)`.

    Args:
        passes: forward and backward passes of a batch (of `PCBridgeModel.forward`), with the counts of labels and the
            generator of the noise. May not wait for the GPU.
        device: a GPU.
    """

    def __init__(self, passes: Passes, device: torch.device):
        self.passes = passes
        self.device = device
        self.generator = torch.Generator(device)
        self.seen: Counter[Hashable] = Counter()
        # None where capture failed.
        self.captured: dict[Hashable, _Captured | None] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: dict, counts: dict[str, Tensor], seed: int) -> Tensor:
        """What `passes` returns, with the noise of `seed`; not to be kept beyond the next call."""
        rows: LabelRows = batch["label_rows"]
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        key = (tuple(tensor.shape for tensor in tensors.values()), str(rows))
        self.seen[key] += 1
        if self.seen[key] > _EAGER_RUNS and key not in self.captured:
            self.captured[key] = self._capture_if_possible(tensors, rows, counts)
        captured = self.captured.get(key)
        if captured is None:
            self.generator.manual_seed(seed)
            return self.passes(batch, counts, self.generator)
        captured.generator.manual_seed(seed)
        for place, tensor in zip(captured.inputs, [*tensors.values(), *counts.values()], strict=True):
            place.copy_(tensor, non_blocking=True)
        captured.graph.replay()
        return captured.output

    def _capture_if_possible(
        self, tensors: dict[str, Tensor], rows: LabelRows, counts: dict[str, Tensor]
    ) -> _Captured | None:
        """None, with a warning, where the passes have an operation that cannot be captured: they still can be run."""
        try:
            return self._capture(tensors, rows, counts)
        except RuntimeError as error:
            logger.warning(
                "batches of %d molecules of up to %d atoms are not captured as a CUDA graph and take longer: %s",
                *tensors["positions"].shape[:2],
                str(error).splitlines()[0],
            )
            return None

    def _capture(self, tensors: dict[str, Tensor], rows: LabelRows, counts: dict[str, Tensor]) -> _Captured:
        batch = {name: tensor.clone() for name, tensor in tensors.items()}
        of_counts = {name: tensor.clone() for name, tensor in counts.items()}
        graph, generator = torch.cuda.CUDAGraph(), torch.Generator(self.device)
        graph.register_generator_state(generator)
        # The inner one leaves its stream behind if it fails. Threads beside this one, which pin batches, may go on.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"),
        ):
            output = self.passes({**batch, "label_rows": rows}, of_counts, generator)
        return _Captured(graph, generator, [*batch.values(), *of_counts.values()], output)
