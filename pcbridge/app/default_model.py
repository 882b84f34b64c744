"""Where the model is that is used when none is named."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A wheel carries the checkpoint inside `pcbridge`, see pyproject.toml; in a clone it is in checkpoints/.
_PLACES = (_PACKAGE / "released_checkpoint", _PACKAGE.parent / "checkpoints" / "consistency")


def released_checkpoint() -> Path:
    """The folder of the released consistency model.

    Raises:
        FileNotFoundError: this installation has none.
    """
    for folder in _PLACES:
        if (folder / "model.safetensors").exists():
            return folder
    raise FileNotFoundError(
        "this installation carries no released checkpoint; name one by --model, a folder or a hub name"
    )
