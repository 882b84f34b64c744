"""Push a folder of rows to the Hugging Face Hub, so that `datasets.load_dataset("owner/name")` gives them.

    python -m dataset_scripts.push data/mine --repo me/my-molecules
    python -m dataset_scripts.push data/mine --repo me/my-molecules --private

The folder is one that `dataset_scripts.prepare` wrote. What its card (README.md) names goes along in one commit, which
is visible whole or not at all. Edit the text and the licence of the card before. The token comes from `hf auth login`
or the environment variable HF_TOKEN.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import CommitInfo, DatasetCard, HfApi

from dataset_scripts.command_errors import errors_as_sentences
from dataset_scripts.dataset_card import CARD, describe
from dataset_scripts.options import underscored
from modeling_pcbridge.errors import CalculationError, InputError

_SUMMARY = "summary.json"


class DatasetPushError(CalculationError):
    """The hub could not be reached or refused; nothing of the push is visible there."""


def push_folder(folder: Path, repo: str, private: bool | None = None) -> CommitInfo:
    """Push the Parquet files that the card of `folder` names, the card and the summary.

    Args:
        folder: with a card of `dataset_card.write_card`.
        repo: "owner/name", or a name in the account of the token.
        private: of a repository that is made new.

    Raises:
        InputError: there is no such card, or the files are others than it says.
        DatasetPushError: no connection, no or a wrong token, or no right to write there.
    """
    patterns = _checked_patterns(folder)
    api = HfApi()
    try:
        repo = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[CARD, _SUMMARY, *patterns],
            commit_message="Upload PCBridge rows",
        )
    # The errors of the HTTP client differ between versions; to the user each means that the push failed.
    except Exception as error:
        raise DatasetPushError(f"the push to {repo} failed, nothing of it is visible there: {error}") from error


def _checked_patterns(folder: Path) -> list[str]:
    """The patterns of the files of all splits."""
    if not (folder / CARD).exists():
        raise InputError(f"{folder} has no {CARD}; dataset_scripts.prepare writes one")
    stated = DatasetCard.load(folder / CARD).data.to_dict()
    try:
        configurations = {
            config["config_name"]: {files["split"]: files["path"] for files in config["data_files"]}
            for config in sorted(stated["configs"], key=lambda config: not config.get("default", False))
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / CARD} does not say which files are which split: {error!r}") from error
    if describe(folder, configurations)["dataset_info"] != stated.get("dataset_info"):
        raise InputError(f"the files of {folder} are others than its {CARD} says; run dataset_scripts.prepare again")
    return [pattern for splits in configurations.values() for pattern in splits.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repo", required=True, help='"owner/name" on the hub')
    parser.add_argument("--private", action="store_true", default=None, help="if the repository is new")
    arguments = parser.parse_args(underscored(sys.argv[1:]))
    with errors_as_sentences():
        print(push_folder(**vars(arguments)).commit_url)


if __name__ == "__main__":
    main()
