"""The page over HTTP: its files, what a prediction streams, bad input, the queue, and the limits."""

import asyncio
import hashlib
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rdkit import Chem
from starlette.testclient import TestClient

from modeling_pcbridge import PCBridgeConfig
from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from modeling_pcbridge.rdkit_molecules import mol_from_smiles
from modeling_pcbridge.rdkit_structures import rdkit_structures
from pcbridge.app.command_line import main
from pcbridge.app.default_model import find_model
from pcbridge.app.molecule_files import Molecule
from pcbridge.app.predict_records import predict
from pcbridge.app.prediction_settings import PredictionSettings
from pcbridge.app.web import server, visit
from pcbridge.app.web.about_model import about_model
from pcbridge.app.web.alignment import principal_frame
from pcbridge.app.web.references import canonical_smiles
from pcbridge.app.web.visit import Predictor
from pcbridge.evaluation.metrics import heavy_atom_rmsd

ROOT = Path(__file__).parent.parent
CHECKPOINT = find_model(None)
STATIC = ROOT / "pcbridge/app/web/static"
IBUPROFEN = "CC(C)Cc1ccc(cc1)[C@H](C)C(=O)O"


@pytest.fixture(scope="module")
def client():
    with TestClient(server.create_app(CHECKPOINT)) as client:
        yield client


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(CHECKPOINT)


def events(client, smiles: str, num_conformers: int = 3) -> list[dict]:
    response = client.post("/predict", json={"smiles": smiles, "num_conformers": num_conformers})
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def mol_of(conformer: dict) -> Chem.Mol:
    return Chem.MolFromMolBlock(conformer["sdf"], removeHs=False)


def field(conformer: dict, name: str) -> str:
    (value,) = re.findall(rf"<{name}>.*\n(.*)", conformer["sdf"])
    return value


def distances(positions) -> np.ndarray:
    positions = np.array(positions)
    return np.linalg.norm(positions[:, None] - positions[None], axis=-1)


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


def test_serving_is_for_this_machine_unless_asked_otherwise(monkeypatch):
    asked = []
    monkeypatch.setattr(server, "create_app", Path)
    monkeypatch.setattr(server, "run", lambda app, host, port: asked.append((app.name, host, port)))
    assert main(["serve"]) == main(["serve", "--host", "0.0.0.0", "--port", "80"]) == 0
    assert asked == [("drug_like", "127.0.0.1", 7860), ("drug_like", "0.0.0.0", 80)]


