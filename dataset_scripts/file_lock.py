"""One process at a time writes to an output."""

from typing import IO

from modeling_pcbridge.errors import InputError

try:
    import fcntl
except ImportError as error:
    raise ImportError("going on with an output needs Linux or macOS: it is locked with fcntl") from error


def lock(file: IO | int, name: object) -> None:
    """Make an open file or folder, a descriptor of it for instance, ours until it is closed.

    Raises:
        InputError: another process has it; `name` says which it is.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another process is writing to {name}") from error
