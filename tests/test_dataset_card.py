"""Folders of rows as the Hub knows them: cards, `datasets.load_dataset` from disk and from a hub, pushing."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import concatenate_datasets, load_dataset
from huggingface_hub import DatasetCard
from local_hub import FIRST_COMMIT, LocalHub
from test_hub import environment

from dataset_scripts import bundled
from dataset_scripts.build_bundled import write_bundled_card
from dataset_scripts.bundled import SPLITS_OF, load_bundled, parquet_path
from dataset_scripts.dataset_card import CARD, describe, write_card
from dataset_scripts.own_data import own_source
from dataset_scripts.prepare import prepare
from dataset_scripts.push import main, push_folder
from dataset_scripts.schema import B3LYP_6_31GD, FEATURES, PM6
from dataset_scripts.splits import SPLITS

BUNDLED = parquet_path("pm6", "train").parent
REPO = "me/molecules"
LOAD = """
import json, sys
from datasets import load_dataset
from dataset_scripts.schema import FEATURES
rows = load_dataset(sys.argv[1], *sys.argv[2:], split="test")
streamed = load_dataset(sys.argv[1], *sys.argv[2:], split="test", streaming=True)
assert rows.features == FEATURES == streamed.features and list(rows) == list(streamed)
print(json.dumps(list(rows)))
"""


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Some bundled rows as a user's own, in two inputs, of which the second has none of the test split."""
    parts = {"a": [load_bundled("pm6", split).select(range(20)) for split in SPLITS]}
    parts["b"] = [load_bundled("pm6", "train").select(range(20, 25))]
    inputs = [tmp_path / f"{name}.parquet" for name in parts]
    for path, rows in zip(inputs, parts.values(), strict=True):
        concatenate_datasets(rows).to_parquet(path)
    prepare(own_source(PM6, B3LYP_6_31GD), inputs, tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.mark.parametrize("name", SPLITS_OF)
def test_the_bundled_set_is_a_hub_dataset(name, tmp_path):
    for split in SPLITS_OF[name][-2:]:  # train is large
        expected = load_bundled(name, split)
        rows = load_dataset(str(BUNDLED), name, split=split, cache_dir=tmp_path)
        streamed = load_dataset(str(BUNDLED), name, split=split, streaming=True, cache_dir=tmp_path)
        assert rows.features == streamed.features == FEATURES
        assert rows.to_list() == list(streamed) == expected.to_list()


def test_the_front_matter_is_what_the_files_say():
    data = DatasetCard.load(BUNDLED / CARD).data.to_dict()
    files = {name: {split: parquet_path(name, split).name for split in splits} for name, splits in SPLITS_OF.items()}
    described = describe(BUNDLED, files)
    assert described == {key: data[key] for key in described}
    assert data["levels_of_theory"]["pm6"] == {"minima": [PM6], "energies_and_forces": [B3LYP_6_31GD]}
    assert {"cc0-1.0", "mit"} < set(data["license"]) and "quantum-chemistry" in data["tags"]
    summary = json.loads((BUNDLED / "summary.json").read_text())["files"]
    for info in data["dataset_info"]:
        for split in info["splits"]:
            assert split["num_examples"] == summary[f"{info['config_name']}-{split['name']}.parquet"]["rows"]


def test_row_groups_are_a_page_or_a_few():
    for path in BUNDLED.glob("*.parquet"):
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        assert max(group.num_rows for group in groups) <= 1000
        assert max(group.total_byte_size for group in groups) < 2**21


def test_prepared_folders_are_hub_datasets_too(prepared, tmp_path):
    found = load_dataset(str(prepared), cache_dir=tmp_path / "cache")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 25, "validation": 20, "test": 20}
    for split, rows in found.items():
        assert rows.features == FEATURES
        assert rows["positions"] == load_bundled("pm6", split).select(range(len(rows)))["positions"]
        assert list(load_dataset(str(prepared), split=split, streaming=True)) == rows.to_list()
    data = DatasetCard.load(prepared / CARD).data.to_dict()
    assert (data["pretty_name"], data["license"], data["size_categories"]) == ("prepared", "unknown", ["n<1K"])