def test_third_party_files_are_the_published_ones():
    table = re.findall(r"^\| `([^`]+)` \|.*\| `(\w{64})` \|$", (STATIC / "vendor/README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in table} == {path.name for path in (STATIC / "vendor").glob("*.js")}
    for name, checksum in table:
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == checksum


def test_the_page_makes_the_ensemble_that_the_command_makes(client, predictor):
    molecule, *progress, result = events(client, IBUPROFEN, num_conformers=5)
    assert molecule["type"] == "molecule" and molecule["formula"] == "C13H18O2"
    assert len(molecule["symbols"]) == 33 and len(molecule["bonds"]) == 33
    assert molecule["level_of_theory"] == "B3LYP/6-31G*" and molecule["notes"] == [] and molecule["beyond"] == []
    assert [(event["type"], event["step"], event["num_steps"]) for event in progress] == [
        ("progress", step, 6) for step in range(7)
    ]
    record = Molecule("line 1", "", IBUPROFEN, mol_from_smiles(IBUPROFEN))
    [(expected, _)] = predict(predictor.pipeline, [record], PredictionSettings(num_conformers=5), batch_size=64)
    assert len(result["conformers"]) == len(expected) > 1
    for shown, prediction in zip(result["conformers"], expected, strict=True):
        assert shown["energy"] == pytest.approx(prediction.energy, abs=1e-3)
        assert shown["relative_energy"] * KCAL_PER_MOL_TO_EV == pytest.approx(prediction.relative_energy, abs=1e-3)
        assert shown["boltzmann_weight"] == pytest.approx(prediction.boltzmann_weight, abs=0.02)
        assert float(field(shown, "boltzmann_weight")) == shown["boltzmann_weight"]
        assert np.allclose(distances(shown["frames"][-1]), distances(prediction.positions), atol=2e-3)


def test_what_is_shown_is_what_the_model_says_of_the_file(client, predictor):
    """Conformers are rotated for the eye: structures and forces must have turned together."""
    *_, result = events(client, "OC(C)(C)CC#N")
    for conformer in result["conformers"]:
        mol = mol_of(conformer)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == "CC(C)(O)CC#N"
        assert np.allclose(mol.GetConformer().GetPositions(), conformer["frames"][-1], atol=2e-4)
        output = predictor.pipeline.model.predict_energy(**predictor.pipeline.processor(mol))
        # Coordinates in the file are rounded to 0.0001 angstrom.
        rounding = 1e-4 * np.abs(conformer["forces"]).sum()
        assert output.energy.item() == pytest.approx(conformer["energy"], abs=rounding)
        assert np.allclose(output.forces[0], conformer["forces"], atol=0.02)
        assert float(field(conformer, "energy_eV")) == pytest.approx(conformer["energy"], abs=1e-6)


def test_the_frames_lead_from_the_structure_of_rdkit(client):
    *_, result = events(client, IBUPROFEN)
    starts = [distances(s.GetConformer().GetPositions()) for s in rdkit_structures(mol_from_smiles(IBUPROFEN), 3, 10)]
    for conformer in result["conformers"]:
        first, *_, last = conformer["frames"]
        assert len(conformer["frames"]) == 7
        assert min(np.abs(distances(first) - start).max() for start in starts) < 1e-3
        assert 0 < conformer["moved"] < 0.1
        mol = mol_of(conformer)
        assert heavy_atom_rmsd(mol, np.array([first]), np.array(last))[0] == pytest.approx(conformer["moved"], abs=1e-3)


def test_conformers_lie_over_the_lowest_one(client):
    *_, result = events(client, IBUPROFEN, num_conformers=5)
    lowest, *others = result["conformers"]
    heavy = [atom.GetIdx() for atom in mol_of(lowest).GetAtoms() if atom.GetAtomicNum() > 1]
    target = np.array(lowest["frames"][-1])
    assert len(others) > 0
    spread = target.T @ target  # the lowest in its principal frame
    assert np.allclose(spread, np.diag(np.diag(spread)), atol=0.1) and np.all(np.diff(np.diag(spread)) < 0)
    for other in others:
        positions = np.array(other["frames"][-1])
        best = heavy_atom_rmsd(mol_of(lowest), positions[None], target)[0]
        # The best over the graph's symmetries: each atom lies as near as the one that it is matched with, or nearer.
        nearest = np.linalg.norm(positions[heavy][:, None] - target[heavy][None], axis=-1).min(1)
        assert np.sqrt(np.square(nearest).mean()) <= best + 1e-3


def test_the_reference_lies_over_the_prediction(client, predictor):
    molecule, *_, result = events(client, "Oc1ccccc1", num_conformers=2)
    assert molecule["reference_level_of_theory"] == "B3LYP/6-31G(2df,p)"
    reference, pipeline = predictor.references["Oc1ccccc1"], predictor.pipeline
    reference_energy = pipeline.model.predict_energy(**pipeline.processor(reference.mol)).energy.item()
    for conformer in result["conformers"]:
        compared = conformer["reference"]
        overlay, shown = np.array(compared["positions"]), np.array(conformer["frames"][-1])
        above = compared["energy_above"] * KCAL_PER_MOL_TO_EV
        assert conformer["energy"] - above == pytest.approx(reference_energy, abs=1e-3)
        rmsd = compared["rmsd"]
        assert rmsd < 0.02 and compared["rmsd_atoms"] == "heavy atoms"
        heavy = [symbol != "H" for symbol in compared["symbols"]]
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
        assert canonical_smiles(predictor.read(smiles)) == smiles


@pytest.mark.parametrize("smiles", ["O", "C", "C#N", "[NH4+]", "[H][H]"])
def test_the_smallest_molecules(client, smiles):
    *_, result = events(client, smiles)
    assert [conformer["boltzmann_weight"] for conformer in result["conformers"]] == [1.0]


def test_the_same_molecule_comes_out_the_same(client):
    """Mean shift from RDKit's structures with a fixed seed: nothing is drawn."""
    first, second = (events(client, "CCCO")[-1]["conformers"] for _ in range(2))
    assert first == second


def test_stereo_marks_hold(client):
    for conformer in events(client, "CC/C=C\\C")[-1]["conformers"]:
        mol = mol_of(conformer)
        Chem.AssignStereochemistryFrom3D(mol)
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == "C/C=C\\CC"


def test_the_examples_are_within_training_and_come_out(client):
    """Their bonds lie near those of MMFF94; most move in the zwitterion, in vacuum."""
    examples = re.findall(r'data-smiles="([^"]+)"', (STATIC / "index.html").read_text())
    assert len(examples) == 4
    for smiles in examples:
        molecule, *_, result = events(client, smiles, num_conformers=2)
        assert molecule["beyond"] == [] and ["vacuum" in note for note in molecule["notes"]] == [True] * ("+" in smiles)
        assert sum(conformer["boltzmann_weight"] for conformer in result["conformers"]) == pytest.approx(1)
        for conformer in result["conformers"]:
            first, last = (distances(conformer["frames"][k]) for k in (0, -1))
            shifts = [abs(first[i, j] - last[i, j]) for i, j, _ in molecule["bonds"]]
            assert 0 < np.mean(shifts) < 0.03 and np.max(shifts) < 0.12


def test_a_molecule_of_more_than_a_hundred_atoms(client):
    peptide = (
        "C[C@H](N)C(=O)N[C@@H](C)C(=O)N[C@@H](CCCCN)C(=O)N[C@@H](Cc1ccccc1)C(=O)N[C@@H](CC(C)C)C(=O)N[C@@H](CO)C(=O)"
    )
    molecule, *_, result = events(client, peptide + "N[C@@H](C(C)C)C(=O)O", num_conformers=1)
    assert len(molecule["symbols"]) == 110 and len(result["conformers"]) == 1 and result["seconds"] > 0


def test_what_is_beyond_the_training_data_is_noted_and_marked(client):
    molecule, *_, result = events(client, "FC(F)(F)C(F)(F)C(F)(F)OOC(=O)OC=C=C", num_conformers=1)
    (note,) = molecule["notes"]
    assert note.startswith("Take the prediction as an extrapolation: 2 of 18 heavy atoms (O10, C15) have surroundings")
    assert molecule["beyond"] == [10, 15] and [molecule["symbols"][i] for i in molecule["beyond"]] == ["O", "C"]
    assert field(result["conformers"][0], "beyond_training") in note


def test_the_page_says_of_its_model_what_its_configuration_says(client):
    drug_like = client.get("/model").json()
    assert drug_like["name"] == "drug_like"
    facts = dict(drug_like["facts"])
    assert facts["Level of theory"] == "B3LYP/6-31G*, which is shown; it also knows GFN2-xTB"
    assert facts["Elements"] == "H, C, N, O, F, P, S, Cl, Br, I" and facts["Forces"] == "learned"
    assert facts["Total charges"] == "-2, -1, 0, +1, +2; others are refused"
    coverage = PCBridgeConfig.from_pretrained(CHECKPOINT).coverage
    assert f"structures of molecules of up to {coverage.largest_structure} heavy atoms;" in facts["Trained on"]
    assert f"energies or forces of molecules of up to {coverage.largest_labelled} heavy" in facts["Trained on"]
    assert f"{len(coverage.labelled_environments):,} different surroundings" in facts["Trained on"]

    qm9 = dict(about_model("qm9", PCBridgeConfig.from_pretrained(find_model("qm9")))["facts"])
    assert qm9["Level of theory"] == "B3LYP/6-31G(2df,p)" and qm9["Elements"] == "H, C, N, O, F"
    assert qm9["Forces"].startswith("not learned") and "up to 9 heavy atoms" in qm9["Trained on"]
    bare = dict(about_model("bare", PCBridgeConfig(dispersion="d3bj"))["facts"])
    assert bare["Level of theory"] == "B3LYP-D3(BJ)/6-31G*, which is shown; it also knows B3LYP/6-31G*"
    assert bare["Forces"] == bare["Total charges"] == bare["Trained on"] == "the model does not say"


def test_the_page_states_the_limits_that_hold():
    page = re.sub(r"\s+", " ", (STATIC / "index.html").read_text())
    assert f"Up to {visit.MAX_ATOMS} atoms with hydrogens and {visit.MAX_SECONDS:.0f} seconds." in page
    assert f'maxlength="{visit.MAX_SMILES_LENGTH}"' in page
    choices = [int(number) for number in re.findall(r"<option[^>]*>(\d+)</option>", page)]
    assert max(choices) == visit.MAX_CONFORMERS and min(choices) == 1


@pytest.mark.parametrize(
    ("smiles", "sentence"),
    [
        ("", "The SMILES is empty."),
        ("C1CC", "RDKit cannot parse the SMILES."),
        ("C[SiH3]", "Unsupported element Si; this model knows H, C, N, O, F, P, S, Cl, Br, I."),
        ("CO.CO", "The molecule is disconnected (several fragments)."),
        ("C[CH2]", "The molecule is a radical; only closed-shell molecules are supported."),
        ("C*", "The molecule has a dummy atom ('*')."),
        ("C" * 50, "The molecule has 152 atoms, hydrogens included; this page takes up to 150."),
        ("C" * 501, "The SMILES has 501 characters; this page takes up to 500."),
    ],
)
def test_bad_input_is_named_in_one_sentence(client, smiles, sentence):
    response = client.post("/predict", json={"smiles": smiles, "num_conformers": 1})
    assert response.status_code == 422 and response.json() == {"error": sentence}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        ('{"smiles": "C", "num_conformers": 21}', {}, 400),
        ('{"smiles": "C", "num_conformers": 0}', {}, 400),
        ('{"smiles": ["C"], "num_conformers": 1}', {}, 400),
        ("[[[", {}, 400),
        ("[" * 4000, {}, 400),
        ('{"smiles": "C", "num_conformers": 21}', {"content-type": "application/json; charset=utf-8"}, 400),
        ('{"smiles": "' + "C" * 5000 + '", "num_conformers": 1}', {}, 413),
        ('{"smiles": "C", "num_conformers": 1}', {"content-type": "text/plain"}, 415),
    ],
)
def test_requests_that_the_page_would_not_send(client, content, headers, status):
    response = client.post("/predict", content=content, headers={"content-type": "application/json", **headers})
    assert response.status_code == status and response.json()["error"].endswith(".")


