"""The released checkpoints give what they gave at commit 3eedd51: energies, forces and structures as plain numbers.

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


def predictions(name: str, known: list | None = None) -> dict[str, list]:
    """Structures in angstrom from noise of a seed; mean shift, energies (eV) and forces of them, or of `known`."""
    # In float64, so that another processor's order of sums shows in the last digits only.
    model = PCBridgeModel.from_pretrained(CHECKPOINTS / name).double()
    inputs = dict(PCBridgeProcessor.from_pretrained(CHECKPOINTS / name)(list(SMILES)))
    generator = torch.Generator().manual_seed(0)
    sampled = model.predict_structure(**inputs, num_inference_steps=10, generator=generator, max_attempts=1).positions[
        :, 0
    ]
    of = sampled if known is None else torch.tensor(known, dtype=torch.float64)
    shifted = model.predict_structure(
        **inputs, positions=of, method="mean_shift", num_inference_steps=5, relaxation_steps=0
    ).positions[:, 0]
    output = model.predict_energy(**inputs, positions=of)
    results = {"sampled": sampled, "mean_shift": shifted, "energy": output.energy, "forces": output.forces}
    return {key: tensor.tolist() for key, tensor in results.items()}


@pytest.mark.parametrize("name", NAMES)
def test_released_checkpoints_give_what_they_gave(name):
    expected = json.loads(GOLD.read_text())[name]
    for key, values in predictions(name, expected["sampled"]).items():
        # Ten steps from noise carry what processors round differently on to 1e-5 angstrom.
        tolerance = 1e-4 if key == "sampled" else 1e-6
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=tolerance, err_msg=f"{name}, {key}")


if __name__ == "__main__":
    GOLD.write_text(json.dumps({name: predictions(name) for name in NAMES}) + "\n")
