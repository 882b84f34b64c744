"""What a command says of an error that its user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGES = ("modeling_pcbridge", "dataset_scripts", "pcbridge")


@contextmanager
def errors_as_sentences(program: str) -> Iterator[None]:
    """Ends the program with the message of an error that this project raised, or of a file that cannot be used.

    Errors from inside other libraries keep their traceback: they are more likely defects than wrong input.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if not isinstance(error, OSError) and not _is_ours(error):
            raise
        sys.exit(f"{program}: {error}")


def _is_ours(error: Exception) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals["__name__"].split(".")[0] in _PACKAGES