def test_a_prediction_that_takes_too_long_ends(client, monkeypatch):
    monkeypatch.setattr(visit, "MAX_SECONDS", 0.0)
    for smiles in ("CCO", "C1C2CC1=C2"):  # of the second RDKit has no conformer, so that it is drawn from noise
        last = events(client, smiles)[-1]
        assert last["type"] == "error" and "took more than 0 seconds" in last["message"]


def test_what_rdkit_cannot_make_ends_in_a_sentence(client):
    last = events(client, "C1C2CC1=C2", num_conformers=1)[-1]  # no room for its double bond
    assert last["type"] == "error" and last["message"].startswith("No sound structure (RDKit: no conformer")


def test_a_full_queue_turns_visitors_away(client, monkeypatch):
    monkeypatch.setattr(server, "MAX_WAITING", -server.num_cores())
    response = client.post("/predict", json={"smiles": "C", "num_conformers": 1})
    assert response.status_code == 503 and "try again in a moment" in response.json()["error"]


class SlowPredictor:
    """Emits until it is released or told that nobody reads; keeps in which order predictions began."""

    def __init__(self):
        self.released = threading.Event()
        self.began: list[str] = []
        self.running = self.most_running = 0

    def predict(self, mol, num_conformers, emit):
        self.began.append(mol)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            while not self.released.wait(0.01):
                emit({"type": "step"})
        finally:
            self.running -= 1


