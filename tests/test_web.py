"""The page over HTTP: its files, what a prediction streams, bad input, and the limits."""

import asyncio
import hashlib
import inspect
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rdkit import Chem
from starlette.testclient import TestClient

from pcbridge.app.web import server, visit
from pcbridge.app.web.visit import Predictor
from pcbridge.evaluation.metrics import heavy_atom_rmsd

ROOT = Path(__file__).parent.parent
CHECKPOINT = str(ROOT / "checkpoints/consistency")
STATIC = ROOT / "pcbridge/app/web/static"


@pytest.fixture(scope="module")
def client():
    with TestClient(server.create_app(CHECKPOINT)) as client:
        yield client


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(CHECKPOINT)


def events(client, smiles: str, num_samples: int = 3) -> list[dict]:
    response = client.post("/predict", json={"smiles": smiles, "num_samples": num_samples})
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_page_is_served_without_foreign_or_inline_code(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff" and "set-cookie" not in page.headers
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", page.text)
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(path).status_code == 200, path
    assert client.get("/vendor/openchemlib.js").headers["content-encoding"] == "gzip"
    assert client.get("/%2e%2e/prediction.py").status_code == 404


def test_frames_are_allowed_where_asked_for():
    app = server.create_app(CHECKPOINT, frame_ancestors="https://huggingface.co")
    assert "frame-ancestors https://huggingface.co" in TestClient(app).get("/").headers["content-security-policy"]


def test_serving_is_for_this_machine_unless_asked_otherwise():
    assert inspect.signature(server.serve).parameters["host"].default == "127.0.0.1"


def test_third_party_files_are_the_published_ones():
    table = re.findall(r"^\| `([^`]+)` \|.*\| `(\w{64})` \|$", (STATIC / "vendor/README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in table} == {path.name for path in (STATIC / "vendor").glob("*.js")}
    for name, checksum in table:
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == checksum


def test_a_prediction_streams_the_denoising_and_then_ranked_samples(client):
    first, molecule, *steps, result = events(client, "C[C@H]1CCCC1=O")
    assert first == {"type": "waiting", "ahead": 0}
    assert molecule["formula"] == "C6H10O" and len(molecule["symbols"]) == 17 and len(molecule["bonds"]) == 17
    assert molecule["level_of_theory"] == "B3LYP/6-31G*"
    assert molecule["reference_level_of_theory"] == "B3LYP/6-31G(2df,p)" and molecule["notes"] == []
    assert [step["step"] for step in steps][:21] == list(range(21)) and {step["type"] for step in steps} == {"step"}
    energies = [sample["energy"] for sample in result["samples"]]
    assert len(energies) == 3 and energies == sorted(energies)
    assert [sample["relative_energy"] for sample in result["samples"]] == [e - energies[0] for e in energies]


def test_what_is_shown_is_what_the_model_says_of_the_file(client, predictor):
    """Samples are rotated for the eye: structures, forces and references must have turned together."""
    *_, result = events(client, "OC(C)(C)C#N")
    for sample in result["samples"]:
        mol = Chem.MolFromMolBlock(sample["sdf"], removeHs=False)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == "CC(C)(O)C#N"
        positions = np.array(sample["frames"][-1])
        assert np.allclose(mol.GetConformer().GetPositions(), positions, atol=1e-4)
        output = predictor.model.predict_energy(**predictor.processor(mol))
        # Coordinates in the file are rounded to 0.0001 angstrom.
        rounding = 1e-4 * np.abs(sample["forces"]).sum()
        assert output.energy.item() == pytest.approx(sample["energy"], abs=rounding)
        assert np.allclose(output.forces[0], sample["forces"], atol=0.02)
        (energy,) = re.findall(r"<energy_eV>.*\n(.*)", sample["sdf"])
        assert float(energy) == pytest.approx(sample["energy"], abs=1e-6)


def test_the_reference_lies_over_the_prediction(client, predictor):
    *_, result = events(client, "Oc1ccccc1", num_samples=2)
    reference = predictor.references["Oc1ccccc1"]
    reference_energy = predictor.model.predict_energy(**predictor.processor(reference.mol)).energy.item()
    for sample in result["samples"]:
        overlay, shown = np.array(sample["reference"]["positions"]), np.array(sample["frames"][-1])
        assert sample["energy"] - sample["reference"]["energy_above"] == pytest.approx(reference_energy, abs=1e-3)
        rmsd = sample["reference"]["rmsd"]
        assert rmsd < 0.2 and sample["reference"]["rmsd_atoms"] == "heavy atoms"
        heavy = [symbol != "H" for symbol in sample["reference"]["symbols"]]
        own = reference.mol.GetConformer().GetPositions()
        assert np.allclose(
            np.linalg.norm(overlay[1:] - overlay[0], axis=1), np.linalg.norm(own[1:] - own[0], axis=1), atol=1e-3
        )
        nearest = np.linalg.norm(overlay[heavy][:, None] - shown[None], axis=-1).min(1)
        assert np.sqrt(np.square(nearest).mean()) == pytest.approx(rmsd, abs=1e-3)
        mol = Chem.AddHs(Chem.MolFromSmiles("Oc1ccccc1"))
        order = reference.mol.GetSubstructMatch(mol)
        assert heavy_atom_rmsd(mol, shown[None], own[list(order)])[0] == pytest.approx(rmsd, abs=1e-3)


def test_every_reference_is_found_by_its_smiles(predictor):
    assert len(predictor.references) > 360
    for smiles in predictor.references:
        assert visit._canonical(predictor.read(smiles)) == smiles


@pytest.mark.parametrize("smiles", ["O", "C", "C#N", "[NH4+]"])
def test_the_smallest_molecules(client, smiles):
    *_, result = events(client, smiles)
    assert len(result["samples"]) == 3


def test_no_structure_that_fails_its_checks_is_shown(client):
    """This model draws cis-2-pentene as trans and stretches hydrogen."""
    *_, result = events(client, "CC/C=C\\C")
    for sample in result["samples"]:
        mol = Chem.MolFromMolBlock(sample["sdf"], removeHs=False)
        Chem.AssignStereochemistryFrom3D(mol)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == "C/C=C\\CC"
    assert events(client, "[H][H]")[-1]["message"].startswith("No sound structure came out: the bond H0-H1 is too long")


def test_molecules_unlike_the_training_data_are_noted(client):
    _, molecule, *_, result = events(client, "C" * 8, num_samples=1)
    assert "extrapolation: it has 8 heavy atoms, training structures up to 7" in molecule["notes"][0]
    assert "it has 8 heavy atoms" in result["samples"][0]["sdf"]
    notes = events(client, "CC[NH3+]", num_samples=1)[1]["notes"]
    assert "total charge of +1" in notes[0] and "2 of 3 heavy atoms (C1, N2)" in notes[1]


@pytest.mark.parametrize(
    ("smiles", "sentence"),
    [
        ("", "The SMILES is empty."),
        ("C1CC", "RDKit cannot parse the SMILES."),
        ("CS", "Unsupported element S; this model knows H, C, N, O, F."),
        ("CO.CO", "The molecule is disconnected (several fragments)."),
        ("C[CH2]", "The molecule is a radical; only closed-shell molecules are supported."),
        ("C*", "The molecule has a dummy atom ('*')."),
        ("C" * 20, "The molecule has 62 atoms, hydrogens included; this page takes up to 60."),
        ("C" * 301, "The SMILES has 301 characters; this page takes up to 300."),
    ],
)
def test_bad_input_is_named_in_one_sentence(client, smiles, sentence):
    response = client.post("/predict", json={"smiles": smiles, "num_samples": 1})
    assert response.status_code == 422 and response.json() == {"error": sentence}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        ('{"smiles": "C", "num_samples": 11}', {}, 400),
        ('{"smiles": "C", "num_samples": 0}', {}, 400),
        ('{"smiles": ["C"], "num_samples": 1}', {}, 400),
        ("[[[", {}, 400),
        ("[" * 4000, {}, 400),
        ('{"smiles": "C", "num_samples": 11}', {"content-type": "application/json; charset=utf-8"}, 400),
        ('{"smiles": "' + "C" * 5000 + '", "num_samples": 1}', {}, 413),
        ('{"smiles": "C", "num_samples": 1}', {"content-type": "text/plain"}, 415),
    ],
)
def test_requests_that_the_page_would_not_send(client, content, headers, status):
    response = client.post("/predict", content=content, headers={"content-type": "application/json", **headers})
    assert response.status_code == status and response.json()["error"].endswith(".")


def test_a_prediction_that_takes_too_long_ends(client, monkeypatch):
    monkeypatch.setattr(visit, "MAX_SECONDS", 0.0)
    last = events(client, "CCO")[-1]
    assert last["type"] == "error" and "took more than 0 seconds" in last["message"]


def test_a_full_queue_turns_visitors_away(client, monkeypatch):
    monkeypatch.setattr(server, "MAX_WAITING", -1)
    response = client.post("/predict", json={"smiles": "C", "num_samples": 1})
    assert response.status_code == 503 and "try again in a moment" in response.json()["error"]


class SlowPredictor:
    """Emits until it is released or told that nobody reads; counts how many predictions ran at once."""

    def __init__(self):
        self.released = threading.Event()
        self.running = self.most_running = self.started = 0

    def predict(self, mol, num_samples, emit):
        self.running += 1
        self.started += 1
        self.most_running = max(self.most_running, self.running)
        try:
            while not self.released.wait(0.01):
                emit({"type": "step"})
        finally:
            self.running -= 1


def test_predictions_run_one_at_a_time_and_end_with_their_reader():
    predictor = SlowPredictor()

    async def scenario():
        queue = server.PredictionQueue(predictor)
        streams = [queue.stream(None, 1) for _ in range(1 + server.MAX_WAITING)]
        ahead = []
        for stream in streams:
            assert not queue.is_full
            ahead.append(json.loads(await anext(stream))["ahead"])
        assert queue.is_full and ahead == [0, 1, 2, 3, 4]
        assert json.loads(await anext(streams[0])) == {"type": "step"}
        await streams[1].aclose()  # one that waits leaves
        await streams[0].aclose()  # and the one that runs
        await asyncio.wait_for(anext(streams[2]), 5)
        assert not queue.is_full
        predictor.released.set()
        for stream in streams[2:]:
            async for _ in stream:
                pass
        assert queue._unfinished == 0

    asyncio.run(scenario())
    assert predictor.most_running == 1 and predictor.started == 4


def test_the_first_sample_is_drawn_in_its_principal_frame():
    positions = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    positions = (positions - positions.mean(0)) * [1.0, 3.0, 2.0]
    turned = visit._principal_frame(positions)
    spread = np.square(turned).sum(0)
    assert spread[0] > spread[1] > spread[2]
    assert np.linalg.det(turned[:3]) == pytest.approx(np.linalg.det(positions[:3]))  # not mirrored


def test_the_space_holds_what_it_starts():
    _, front_matter, text = (ROOT / "space/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front_matter)["sdk"] == "docker" and yaml.safe_load(front_matter)["app_port"] == 7860
    (sources,) = re.findall(r"cp -r (.*?) \\\n +(.*?) space-repository", text)
    assert all((ROOT / name).exists() for name in " ".join(sources).split())
    assert all((ROOT / name).exists() for name in re.findall(r"space/\w+(?:\.\w+)?", text))
    compile((ROOT / "space/app.py").read_text(), "app.py", "exec")
