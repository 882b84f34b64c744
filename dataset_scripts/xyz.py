"""Plain and extended xyz files frame by frame, in constant memory, in the dialects that programs write.

Elements are symbols, numbers or labels such as C1; D and T are hydrogen. Blank lines and the `>` lines of ORCA may
stand between frames, and the lines that QM9's own files have below the atoms are passed over.

The total charge is what follows the word `charge` or `total_charge` in the comment line: `charge=-1`, `charge: -1` or
`charge -1`. The word without a number is a remark; without it the charge is 0.
"""

import io
import re
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

import numpy as np
from rdkit import Chem

from dataset_scripts.archives import MAX_MOLECULE_BYTES
from dataset_scripts.bad_rows import BadRowError, naming
from modeling_pcbridge.extras import require_extra

_QM9_COMMENT, _QM9_LINES_BELOW = "gdb", 3
_ATOMIC_NUMBERS = {Chem.GetPeriodicTable().GetElementSymbol(z): z for z in range(1, 119)}
_CHARGE_GIVEN = re.compile(r'(?:^|\s)(?:total_)?charge\s*=\s*("[^"]*"|\S+)', re.IGNORECASE)
_CHARGE_SAID = re.compile(r"(?:^|\s)(?:total_)?charge[:\s]\s*([+-]?\d\S*)", re.IGNORECASE)

_NOT_PERIODIC = re.compile(r'(?:^|\s)pbc\s*=\s*"?\[?(?:(?:F(?:alse)?|0)[\s,]*){3}', re.IGNORECASE)


def read_xyz(file: IO[str], name: str) -> Iterator[str]:
    """The frames of an xyz file as texts; what is wrong inside a frame does not end the reading.

    Raises:
        BadRowError: a frame does not begin with its number of atoms, is cut short or oversized: where the next one
            begins is not known then.
    """
    number = 0
    file_lines = iter(partial(file.readline, MAX_MOLECULE_BYTES), "")
    for line in file_lines:
        if line.strip() in ("", ">"):
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
        frame = "".join(line.rstrip("\r\n") + "\n" for line in lines)
        if is_qm9_record(frame):
            for _ in range(_QM9_LINES_BELOW):
                next(file_lines, None)
        yield frame


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


def is_qm9_record(frame: str) -> bool:
    """Whether it is of a file as QM9 itself has them, with properties in the comment line."""
    return comment_of_frame(frame).startswith(_QM9_COMMENT)


def charge_of_frame(name: str, frame: str) -> int:
    """The total charge that the comment line states, in elementary charges; 0 if none.

    Raises:
        BadRowError: it is no whole number, or there are two.
    """
    comment = comment_of_frame(frame)
    said = {text.strip('"') for text in _CHARGE_GIVEN.findall(comment) or _CHARGE_SAID.findall(comment)}
    charges = set()
    for text in said:
        try:
            number = float(text.rstrip(",;"))
        except ValueError:
            number = float("nan")
        if not number.is_integer():
            raise BadRowError(name, "the charge is no whole number", text)
        charges.add(int(number))
    if len(charges) > 1:
        raise BadRowError(name, "two total charges", ", ".join(map(str, sorted(charges))))
    return charges.pop() if charges else 0


def atoms_of_frame(name: str, frame: str) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (N,) and positions (N, 3), angstrom, of one frame.

    Raises:
        BadRowError: a line has no element or no position, or the structure is periodic.
    """
    lines = frame.splitlines()
    if re.search(r"(?:^|\s)Lattice\s*=", lines[1]) and not _NOT_PERIODIC.search(lines[1]):
        raise BadRowError(name, "it is periodic (Lattice); PCBridge describes single molecules in vacuum")
    element_column, position_column = _columns(lines[1])
    numbers, positions = [], []
    for line in lines[2 : int(lines[0]) + 2]:
        fields = line.split()
        with naming(name):
            numbers.append(_atomic_number(fields[element_column]))
            texts = fields[position_column : position_column + 3]
            x, y, z = (float(re.sub(r"\*\^|[dD](?=[+-]?\d+$)", "e", text)) for text in texts)
        positions.append((x, y, z))
    return np.array(numbers, dtype=np.int64), np.array(positions, dtype=np.float64).reshape(-1, 3)


def labels_of_frame(name: str, frame: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ASE reads as results (energy, forces) of one frame, and all else it finds under a name.

    Raises:
        BadRowError: ASE cannot read it, or there are columns without a name.
        InputError: ASE is not installed.
    """
    require_extra("ase", "ase", "labels in xyz files")
    import ase.io

    lines = frame.splitlines()
    if "Properties=" not in lines[1]:
        if any(len(line.split()) > 4 for line in lines[2:]):
            raise BadRowError(name, "columns without a name", "say what they are by Properties=species:S:1:pos:R:3:...")
        numbers, positions = atoms_of_frame(name, frame)
        table = Chem.GetPeriodicTable()
        lines[2:] = [
            " ".join([table.GetElementSymbol(z), *map(repr, position)])
            for z, position in zip(numbers.tolist(), positions.tolist(), strict=True)
        ]
    else:
        lines[2:] = [re.sub(r"^(\s*)[DT](?=\s)", r"\1H", line) for line in lines[2:]]
    with naming(name):
        atoms: Any = ase.io.read(io.StringIO("\n".join(lines) + "\n"), format="extxyz")
    results = {} if atoms.calc is None else atoms.calc.results
    return results, atoms.info | atoms.arrays | results


def _columns(comment: str) -> tuple[int, int]:
    """Where a line has its element and the first coordinate."""
    columns, place = {}, 0
    if match := re.search(r'Properties="?([^\s"]+)', comment):
        parts = match[1].split(":")
        for key, width in zip(parts[::3], parts[2::3], strict=False):
            columns[key] = place
            place += int(width) if width.isdecimal() else 0
    return columns.get("species", columns.get("Z", 0)), columns.get("pos", 1)


def _atomic_number(text: str) -> int:
    """Of a symbol in any case, a number, or a label such as C1 or H_a."""
    if text.isdecimal():
        return int(text)
    match = re.match(r"([A-Za-z]{1,2})(?![A-Za-z])", text)
    symbol = match[1].capitalize() if match else text
    if symbol in ("D", "T"):
        return 1
    if symbol not in _ATOMIC_NUMBERS:
        raise ValueError(f"{text} is no element")
    return _ATOMIC_NUMBERS[symbol]
