"""Text files as people have them: UTF-8 with or without a byte order mark, and now and then bytes that are neither."""

import codecs
import gzip
import io
from pathlib import Path
from typing import IO, Any, TextIO, cast

_GZIP = b"\x1f\x8b"
REPLACED = "\ufffd"
REPLACED_NOTE = f"bytes that are not UTF-8 were read as {REPLACED}"


def open_binary(path: Path | str) -> IO[bytes]:
    """The file for reading, unpacked where its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path) if str(path).lower().endswith(".gz") else open(path, "rb"))


def open_text(path: Path | str) -> TextIO:
    """`open_binary` as text; what is not UTF-8 is replaced, so that one record cannot end the reading."""
    return as_text(open_binary(path))


def as_text(file: IO[bytes]) -> TextIO:
    """A binary stream read as `open_text` does; line breaks stay as they are, as `csv` asks. UTF-16 has a mark."""
    beginning, file = _beginning(file)
    encoding = "utf-16" if beginning in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="")


def unpacked(file: IO[bytes]) -> IO[bytes]:
    """A binary stream, of which no name tells whether it is packed by gzip."""
    beginning, file = _beginning(file)
    return cast(IO[bytes], gzip.open(file)) if beginning == _GZIP else file


def _beginning(file: IO[bytes]) -> tuple[bytes, io.BufferedReader]:
    """Two bytes, and the stream from its beginning on."""
    buffered = cast(Any, file if hasattr(file, "peek") else io.BufferedReader(cast(Any, file)))
    return buffered.peek(2)[:2], buffered