def test_splits_without_rows_are_none(prepared, tmp_path):
    prepare(own_source(PM6, B3LYP_6_31GD), [tmp_path / "b.parquet"], tmp_path / "all", split="train")
    assert list(load_dataset(str(tmp_path / "all"), cache_dir=tmp_path / "cache")) == ["train"]


def test_what_a_person_wrote_on_the_card_stays(prepared, tmp_path):
    card = DatasetCard.load(prepared / CARD)
    card.data.license, card.data["language"] = "cc-by-4.0", "en"
    card.text = "# Mine\n\nMeasured by me.\n"
    card.save(prepared / CARD)
    prepare(own_source(PM6, B3LYP_6_31GD), [tmp_path / "b.parquet"], prepared)
    after = DatasetCard.load(prepared / CARD)
    assert after.data.license == "cc-by-4.0" and after.data["language"] == "en"
    assert after.text.strip() == "# Mine\n\nMeasured by me."


def load_from_hub(hub: LocalHub, home: Path, *arguments: str) -> list[dict]:
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments],
        cwd=Path(__file__).parents[1],
        env=environment(hub, home) | {"HF_DATASETS_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:] + "\n".join(hub.requests)
    return json.loads(result.stdout.splitlines()[-1])


def test_the_bundled_set_comes_back_from_a_hub(hub, tmp_path):
    commit = push_folder(BUNDLED, REPO)
    repository = hub.repositories[f"datasets/{REPO}"]
    assert list(repository.commits) == [FIRST_COMMIT, commit.oid]  # one commit for everything
    files = repository.commits[commit.oid]
    assert set(files) == {path.name for path in BUNDLED.iterdir() if not path.name.startswith("_")}
    assert files["pm6-test.parquet"] == parquet_path("pm6", "test").read_bytes()
    assert load_from_hub(hub, tmp_path, REPO, "pm6_displaced") == load_bundled("pm6_displaced", "test").to_list()


def test_a_prepared_folder_comes_back_from_a_hub(hub, prepared, tmp_path, monkeypatch, capsys):
    (prepared / "notes.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["push", str(prepared), "--repo", REPO])
    main()
    assert capsys.readouterr().out.startswith(f"{hub.url}/datasets/{REPO}/commit/")
    files = list(hub.repositories[f"datasets/{REPO}"].commits.values())[-1]
    assert "notes.txt" not in files and {CARD, "summary.json"} < set(files)
    assert load_from_hub(hub, tmp_path / "home", REPO) == load_dataset(str(prepared), split="test").to_list()


def test_what_cannot_be_pushed_is_one_sentence(hub, prepared, tmp_path, monkeypatch, capsys):
    def error(folder: Path, token: str = "hf_mine") -> str:
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(sys, "argv", ["push", str(folder), "--repo", REPO])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} has no README.md" in error(tmp_path / "empty")
    assert "the push to me/molecules failed, nothing of it is visible there: " in error(prepared, token="hf_wrong")
    (tmp_path / "empty" / CARD).write_text("# Mine\n")
    assert "does not say which files are which split: KeyError('configs')" in error(tmp_path / "empty")
    (prepared / "train/more.parquet").write_bytes(next((prepared / "train").glob("*.parquet")).read_bytes())
    assert "others than its README.md says; run dataset_scripts.prepare again" in error(prepared)
    assert not hub.repositories


def test_the_builder_writes_the_same_card_again(tmp_path, monkeypatch):
    for path in BUNDLED.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = (tmp_path / CARD).read_text()
    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    (tmp_path / CARD).write_text(before.replace("num_examples", "num_rows").replace("- mit\n", ""))
    write_bundled_card()
    assert (tmp_path / CARD).read_text() == before


def test_a_new_card_says_how_to_load(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(parquet_path("pm6", "test").read_bytes())
    write_card(tmp_path, {"default": {"test": "rows.parquet"}}, "Some rows", "cc0-1.0")
    text = (tmp_path / CARD).read_text()
    assert "# Some rows" in text and "load_dataset(" in text and "license: cc0-1.0" in text
