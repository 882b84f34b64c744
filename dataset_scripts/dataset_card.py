"""The card of a folder of rows, by which the Hugging Face Hub and `datasets.load_dataset(FOLDER, NAME)` read it.

Its front matter says which files are which split, the features, sizes, levels of theory, tags and licences, all of it
taken from the files. https://huggingface.co/docs/hub/datasets-cards has the format.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import DatasetInfo, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from dataset_scripts.schema import FEATURES

CARD = "README.md"
_TAGS = ("chemistry", "quantum-chemistry", "molecular-conformation", "energy", "forces")
# The bounds of the hub's size_categories and their names.
_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
_TEXT = """
Molecules with structures and labels, a row each, in the columns of PCBridge's `dataset_scripts.schema`: positions in
angstrom, energies in eV, forces in eV/angstrom; the level of theory of each stands beside it, and what is absent is
null. `equilibrium_level_of_theory` is null where a structure is no minimum.

```python
from datasets import load_dataset

rows = load_dataset("FOLDER OR owner/name", split="train", streaming=True)
```
"""


def write_card(
    folder: Path,
    configurations: Mapping[str, Mapping[str, str]],
    title: str | None = None,
    license: str | list[str] | None = None,
) -> None:
    """Write the front matter of `folder`/README.md anew; the text below it stays, and is a short one at first.

    Args:
        folder: has Parquet files in the columns of `schema.FEATURES`.
        configurations: by name, the files of each split, as a pattern relative to `folder`. Splits without rows are
            left out. The first one is what `load_dataset` takes by default.
        title: by default what the card has, at first the name of the folder.
        license: the hub's identifiers; by default what the card has, at first "unknown".
    """
    path = folder / CARD
    before = DatasetCard.load(path) if path.exists() else None
    data = {} if before is None else before.data.to_dict()
    data["pretty_name"] = title or data.get("pretty_name", folder.resolve().name)
    data["license"] = license or data.get("license", "unknown")
    data["tags"] = list(dict.fromkeys([*data.get("tags", ()), *_TAGS]))
    text = f"# {data['pretty_name']}\n{_TEXT}" if before is None else before.text.lstrip()
    described = DatasetCardData(**(data | describe(folder, configurations)))
    unfinished = path.with_name(f"{CARD}.tmp{os.getpid()}")
    unfinished.write_text(f"---\n{described.to_yaml()}\n---\n\n{text}", encoding="utf-8")
    unfinished.replace(path)


def describe(folder: Path, configurations: Mapping[str, Mapping[str, str]]) -> dict:
    """What a front matter says of the files: `configs`, `dataset_info`, `levels_of_theory` and `size_categories`."""
    configs, infos = MetadataConfigs(), DatasetInfosDict()
    levels: dict[str, dict[str, list[str]]] = {}
    for name, patterns in configurations.items():
        files = {split: sorted(folder.glob(pattern)) for split, pattern in patterns.items()}
        splits = {split: info for split, paths in files.items() if (info := _split_info(split, paths)).num_examples}
        used = [path for split in splits for path in files[split]]
        data_files = [{"split": split, "path": patterns[split]} for split in splits]
        configs[name] = {"data_files": data_files} | ({} if configs else {"default": True})
        infos[name] = DatasetInfo(
            features=FEATURES,
            splits=SplitDict(splits),
            download_size=sum(path.stat().st_size for path in used),
            dataset_size=sum(info.num_bytes for info in splits.values()),
        )
        levels[name] = {
            "minima": _levels(used, "equilibrium_level_of_theory"),
            "energies_and_forces": _levels(used, "energy_level_of_theory"),
        }
    data = DatasetCardData()
    configs.to_dataset_card_data(data)
    infos.to_dataset_card_data(data)
    num_rows = sum(split.num_examples for info in infos.values() for split in info.splits.values())
    size = next((name for bound, name in _SIZES.items() if num_rows < bound), "10M<n<100M")
    return data.to_dict() | {
        "levels_of_theory": levels,
        "size_categories": [size],
        "task_categories": ["graph-ml"],
    }


def _split_info(split: str, paths: Iterable[Path]) -> SplitInfo:
    metadata = [pq.read_metadata(path) for path in paths]
    num_bytes = sum(file.row_group(i).total_byte_size for file in metadata for i in range(file.num_row_groups))
    return SplitInfo(split, num_bytes, sum(file.num_rows for file in metadata))


def _levels(paths: Iterable[Path], column: str) -> list[str]:
    found: set[str | None] = set()
    for path in paths:
        found.update(pc.unique(pq.read_table(path, columns=[column])[column]).to_pylist())
    return sorted(level for level in found if level is not None)
