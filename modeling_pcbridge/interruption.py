"""SIGTERM, as a scheduler sends it before it takes the machine away, as a request that training answers in time."""

import signal
import threading


class TrainingInterrupted(Exception):
    """Training stopped on request after it saved its state."""


class StopRequest:
    """Within the context, SIGTERM sets `received` instead of killing the process; in the main thread only."""

    def __init__(self):
        self.received = False
        self._previous = None

    def __enter__(self) -> "StopRequest":
        # Python lets no other thread set handlers; a run in one (a notebook's, say) goes without.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number, frame) -> None:
        self.received = True
