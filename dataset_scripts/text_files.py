"""Text files as people have them: UTF-8 with or without a byte order mark, and now and then bytes that are neither."""

import io
from pathlib import Path
from typing import IO, TextIO

REPLACED = "\ufffd"
REPLACED_NOTE = f"bytes that are not UTF-8 were read as {REPLACED}"


def open_text(path: Path | str) -> TextIO:
    """The file for reading; what is not UTF-8 is replaced, so that one record cannot end the reading."""
    return as_text(open(path, "rb"))


def as_text(file: IO[bytes]) -> TextIO:
    """A binary stream read as `open_text` does; line breaks stay as they are, as `csv` asks."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
