"""SIGTERM, as a scheduler sends it before it takes the machine away, as a request that training answers in time."""

import multiprocessing
import signal
import threading
from contextlib import contextmanager, suppress


class TrainingInterrupted(Exception):
    """Training stopped on request after it saved its state."""


@contextmanager
def no_process_left():
    """Kills at its end the processes started within and still there, such as those of a loader that has failed.

    Python itself would end them by SIGTERM, which they do not heed, and wait for them for ever.
    """
    before = multiprocessing.active_children()
    try:
        yield
    finally:
        for process in multiprocessing.active_children():
            if process not in before:
                with suppress(RuntimeError):  # torch raises one in this process when a worker is killed
                    process.kill()
                    process.join()


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
