"""Extended xyz files frame by frame, in constant memory."""

import io
import re
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

from dataset_scripts.archives import MAX_MOLECULE_BYTES
from dataset_scripts.bad_rows import BadRowError, naming


def read_xyz(file: IO[str], name: str) -> Iterator[str]:
    """The frames of an xyz file as texts; what is wrong inside a frame does not end the reading.

    Raises:
        BadRowError: a frame does not begin with its number of atoms, is cut short or oversized: where the next one
            begins is not known then.
    """
    number = 0
    file_lines = iter(partial(file.readline, MAX_MOLECULE_BYTES), "")
    for line in file_lines:
        if not line.strip():
            continue
        number += 1
        if not line.strip().isdecimal():
            raise BadRowError(f"{name}, structure {number}", "no number of atoms", repr(line.strip()[:40]))
        lines, size = [line], 0
        for line in file_lines:
            lines.append(line)
            size += len(line)
            if len(lines) == int(lines[0]) + 2 or size > MAX_MOLECULE_BYTES:
                break
        if size > MAX_MOLECULE_BYTES:
            raise BadRowError(f"{name}, structure {number}", "oversized structure")
        if len(lines) < int(lines[0]) + 2:
            raise BadRowError(f"{name}, structure {number}", "cut short", f"{len(lines)} of {int(lines[0]) + 2} lines")
        yield "".join(lines)


def text_of_frame(frame: str, key: str) -> str:
    """What the comment line says for a key, "" if nothing. ASE makes a number of 007 and a bool of the SMILES F."""
    match = re.search(rf'(?:^|\s){re.escape(key)}=(?:"((?:[^"\\]|\\.)*)"|(\S+))', comment_of_frame(frame))
    if match is None:
        return ""
    quoted, bare = match.groups()
    # The backslash of a SMILES is no escape.
    return bare if quoted is None else quoted.replace(r"\"", '"')


def comment_of_frame(frame: str) -> str:
    """The second line."""
    return frame.split("\n", 2)[1].strip()


def atoms_of_frame(name: str, frame: str) -> Any:
    """The `ase.Atoms` of one frame, with whole charge in `info`.

    Raises:
        BadRowError: ASE cannot read it, or its charge is no whole number.
    """
    import ase.io

    with naming(name):
        atoms: Any = ase.io.read(io.StringIO(frame), format="extxyz")
    charge = atoms.info.get("charge", 0)
    try:
        atoms.info["charge"] = int(charge)
    except (TypeError, ValueError, OverflowError):
        atoms.info["charge"] = None
    if atoms.info["charge"] != charge:
        raise BadRowError(name, "the charge is no whole number", charge)
    return atoms
