"""Where the released models are, which are found by name from anywhere."""

from pathlib import Path

DEFAULT = "drug_like"
_PACKAGE = Path(__file__).parents[1]
# A wheel carries the checkpoints inside `pcbridge`, see pyproject.toml; in a clone they are in checkpoints/.
_PLACES = (_PACKAGE / "released_checkpoints", _PACKAGE.parent / "checkpoints")


def released_checkpoint(name: str = DEFAULT) -> Path:
    """The folder of a released model: "drug_like", "consistency", "multi-task" or "qm9".

    Raises:
        FileNotFoundError: this installation has none of that name.
    """
    for folder in _PLACES:
        if (folder / name / "model.safetensors").exists():
            return folder / name
    raise FileNotFoundError(
        f"this installation carries no released checkpoint {name}; name one by --model, a folder or a hub name"
    )


def find_model(name: str | None) -> str:
    """What `from_pretrained` takes for a name that a user gave: a folder, a released model or a hub name.

    `qm9` and `checkpoints/qm9` are the released model wherever the command runs, unless there is a folder of that name.

    Raises:
        FileNotFoundError: none was named, and this installation has no released one; or there is no folder of that
            name, and it cannot be one of a hub, which is owner/name.
    """
    if name is None:
        return str(released_checkpoint())
    if not Path(name).is_dir():
        try:
            return str(released_checkpoint(name.removeprefix("checkpoints/").rstrip("/")))
        except FileNotFoundError:
            is_of_hub = name.count("/") == 1 and not name.startswith((".", "/", "checkpoints/"))
            if not is_of_hub:
                raise FileNotFoundError(
                    f"there is no folder {name}, and no released model of that name; on a hub names are owner/name"
                ) from None
    return name
