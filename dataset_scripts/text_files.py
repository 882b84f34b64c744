"""Text files as people have them: UTF-8 with or without a byte order mark, and now and then bytes that are neither."""

import gzip
import io
from pathlib import Path
from typing import IO, TextIO, cast

REPLACED = "\ufffd"
REPLACED_NOTE = f"bytes that are not UTF-8 were read as {REPLACED}"


def open_binary(path: Path | str) -> IO[bytes]:
    """The file for reading, unpacked where its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path) if str(path).lower().endswith(".gz") else open(path, "rb"))


def open_text(path: Path | str) -> TextIO:
    """`open_binary` as text; what is not UTF-8 is replaced, so that one record cannot end the reading."""
    return as_text(open_binary(path))


def as_text(file: IO[bytes]) -> TextIO:
    """A binary stream read as `open_text` does; line breaks stay as they are, as `csv` asks."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
