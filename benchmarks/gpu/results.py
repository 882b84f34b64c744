"""Results on disk after every record, so that a run that is cut loses only what it had not measured yet."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exc
from typing import Any

import torch

from modeling_pcbridge.errors import CalculationError


class Results:
    """Those of one part: PART.json, and a section of results.md beside the sections of the other parts.

    Args:
        folder: of all parts.
        part: its name.
        device: "cuda" or "cpu".
    """

    def __init__(self, folder: Path, part: str, device: str):
        self.folder, self.part = folder, part
        self.started = time.perf_counter()
        name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
        self.facts: dict[str, Any] = {
            "device": name,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "finished": False,
        }
        self.tables: dict[str, list[dict[str, Any]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def add(self, table: str, **record: Any) -> None:
        """One more row of a table."""
        self.tables.setdefault(table, []).append(record)
        self.write()

    @property
    def minutes(self) -> float:
        """Since the part began."""
        return (time.perf_counter() - self.started) / 60

    @contextmanager
    def whatever_happens(self, table: str, **record: Any) -> Iterator[None]:
        """What goes wrong within becomes a row, and the part goes on."""
        try:
            yield
        except torch.OutOfMemoryError:  # what does not fit is a result
            self.add(table, **record, note="out of memory")
        except Exception as error:
            print(format_exc(), flush=True)
            self.add(table, **record, failure=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")

    def finish(self) -> None:
        """Note that nothing was cut off.

        Raises:
            CalculationError: something failed.
        """
        self.facts["finished"] = True
        self.write()
        failed = [
            row for rows in self.tables.values() for row in rows if "failure" in row or row.get("passed") is False
        ]
        if failed:
            raise CalculationError(f"{self.part}: {len(failed)} failed, the first: {json.dumps(failed[0])}")

    def write(self) -> None:
        self.facts["minutes"] = round(self.minutes, 2)
        contents = json.dumps({**self.facts, "tables": self.tables}, indent=1)
        _write_aside(self.folder / f"{self.part}.json", contents + "\n")
        _write_aside(self.folder / "results.md", markdown(self.folder))


def markdown(folder: Path) -> str:
    """All parts that are there."""
    lines = ["# On a device", ""]
    for path in sorted(folder.glob("*.json")):
        contents = json.loads(path.read_text())
        tables = contents.pop("tables")
        facts = ", ".join(f"{name} {_shown(value)}" for name, value in contents.items())
        lines += [f"## {path.stem}", "", f"{facts}.", ""]
        for title, rows in tables.items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            lines += [f"### {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_shown(row.get(name)) for name in columns)} |" for row in rows]
            lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(text)
    aside.replace(path)
