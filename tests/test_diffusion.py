"""The schedule against its closed form, the score against a Gaussian's, the sampler against an exact case."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model

from modeling_pcbridge import PCBridgeModel, graph_batch
from modeling_pcbridge.diffusion import DiffusionSchedule, centred_noise
from modeling_pcbridge.molecular_graph import signed_volumes

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "consistency"


@pytest.fixture
def schedule() -> DiffusionSchedule:
    return DiffusionSchedule(1000, 1e-4, 2e-2, length_unit=1.0)


def gaussian_model(position_std: float = 1.0) -> PCBridgeModel:
    """Without displacements the model is the exact denoiser of N(0, position_std^2); its layers are left out."""
    model = small_model(position_std=position_std)
    model.encoder.forward = lambda *_: (None, None)
    model.structure_decoder.forward = lambda graph, node_features, pairs, inputs: torch.zeros_like(inputs)
    return model


def test_schedule_against_its_closed_form(schedule):
    product = 1.0
    assert schedule.alphas_cumprod[0] == 1.0
    for t in range(1, 1001):
        x = -6 + 12 * (t - 1) / 999
        product *= 1 - (1e-4 + (2e-2 - 1e-4) / (1 + math.exp(-x)))
        assert math.isclose(schedule.alphas_cumprod[t].item(), product, rel_tol=1e-9)


def test_schedule_against_published_values(schedule):
    # Stated for this schedule in the project's description of the method.
    for t, expected, rounding in ((5, 0.9993, 1e-4), (100, 0.981, 1e-3), (300, 0.844, 1e-3), (400, 0.624, 1e-3)):
        assert abs(schedule.alphas_cumprod[t].item() - expected) < rounding
    assert abs(schedule.alphas_cumprod[700].item() - 0.015) < 1e-3


def test_add_noise_and_its_unit_of_length():
    schedule = DiffusionSchedule(1000, 1e-4, 2e-2, length_unit=2.0)
    timesteps = torch.tensor([0, 300])
    positions, noise = torch.ones(2, 3, 3, dtype=torch.float64), torch.full((2, 3, 3), 0.5, dtype=torch.float64)
    noisy = schedule.add_noise(positions, noise, timesteps)
    abar = schedule.alphas_cumprod[300].item()
    assert torch.equal(noisy[0], positions[0])
    expected = math.sqrt(abar) + math.sqrt(1 - abar) * 2.0 * 0.5
    torch.testing.assert_close(noisy[1], torch.full((3, 3), expected, dtype=torch.float64))


def test_score_of_gaussian_data(schedule):
    """For R_0 ~ N(0, s^2) the posterior mean is known, and Eq. 4 must give the score of N(0, abar s^2 + 1 - abar)."""
    s, t = 1.7, torch.tensor([250])
    abar = schedule.alphas_cumprod[250]
    noisy = torch.randn(1, 5, 3, dtype=torch.float64)
    posterior_mean = abar.sqrt() * s**2 / (abar * s**2 + 1 - abar) * noisy
    torch.testing.assert_close(schedule.score(posterior_mean, noisy, t), -noisy / (abar * s**2 + 1 - abar))


def test_centred_noise_has_unit_variance_in_the_centred_subspace():
    mask = torch.ones(4000, 5, dtype=torch.bool)
    mask[:, 4] = False
    noise = centred_noise(mask, torch.float64, torch.Generator().manual_seed(0))
    assert (noise[:, 4] == 0).all() and noise.sum(1).abs().max() < 1e-12
    # 4 atoms: 3 x 3 degrees of freedom per molecule; the mean square over 36,000 of them is 1 within 4 sigma.
    assert abs(noise.square().sum().item() / (4000 * 9) - 1) < 4 * math.sqrt(2 / 36000)


@pytest.mark.parametrize(("position_std", "eta", "steps"), [(0.7, 0.0, 100), (1.3, 0.0, 100), (1.3, 1.0, 250)])
def test_sampler_recovers_an_exact_gaussian(processor, position_std, eta, steps):
    """With no displacement the preconditioned model is the exact denoiser of N(0, position_std^2)."""
    model = gaussian_model(position_std)
    graph = dict(processor(["O"]))
    samples = model.predict_structure(
        **graph,
        num_inference_steps=steps,
        num_samples=1200,
        eta=eta,
        max_attempts=1,
        generator=torch.Generator().manual_seed(0),
    ).positions
    assert samples.shape == (1, 1200, 3, 3)
    measured = math.sqrt(samples.square().sum().item() / (1200 * 2 * 3))
    # 7,200 degrees of freedom: 0.8 % of sampling noise (one sigma); the error of the steps is below that.
    assert abs(measured / position_std - 1) < 0.03


def test_fewer_steps_follow_the_same_trajectory(processor):
    """DDIM is deterministic: from the same noise, 100 and 200 steps of the exact denoiser end close together."""
    model = gaussian_model()
    graph = dict(processor(["CCO"]))
    ends = [
        model.predict_structure(
            **graph, num_inference_steps=steps, eta=0.0, generator=torch.Generator().manual_seed(3)
        ).positions
        for steps in (100, 200)
    ]
    assert (ends[0] - ends[1]).abs().max() < 0.03


def test_bad_requests_name_the_argument(model, graph):
    for arguments, word in (
        ({"method": "euler"}, "method"),
        ({"method": "refine"}, "refine needs positions"),
        ({"method": "mean_shift"}, "mean_shift needs positions"),
        ({"mean_shift_steps": -1}, "mean_shift_steps"),
        ({"eta": 1.5}, "eta"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 1.5}, "num_samples must be a whole number"),
        ({"num_inference_steps": 20.0}, "num_inference_steps must be a whole number"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"generator": 0}, "generator must be one"),
        ({"num_inference_steps": 1}, "num_inference_steps of ddim must lie in 2..1000"),
        ({"num_inference_steps": 600}, "leave out the noisiest 400 of 1000 time steps; take 500 or 1000"),
    ):
        with pytest.raises(ValueError, match=word):
            model.predict_structure(**graph, **arguments)


def test_mean_shift_contracts_a_gaussian_to_its_centre(processor):
    """The denoiser of Gaussian data is exact without the network: each step multiplies by c_skip of its time."""
    model = small_model(hidden_size=8, vector_size=8, num_hidden_layers=1)
    torch.nn.init.zeros_(model.structure_decoder.displacement.weight)
    positions = [[5.0, 0.0, 0.0], [5.96, 0.0, 0.0], [4.76, 0.93, 0.0]]
    inputs = dict(processor([([8, 1, 1], positions)]))
    start = inputs["positions"] - inputs["positions"].mean(1, keepdim=True)
    shifted = model.predict_structure(**inputs, method="mean_shift", num_inference_steps=5).positions[:, 0]
    # Geometrically from refinement_timestep, 30, to 3.
    timesteps = torch.tensor([30, 17, 9, 5, 3])
    factor = model.diffusion.preconditioning(timesteps, model.config.position_std_of(3))[1].prod().item()
    torch.testing.assert_close(shifted, factor * start.to(shifted.dtype), rtol=1e-5, atol=1e-6)
    # From where to where is a matter of the checkpoint.
    model.config.mean_shift_timesteps = [400, 100]
    from_config = model.predict_structure(**inputs, method="mean_shift", num_inference_steps=3).positions[:, 0]
    of_config = model.diffusion.preconditioning(torch.tensor([400, 200, 100]), model.config.position_std_of(3))[1]
    torch.testing.assert_close(from_config, of_config.prod().item() * start.to(shifted.dtype), rtol=1e-5, atol=1e-6)
    # And so is in how many steps, unless that is said.
    for ends, number in (([8, 1], 5), ([30, 3], 20), ([60, 3], 20), ([1, 1], 1)):
        model.config.mean_shift_timesteps = ends
        by_itself = model.predict_structure(**inputs, method="mean_shift").positions
        said = model.predict_structure(**inputs, method="mean_shift", num_inference_steps=number).positions
        more = model.predict_structure(**inputs, method="mean_shift", num_inference_steps=number + 1).positions
        assert (by_itself == said).all() and (by_itself != more).any()
    model.config.mean_shift_timesteps = None
    # After sampling it is the same steps again.
    options = {"num_inference_steps": 3, "eta": 0.0}
    drawn, then_shifted = (
        model.predict_structure(
            **inputs, **options, mean_shift_steps=steps, generator=torch.Generator().manual_seed(0)
        ).positions
        for steps in (0, 5)
    )
    torch.testing.assert_close(then_shifted, factor * drawn, rtol=1e-5, atol=1e-6)


def test_what_fails_a_check_is_drawn_again(processor):
    """A fifth of this model's samples have the wrong handedness: five attempts leave none."""
    model = PCBridgeModel.from_pretrained(CHECKPOINT)
    graph = dict(processor(["C[C@H](N)CO"]))
    shares = []
    for attempts in (1, 5):
        output = model.predict_structure(
            **graph,
            num_samples=20,
            mean_shift_steps=5,
            max_attempts=attempts,
            generator=torch.Generator().manual_seed(0),
        )
        volumes = signed_volumes(output.positions[0].numpy(), graph["stereo_quadruples"][0].numpy())
        obeyed = (volumes > 0).all(-1)
        assert obeyed[output.is_sound[0].numpy()].all()
        assert [not faults for faults in output.faults[0]] == output.is_sound[0].tolist()
        assert all("handedness" in output.faults[0][k][0] for k in np.flatnonzero(~obeyed))
        shares.append(output.is_sound[0].double().mean().item())
    assert 0.5 < shares[0] < 1 and shares[1] == 1


