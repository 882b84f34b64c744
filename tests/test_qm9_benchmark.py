"""The QM9 benchmark on a few molecules of the bundled data with the released checkpoint: its rows, tables and plots."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_scripts.bundled import load_bundled
from dataset_scripts.label_generation import read_lines
from dataset_scripts.schema import FEATURES
from experiments import qm9_conformers, qm9_molecules
from experiments.qm9_evaluation import (
    MMFF_REFINED,
    at_minima,
    from_graph,
    most_central,
    refinement,
    summary,
)
from experiments.qm9_molecules import STARTS, cheap_structures, load_molecules
from experiments.qm9_release import card, metrics_section
from experiments.qm9_report import RELEASED, write_report, write_tables
from modeling_pcbridge import PCBridgeModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards as `dataset_scripts.prepare` lays them out."""
    root = tmp_path_factory.mktemp("qm9")
    # The last one is in the bundled training data, and so no test molecule of the benchmark.
    displaced = next(iter(load_bundled("pm6_displaced", "train")))["molecule_id"]
    seen = [row for row in load_bundled("dft_equilibrium", "train") if row["molecule_id"] == displaced]
    rows = list(load_bundled("dft_equilibrium", "test"))[200:205] + seen
    (root / "test").mkdir()
    for part in (0, 1):
        table = pa.Table.from_pylist(rows[part::2], schema=FEATURES.arrow_schema)
        pq.write_table(table, root / "test" / f"part-{part}.parquet")
    return root


@pytest.fixture(scope="module")
def references(folder):
    return load_molecules(folder, "test", 5)


@pytest.fixture(scope="module")
def starts(references, tmp_path_factory):
    # MOPAC is not everywhere: a start .01 angstrom an atom from the DFT structure stands for PM6's.
    def shaken(atomic_numbers, positions, total_charge):
        return positions + np.random.default_rng(0).normal(scale=0.01, size=positions.shape), 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qm9_molecules, "pm6_minimum", shaken)
        return cheap_structures(references, tmp_path_factory.mktemp("cache") / "starts.jsonl")


def test_the_first_molecules_are_the_same_however_many_are_taken(folder, references):
    ids = [reference.example.molecule_id for reference in references]
    assert len(set(ids)) == 5 == len(load_molecules(folder, "test", None))
    assert [r.example.molecule_id for r in load_molecules(folder, "test", 4)] == ids[:4]
    with pytest.raises(FileNotFoundError, match=r"dataset_scripts\.prepare qm9pack"):
        load_molecules(folder, "train", 1)


def test_cheap_structures_are_computed_once(references, tmp_path, monkeypatch):
    calls = []

    def fails(*arguments):
        calls.append(arguments)
        raise RuntimeError("no minimum")

    monkeypatch.setattr(qm9_molecules, "pm6_minimum", fails)
    first = cheap_structures(references[:2], tmp_path / "starts.jsonl")
    again = cheap_structures(references[:2], tmp_path / "starts.jsonl")
    assert len(calls) == 4 and len(read_lines(tmp_path / "starts.jsonl")) == 2
    assert set(first[0].positions) == {key for key in STARTS if key[0] != "PM6"}
    for key, positions in first[1].positions.items():
        np.testing.assert_allclose(again[1].positions[key], positions, atol=1e-5)


def test_the_most_central_sample_is_the_one_in_the_middle():
    # Two atoms at distances 1, 2 and 2.5: the mean distance errors to the others are 1.25, .75 and 1, halved by the
    # zero diagonal.
    samples = np.zeros((3, 2, 3))
    samples[:, 1, 0] = [1.0, 2.0, 2.5]
    assert most_central(samples) == 1


def test_summary_leaves_absent_values_out():
    records = {"a": {"x": 1.0, "y": float("nan")}, "b": {"x": 5.0, "y": 2.0}, "c": {"x": 9.0, "y": 4.0}}
    assert summary(records) == {"x": 5.0, "y": 3.0}
    assert summary({"a": {"x": 1.0, "z": float("nan")}}) == {"x": 1.0}


