"""The released checkpoints give what they gave: energies, forces and structures as plain numbers.

Of the small models as at commit 3eedd51; structures, and what is computed of them, are of later: since time steps are
embedded in float64 and the sampler's table is too, 6e-6 angstrom off. Of `drug_like` as at its last release.

python -m tests.test_gold_values        # writes tests/data/gold_values.json anew; only where a change is meant
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
GOLD = Path(__file__).parent / "data/gold_values.json"
SMALL_MODELS = ("multi-task", "consistency", "qm9")
# Stereo marks, charges, a ring, a triple bond, three atoms only.
SMILES = ("C[C@H](N)C(=O)O", "F/C=C\\F", "[NH3+]CC(=O)[O-]", "c1ccoc1", "CC#N", "O")


def loaded(name: str) -> PCBridgeModel:
    """In float64, so that another processor's order of sums shows in the last digits only."""
    return PCBridgeModel.from_pretrained(CHECKPOINTS / name).double()


def predictions(name: str) -> dict[str, list]:
    """Structures in angstrom by two methods from noise of a seed, and energies (eV) and forces of the first."""
    model = loaded(name)
    inputs = dict(PCBridgeProcessor.from_pretrained(CHECKPOINTS / name)(list(SMILES)))
    generator = torch.Generator().manual_seed(0)
    sampled = model.predict_structure(**inputs, num_inference_steps=10, generator=generator, max_attempts=1).positions[
        :, 0
    ]
    shifted = model.predict_structure(
        **inputs, positions=sampled, method="mean_shift", num_inference_steps=5, relaxation_steps=0
    ).positions[:, 0]
    output = model.predict_energy(**inputs, positions=sampled)
    results = {"sampled": sampled, "mean_shift": shifted, "energy": output.energy, "forces": output.forces}
    return {key: tensor.tolist() for key, tensor in results.items()}


def refinements(starts: list | None) -> dict[str, list]:
    """Of `drug_like`, from `starts` (B, N, 3), or RDKit's structures: by default and corrected; E at both levels."""
    model = loaded("drug_like")
    inputs = dict(PCBridgeProcessor.from_pretrained(CHECKPOINTS / "drug_like")(list(SMILES), embed=True))
    inputs["positions"] = inputs["positions"].double() if starts is None else torch.tensor(starts, dtype=torch.float64)
    results = {"starts": inputs["positions"]}
    for method in ("mean_shift", "correct"):
        results[method] = model.predict_structure(**inputs, method=method).positions[:, 0]
    for level in model.config.energy_levels_of_theory:
        output = model.predict_energy(**inputs, level_of_theory=level)
        results |= {f"energy, {level}": output.energy, f"forces, {level}": output.forces}
    return {key: tensor.tolist() for key, tensor in results.items()}


def check(values: dict[str, list], expected: dict[str, list]) -> None:
    assert values.keys() == expected.keys()
    for key in values:
        np.testing.assert_allclose(values[key], expected[key], rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_released_checkpoints_give_what_they_gave(name):
    check(predictions(name), json.loads(GOLD.read_text())[name])


def test_drug_like_gives_what_it_gave():
    expected = json.loads(GOLD.read_text())["drug_like"]
    check(refinements(expected["starts"]), expected)


if __name__ == "__main__":
    gold = {name: predictions(name) for name in SMALL_MODELS} | {"drug_like": refinements(None)}
    GOLD.write_text(json.dumps(gold) + "\n")