@pytest.mark.parametrize("at_once", [1, 2])
def test_predictions_begin_in_the_order_of_their_visitors_and_end_with_them(at_once):
    predictor = SlowPredictor()

    async def next_of(stream) -> dict:
        return json.loads(await asyncio.wait_for(anext(stream), 5))

    async def scenario():
        queue = server.PredictionQueue(predictor, at_once)
        streams = []
        for number in range(at_once + server.MAX_WAITING):
            assert not queue.is_full
            streams.append(queue.stream(str(number), 1))
            expected = {"type": "step"} if number < at_once else {"type": "waiting", "ahead": number - at_once + 1}
            assert await next_of(streams[-1]) == expected
        assert queue.is_full
        last, second = streams.pop(), streams.pop(at_once + 1)
        await second.aclose()  # one that waits leaves
        while (event := await next_of(last)) == {"type": "waiting", "ahead": server.MAX_WAITING}:
            pass  # of those that came after it
        assert event == {"type": "waiting", "ahead": server.MAX_WAITING - 1}
        await streams.pop(0).aclose()  # and one that runs
        assert await next_of(last) == {"type": "waiting", "ahead": server.MAX_WAITING - 2}
        assert not queue.is_full
        predictor.released.set()
        for stream in [*streams, last]:
            async for _ in stream:
                pass
        assert queue._unfinished == []

    asyncio.run(scenario())
    assert predictor.most_running == at_once
    numbers = [str(number) for number in range(at_once + server.MAX_WAITING) if number != at_once + 1]
    assert sorted(predictor.began, key=int) == numbers
    assert all(abs(predictor.began.index(number) - k) < at_once for k, number in enumerate(numbers))


def test_the_page_answers_while_all_visitors_compute(client):
    """RDKit and torch let go of the interpreter, or files would wait until a prediction is over."""
    smiles = "CCCc1nn(C)c2c1nc([nH]c2=O)-c1cc(ccc1OCC)S(=O)(=O)N1CCN(C)CC1"
    ends: list[float] = []

    def visit_page():
        assert events(client, smiles, num_conformers=2)[-1]["type"] == "result"
        ends.append(time.monotonic())

    visitors = [threading.Thread(target=visit_page) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    answered = []
    while any(visitor.is_alive() for visitor in visitors):
        before = time.monotonic()
        assert client.get("/style.css").status_code == 200
        answered.append(time.monotonic())
        assert answered[-1] - before < 2
    for visitor in visitors:
        visitor.join()
    assert len(ends) == 4 and sum(time < min(ends) for time in answered) > 3


def test_the_lowest_conformer_is_drawn_in_its_principal_frame():
    positions = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    positions = (positions - positions.mean(0)) * [1.0, 3.0, 2.0]
    turned = principal_frame(positions)
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
