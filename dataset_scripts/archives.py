"""Compressed tar archives read member by member, in constant memory and without writing anything to disk."""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from dataset_scripts.bad_rows import BadRowError
from modeling_pcbridge.errors import InputError

# The file of one molecule is a few kilobytes; a member above this is a decompression bomb or something else.
MAX_MOLECULE_BYTES = 64 * 2**20

# Unlike tarfile's own decompression, these notice a stream that is cut short.
_OPEN: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".xz": lzma.open, ".gz": gzip.open}


def iterate_members(
    path: Path, suffix: str, max_bytes: int | None = MAX_MOLECULE_BYTES
) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each regular file of a .tar.gz, .tar.bz2 or .tar.xz whose name ends in `suffix`.

    A member has to be read before the next is asked for. Names are only passed on, never used as paths.

    Raises:
        BadRowError: the archive is damaged or cut short, a member has an absolute or `..` path or is larger than
            `max_bytes`. What comes after cannot be trusted, so the iteration ends.
        ValueError: another compression.
    """
    if path.suffix not in _OPEN:
        raise InputError(f"{path}: not a {', '.join('.tar' + ending for ending in _OPEN)} archive")
    try:
        with _OPEN[path.suffix](path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise BadRowError(str(path), "unsafe path in the archive", member.name)
                if max_bytes is not None and member.size > max_bytes:
                    raise BadRowError(
                        str(path), "oversized member in the archive", f"{member.name}, {member.size} bytes"
                    )
                if member.isfile() and member.name.endswith(suffix):
                    yield member.name, cast(IO[bytes], archive.extractfile(member))
            while stream.read(2**20):  # to the end: a cut may lie behind the last member
                pass
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise BadRowError(str(path), "damaged archive", error) from error
