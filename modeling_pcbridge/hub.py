"""Pushing a checkpoint to a hub: weights, code, processor, card and metrics in one commit."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from .errors import CalculationError
from .modeling_pcbridge import PCBridgeModel

CARD, METRICS = "README.md", "metrics.json"


class HubPushError(CalculationError):
    """The hub could not be reached or refused; nothing of the push is visible there."""


def create_repository(repo_id: str, private: bool | None = None) -> str:
    """Make the repository if it is not there; returns its full name, owner included.

    Raises:
        HubPushError: no connection, no or a wrong token, or no right to write there.
    """
    with _as_push_error(f"cannot create or write to {repo_id} on the hub"):
        return HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    metrics_dir: str | Path | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Push a checkpoint so that `from_pretrained(repo_id, trust_remote_code=True)` works without this package.

    A commit is visible whole or not at all. Pushed again after a failure, large files that the hub already has are
    not sent again.

    Args:
        folder: a checkpoint: config, weights, processor and, if there is one, its card `README.md`.
        repo_id: "owner/name", or a name in the account of the token (`hf auth login` or `HF_TOKEN`).
        metrics_dir: output folder of the run, whose `metrics.json` goes along.
        private: of a repository that is made new.
        revision: an existing branch, by default main.

    Raises:
        HubPushError: see above.
        OSError, ValueError: `folder` is not a sound checkpoint.
    """
    folder = Path(folder)
    model = PCBridgeModel.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        model.save_pretrained(staged)  # adds the code that a folder may lack
        if (folder / CARD).exists():
            shutil.copyfile(folder / CARD, staged / CARD)
        if metrics_dir is not None and (Path(metrics_dir) / METRICS).exists():
            shutil.copyfile(Path(metrics_dir) / METRICS, staged / METRICS)
        repo_id = create_repository(repo_id, private)
        with _as_push_error(f"the push to {repo_id} failed, nothing of it is visible there"):
            return HfApi().upload_folder(
                repo_id=repo_id, folder_path=staged, revision=revision, commit_message="Upload PCBridge checkpoint"
            )


@contextmanager
def _as_push_error(what: str) -> Iterator[None]:
    try:
        yield
    # The errors of the HTTP client differ between versions; to the user each means that the push failed.
    except Exception as error:
        raise HubPushError(f"{what}: {error}") from error
