"""What a result file says of where it comes from."""

import hashlib
import json
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"


def weights_of(checkpoint: str | Path) -> str:
    """The first twelve digits of the SHA-256 of a checkpoint's weights, "" of what is no folder with weights.

    `checkpoints/drug_like` is another model after each release; `sha256sum` tells which one was measured.
    """
    path = Path(checkpoint) / WEIGHTS
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else ""


def write_results(path: Path, record: Any, text: str) -> None:
    """`record` as JSON at `path`, `text` as Markdown beside it and on the screen."""
    path.write_text(json.dumps(record) + "\n")
    path.with_suffix(".md").write_text(text)
    print(text)


def written_by(module: str, checkpoint: str | Path) -> str:
    """The sentence that ends the introduction of a table."""
    weights = weights_of(checkpoint)
    return f"Written by `python -m experiments.{module}`{f'; SHA-256 of the weights {weights}' if weights else ''}."
