"""What a command says of an error that its user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_pcbridge.errors import PCBridgeError


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Ends the command with exit code 1 and the message of an error that its user can mend.

    That is one that this project raised, an unusable file, or a program or package that is missing. Errors from
    inside other libraries keep their traceback: they are more likely defects than wrong input.
    """
    try:
        yield
    except (OSError, ImportError, PCBridgeError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(1)
