"""The evaluation of a model: what its rows are, by the model itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model

from modeling_pcbridge.graph_batch import pad_graphs, pad_positions
from modeling_pcbridge.modeling_pcbridge import PCBridgeModel
from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.evaluation.evaluate import evaluate_energy, evaluate_model
from pcbridge.evaluation.references import graphs_for, load_references, pm6_structures

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "drug_like"


def test_mean_shift_takes_as_many_steps_as_predictions_of_the_same_model():
    """Five for this one, by its config."""
    model = PCBridgeModel.from_pretrained(CHECKPOINT).eval()
    evaluation = EvaluationConfig(split="validation", max_molecules=1, num_samples=1, num_inference_steps=2)
    evaluated = evaluate_model(model, evaluation, seed=0)["per_molecule"]["mean_shift"]["first_sample"]
    references = load_references(evaluation)
    graphs = graphs_for(model, references)
    starts = pad_positions([pm6_structures(evaluation)(reference)[0] for reference in references])
    predicted = model.predict_structure(**pad_graphs(graphs), positions=starts, method="mean_shift").positions
    np.testing.assert_allclose(evaluated[0], predicted[0, 0].numpy(), atol=1e-5)


def test_only_molecules_of_elements_that_a_model_has_learned_are_evaluated():
    model = small_model(supported_elements=[1, 6, 8], dtype=torch.float32)
    everything = EvaluationConfig(split="validation", max_molecules=None, num_samples=1)
    known = load_references(everything, model.config.supported_elements)
    assert 0 < len(known) < len(load_references(everything))
    assert {int(z) for reference in known for z in reference.example.graph.atomic_numbers} == {1, 6, 8}
    count = evaluate_energy(model, everything)["pm6_num_structures"]
    assert 0 < count < evaluate_energy(small_model(dtype=torch.float32), everything)["pm6_num_structures"]
    with pytest.raises(ValueError, match=r"consists of atomic numbers \[15\]"):
        load_references(everything, [15])
