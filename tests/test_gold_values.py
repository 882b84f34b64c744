"""The released checkpoints give what they gave at commit 3eedd51: energies, forces and structures as plain numbers.

Structures, and what is computed of them, are of later: since time steps are embedded in float64, 4e-6 angstrom off.

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
NAMES = ("multi-task", "consistency", "qm9")
# Stereo marks, charges, a ring, a triple bond, three atoms only.
SMILES = ("C[C@H](N)C(=O)O", "F/C=C\\F", "[NH3+]CC(=O)[O-]", "c1ccoc1", "CC#N", "O")


def predictions(name: str) -> dict[str, list]:
    """Structures in angstrom by two methods from noise of a seed, and energies (eV) and forces of the first."""
    # In float64, so that another processor's order of sums shows in the last digits only.
    model = PCBridgeModel.from_pretrained(CHECKPOINTS / name).double()
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


@pytest.mark.parametrize("name", NAMES)
def test_released_checkpoints_give_what_they_gave(name):
    expected = json.loads(GOLD.read_text())[name]
    for key, values in predictions(name).items():
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=1e-6, err_msg=f"{name}, {key}")


if __name__ == "__main__":
    GOLD.write_text(json.dumps({name: predictions(name) for name in NAMES}) + "\n")
