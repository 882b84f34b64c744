"""What a command says of an error that its user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from modeling_pcbridge.errors import PCBridgeError


@contextmanager
def errors_as_sentences(program: str) -> Iterator[None]:
    """Ends the program with the message of an error that this project raised, or of a file that cannot be used.

    Errors from inside other libraries keep their traceback: they are more likely defects than wrong input.
    """
    try:
        yield
    except (OSError, PCBridgeError) as error:
        sys.exit(f"{program}: {error}")
