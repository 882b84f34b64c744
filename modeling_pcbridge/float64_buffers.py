"""Buffers that keep float64 when the model is cast to a lower precision."""

from torch import nn


class Float64Buffers(nn.Module):
    """A module whose buffers follow `.to(device)` but ignore `.to(dtype)`, `.half()` and `.bfloat16()`.

    Total energies of 10^4 eV and 1 - abar_t of 10^-4 do not survive bfloat16, and casting back does not restore them.
    """

    def _apply(self, fn, recurse=True):
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and not buffer.is_meta}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(getattr(self, name).device)
        return self
