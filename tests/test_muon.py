"""Muon in batches of equal shapes is torch's Muon, in fewer operations."""

import copy

import torch

from benchmarks.gpu.counts import count
from pcbridge.training.muon import BatchedMuon

SHAPES = [(8, 8), (8, 8), (24, 8), (8, 17), (8, 17), (8, 17)]
OPTIONS = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}


def test_batched_muon_is_torchs():
    torch.manual_seed(0)
    ones = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    others, start = copy.deepcopy(ones), copy.deepcopy(ones)
    optimizers = torch.optim.Muon(ones, **OPTIONS), BatchedMuon(others, **OPTIONS)
    for number in range(3):
        for one, other in zip(ones, others, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ones[number].grad = others[number].grad = None  # a loss that does not reach all
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(ones, others, start, strict=True):
        # bfloat16 has 8 bits; the order of sums is that of the machine's matrix products.
        assert (one - other).norm() <= 0.02 * (one - before).norm()
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[0], states[1])
    launches = [count(optimizer.step).launches.total() for optimizer in optimizers]
    assert launches[1] < 0.7 * launches[0]
