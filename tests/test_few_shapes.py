"""Batches in few shapes give the gradients of any other batches, and captured passes what they are of."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import FORMS, bundled_examples, small_model

from modeling_pcbridge import LossSettings
from modeling_pcbridge.errors import InputError
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.cuda_graphs import CapturedPasses, _Captured
from pcbridge.training.data import collate_in_parts
from pcbridge.training.few_shapes import in_few_shapes
from pcbridge.training.update import LOSSES, add_gradients, count_labels

ENERGIES = LossSettings(force_weight=0.5, force_form="norm", denoising_weight=0.0)


def stage_of(losses: LossSettings) -> StageConfig:
    return StageConfig(1, 1e-3, 0, [], losses)


@pytest.fixture(scope="module")
def examples():
    minima = bundled_examples("pm6", "train", 45, only_labelled=True)
    return [*minima, *bundled_examples("pm6_displaced", "train", 20), *bundled_examples("drug_like", "validation", 9)]


def gradient_of(model, parts, losses: LossSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the losses over all parts, and the losses."""
    accelerator = Accelerator(cpu=True)
    model.zero_grad()
    batches = [batch for batch, _ in parts]
    counts = count_labels(batches, accelerator)
    totals = torch.zeros(len(LOSSES))
    for batch in batches:
        generator = torch.Generator().manual_seed(0)
        totals += add_gradients(model, stage_of(losses), accelerator, batch, counts, generator)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), totals


def test_gradients_do_not_know_of_the_padding(examples):
    """Neither the atoms nor the rows that fill a batch up are seen by energies and forces; float64."""
    model = small_model(**FORMS["extensive"], energy_levels_of_theory=["B3LYP/6-31G*", "GFN2-xTB"])
    expected, losses = gradient_of(model, collate_in_parts(examples, None), ENERGIES)
    found, of_few = gradient_of(model, in_few_shapes(examples), ENERGIES)
    torch.testing.assert_close(of_few, losses, rtol=1e-6, atol=1e-6)
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_structures_do_not_know_of_the_padding(examples):
    model = small_model(**FORMS["extensive"])
    [example] = [e for e in examples if e.is_equilibrium and len(e.graph.stereo_quadruples)][:1]
    noise = torch.randn(1, example.graph.num_atoms, 3, generator=torch.Generator().manual_seed(0)).double()
    denoised = []
    for [(batch, _)] in (collate_in_parts([example], None), in_few_shapes([example])):
        graph = GraphBatch(**{key: batch[key][-1:] for key in GRAPH_KEYS})  # rows that fill up come first
        noisy = torch.zeros(1, batch["positions"].shape[1], 3, dtype=torch.float64)
        noisy[:, : noise.shape[1]] = noise
        denoised.append(model.denoise(graph, noisy, torch.tensor([300]))[:, : noise.shape[1]])
    torch.testing.assert_close(*denoised)


def test_every_row_is_there_once_and_fillers_have_no_labels(examples):
    parts = in_few_shapes(examples)
    labelled = Counter()
    for batch, ids in parts:
        assert len(ids) == len(batch["positions"])
        counts = batch["has_energy"] | batch["has_forces"] | batch["is_equilibrium"]
        labelled.update(name for name, count in zip(ids, counts.tolist(), strict=True) if count)
        rows = batch["label_rows"]
        outside = torch.ones(len(ids), dtype=torch.bool)
        outside[rows.structures] = False
        assert not batch["is_equilibrium"][outside].any()
        outside[:] = True
        outside[rows.labelled] = False
        assert not (batch["has_energy"] | batch["has_forces"])[outside].any()
    assert labelled == Counter(example.molecule_id for example in examples)


def test_shapes_are_few(examples):
    drawn = np.random.default_rng(0)
    shapes = set()
    for _ in range(30):
        chosen = [examples[place] for place in drawn.choice(len(examples), 48, replace=False)]
        for batch, _ in in_few_shapes(chosen):
            shapes.add((*batch["pair_types"].shape, batch["torsion_quadruples"].shape[1], str(batch["label_rows"])))
            assert batch["positions"].shape[1] in (24, 56, 96)
    assert len(shapes) < 15


class Recorded(CapturedPasses):
    """Runs again what it would replay, on the tensors that a graph would read."""

    def _capture(self, tensors, rows, counts):
        batch = {name: tensor.clone() for name, tensor in tensors.items()}
        of_counts = {name: tensor.clone() for name, tensor in counts.items()}
        output, passes, generator = torch.zeros(len(LOSSES)), self.passes, torch.Generator()
        self.num_captures = getattr(self, "num_captures", 0) + 1

        class Graph:
            def replay(self):
                output.copy_(passes({**batch, "label_rows": rows}, of_counts, generator))

        return _Captured(Graph(), generator, [*batch.values(), *of_counts.values()], output)


class Failing(CapturedPasses):
    """As where an operation waits for the host."""

    def _capture(self, tensors, rows, counts):
        raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing\nand much more")


@pytest.mark.parametrize("kind", [Recorded, Failing])
def test_captured_passes_see_each_batch_its_counts_and_its_noise(kind, examples, monkeypatch, caplog):
    """Six batches of one shape: two run as they are, the others by one capture, with the gradients of each.

    Where capture fails all run as they are.
    """
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    accelerator, model = Accelerator(cpu=True), small_model()
    passes = partial(add_gradients, model, stage_of(LossSettings(denoising_weight=0.1)), accelerator)
    captured = kind(passes, torch.device("cpu"))
    minima = examples[:45]
    batches = [in_few_shapes(minima[start : start + 20])[0][0] for start in (0, 5, 10, 15, 20, 25)]
    assert len({batch["positions"].shape for batch in batches}) == 1
    for seed, batch in enumerate(batches):
        counts = count_labels([batch], accelerator)
        gradients = []
        for run in (partial(captured, seed=seed), lambda b, c: passes(b, c, torch.Generator().manual_seed(seed))):  # noqa: B023
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            totals = run(batch, counts).clone()
            gradients.append((totals, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(*gradients)
    if kind is Recorded:
        assert captured.num_captures == 1 and not caplog.records
    else:
        [warning] = caplog.messages
        assert warning.endswith(
            "not captured as a CUDA graph and take longer: CUDA error: operation not permitted when stream is capturing"
        )


def test_what_does_not_go_together_is_refused():
    for others in ({"compile": True}, {"noise_device": "cpu"}):
        with pytest.raises(InputError, match="cuda_graphs"):
            TrainingConfig(stage_of(ENERGIES), None, cuda_graphs=True, **others)