def test_each_step_is_told_with_its_samples(processor):
    """What is told changes nothing, ends in the structures that are returned, also of those drawn again."""
    model = small_model(hidden_size=8, vector_size=8, num_hidden_layers=1)
    graph = dict(processor(["C[C@H](N)O", "CC"]))
    told = torch.full((2 * 8, 4, *graph["atomic_numbers"].shape[1:], 3), torch.nan, dtype=torch.float64)
    calls = []

    def on_step(rows, step, positions):
        calls.append((len(rows), step))
        told[rows, step] = positions

    def sample(**options):
        options |= {"num_inference_steps": 3, "num_samples": 8, "generator": torch.Generator().manual_seed(0)}
        return model.predict_structure(**graph, **options)

    output = sample(on_step=on_step)
    assert torch.equal(output.positions, sample().positions)
    assert torch.equal(told[:, 3].unflatten(0, (2, 8)), output.positions) and told.isfinite().all()
    assert calls[:4] == [(16, 0), (16, 1), (16, 2), (16, 3)]
    assert len(calls) == 5 * 4  # an untrained model draws nothing sound

    calls.clear()
    graph["positions"] = torch.randn(*graph["atomic_numbers"].shape, 3, generator=torch.Generator().manual_seed(0))
    output = sample(method="mean_shift", on_step=on_step)
    assert torch.equal(told[:, 3].unflatten(0, (2, 8)), output.positions) and calls == [(16, k) for k in range(4)]
    told = torch.full_like(told[:, :1].expand(-1, 5, -1, -1), torch.nan).contiguous()
    output = sample(method="mean_shift", relaxation_steps=2, on_step=on_step)
    assert torch.equal(told[:, 4].unflatten(0, (2, 8)), output.positions) and not torch.equal(told[:, 3], told[:, 4])
    forced = {"relaxation_steps": "converged", "allow_unlearned_forces": True}
    output = sample(method="mean_shift", on_step=on_step, **forced)
    assert torch.equal(told[:, 4].unflatten(0, (2, 8)), output.positions) and not torch.equal(told[:, 3], told[:, 4])

    def denoised(eta):
        generator = torch.Generator().manual_seed(0)
        return model.predict_structure(**graph, method="denoising", eta=eta, generator=generator).positions

    assert torch.equal(denoised(0.0), denoised(1.0))  # it has no reverse step that takes noise

    def stop(rows, step, positions):
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        sample(on_step=stop)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_refinement_stays_near_its_start(processor, eta):
    """Noise of refinement_timestep is added and removed: an exact broad-Gaussian denoiser keeps the structure."""
    model = gaussian_model(position_std=100.0)
    inputs = dict(processor([([8, 1, 1], [[5.0, 0.0, 0.0], [5.96, 0.0, 0.0], [4.76, 0.93, 0.0]])]))
    refined = model.predict_structure(
        **inputs, method="refine", num_samples=200, eta=eta, generator=torch.Generator().manual_seed(0)
    ).positions
    moved = refined - (inputs["positions"] - inputs["positions"].mean(1, keepdim=True)).unsqueeze(1)
    sigma = (1 / model.diffusion.signal_to_noise(torch.tensor([29]))).sqrt().item()  # 29: the grid of 15 steps
    # The denoiser of a broad prior returns what it sees. Deterministic: the added noise stays (two of three atoms'
    # worth is free after centring). Ancestral: up to as much again is drawn from the posterior.
    added = sigma * (2 / 3) ** 0.5
    ratio = moved.square().mean().sqrt().item() / added
    assert ratio == pytest.approx(1.0, rel=0.1) if eta == 0 else 1.1 < ratio < 2**0.5


def test_many_samples_are_drawn_in_turns_and_are_the_same(monkeypatch, processor):
    """Turns of three rows; stereo marks, so that some are drawn again."""
    model = small_model()
    graph = processor(["C[C@H](O)N", "CO"])
    options = {"num_samples": 8, "num_inference_steps": 3, "relaxation_steps": 1}
    whole = model.predict_structure(**graph, **options, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(graph_batch, "_PAIRS_AT_ONCE", 3 * graph["atom_mask"].shape[1] ** 2)
    turns = model.predict_structure(**graph, **options, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turns.positions, whole.positions)
    assert torch.equal(turns.is_sound, whole.is_sound)

    many = {key: tensor.repeat_interleave(8, 0) for key, tensor in graph.items()}
    positions = whole.positions.flatten(0, 1)
    in_turns = model.predict_energy(**many, positions=positions)
    monkeypatch.undo()
    at_once = model.predict_energy(**many, positions=positions)
    torch.testing.assert_close((in_turns.energy, in_turns.forces), (at_once.energy, at_once.forces))
