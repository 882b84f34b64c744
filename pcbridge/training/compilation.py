"""Running the model's functions through torch.compile."""

import logging
from contextlib import contextmanager

import torch

from modeling_pcbridge.errors import CalculationError
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel

logger = logging.getLogger(__name__)


@contextmanager
def compiled(model: PCBridgeModel):
    """Within the context the model's E, with its gradient and without, and its S run through `torch.compile`.

    Where nothing can be compiled (no C++ compiler, for instance) the model stays as it is, and a warning says why.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2))
        if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            raise CalculationError(f"torch {torch.__version__} cannot compile torch.autograd.grad; take a newer one")
    except Exception as error:  # whatever the compiler chokes on, training can go on
        logger.warning("compile: going on without torch.compile, because %s", str(error).strip().splitlines()[0])
        yield
        return
    functions = ("interaction_energy", "interaction_energy_and_gradient", "denoise")
    for name in functions:
        setattr(model, name, torch.compile(getattr(model, name), dynamic=True))
    try:
        # Lets the compiler follow torch.autograd.grad, so that forces and their loss become one graph.
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            yield
    finally:
        for name in functions:
            delattr(model, name)
