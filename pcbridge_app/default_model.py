"""Where the model is that is used when none is named."""

from pathlib import Path

_APP = Path(__file__).parent
# A wheel carries the checkpoint inside this package, see pyproject.toml; in a clone it is in checkpoints/.
_PLACES = (_APP / "released_checkpoint", _APP.parent / "checkpoints" / "consistency")


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