def test_report_on_conformers():
    """Of two molecules one has a lower conformer than QM9's, which is not the closest; the other has a failure."""
    lines = [
        {"c_rmsd": [0.1, 0.5], "most_central": 0, "gfn2_above_ev": [0.0, -0.2]},
        {"c_rmsd": [0.3, 0.9], "most_central": 1, "gfn2_above_ev": [0.005, None]},
    ]
    text = qm9_conformers.report(lines)
    for title, mean in (("all samples", 0.45), ("most central sample", 0.5), ("sample of lowest GFN2-xTB energy", 0.4)):
        assert f"| {title} | {mean:.3f} |" in text
    assert "| closest sample, known by the answer only | 0.200 | 0.200 |" in text
    assert "In 1 of 2 molecules" in text and "(median of these: 0.200 eV)" in text and "In 1 the lowest is" in text


def test_a_molecule_with_one_conformer_is_compared_with_itself(references):
    pytest.importorskip("tblite")
    # The model makes nothing else of it; the smallest of the references has a hydroxyl group that turns.
    rigid = next(reference for reference in references if reference.example.molecule_id == "qm9_002092")
    line = qm9_conformers.compare(PCBridgeModel.from_pretrained("checkpoints/qm9"), rigid)
    assert len(line["c_rmsd"]) == len(line["gfn2_above_ev"]) == 10
    assert max(line["c_rmsd"]) < 0.05
    assert max(abs(above) for above in line["gfn2_above_ev"]) < 0.001


def test_benchmark_of_the_released_checkpoint(references, starts, tmp_path):
    model = PCBridgeModel.from_pretrained("checkpoints/consistency")
    graph_records, structures = from_graph(model, references, num_samples=2, seed=0)
    refinement_records, _ = refinement(model, references, starts)
    ids = {reference.example.molecule_id for reference in references}
    for records in (*graph_records.values(), *refinement_records.values()):
        assert set(records) == ids

    # What is asked of rows: refined bonds are DFT's, and a start that is the DFT structure shaken by .01 angstrom has
    # errors of that size.
    assert summary(graph_records[MMFF_REFINED])["bond_length_error"] < 0.01
    refined = summary(refinement_records["MMFF94, same conformer, refined"], np.median)
    assert refined["bond_length_error"] < 0.01
    shaken = summary(refinement_records["PM6, same conformer"])
    assert 0.005 < shaken["d_mae"] < 0.02

    # The labels of the bundled DFT structures are at another level of theory than this model's energies.
    found = at_minima(model, references)
    assert found["energy_mae"] > 0.1
    assert 0 < found["force_left"] < 1.0

    results = {"split": "test", "num_molecules": 5, "num_from_graph": 5, "num_samples": 2}
    measured = {
        "from_graph": graph_records,
        "structures": structures,
        "refinement": refinement_records,
        "at_minima": found | {"energy_mae": 0.01234},
    }
    # Of another machine's model only qm9.json is here; of one measured on other molecules nothing stays.
    elsewhere = {"from_graph": {}, "refinement": {}, "at_minima": {"energy_mae": 0.1, "force_left": 0.2}}
    (tmp_path / "qm9.json").write_text(json.dumps(results | {"models": {"elsewhere": elsewhere}}))
    text = write_tables(results | {"models": {RELEASED: measured}}, tmp_path)
    assert "| elsewhere | 100 | 0.20 |" in text
    text = write_report(results | {"num_samples": 3, "models": {RELEASED: measured}}, references, tmp_path)
    assert "elsewhere" not in text
    assert "| GTMGC (published) | 0.264 | 0.470 | 0.367 |" in text and f"| {RELEASED} | 12 |" in text
    cell = f"{summary(graph_records['ETKDGv3'])['d_mae']:.3f}"
    assert f"| ETKDGv3 | {cell} ± 0." in text
    record = json.loads((tmp_path / "qm9.json").read_text())
    assert record["models"][RELEASED]["refinement"]["PM6, same conformer"]["mean"] == shaken
    metrics = {result.metric_name: result.metric_value for result in card(*metrics_section(record)).data.eval_results}
    assert metrics["at DFT structures: energy MAE (eV)"] == 0.0123
    assert 0.005 < metrics["PM6, same conformer: median D-MAE (angstrom)"] < 0.02
    for name in ("errors", "refinement", "structures"):
        assert (tmp_path / f"qm9_{name}.png").stat().st_size > 10_000
