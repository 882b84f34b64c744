"""Time on a device: medians of runs, what the card can do at most, and which kernels the time goes to."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(function: Callable[[], object], device: str, quick: bool) -> float:
    """Of single runs, each waited for, after two to warm up; half a second of them or so."""
    for _ in range(1 if quick else 2):
        function()
    seconds: list[float] = []
    while not seconds or (not quick and (len(seconds) < 5 or sum(seconds) < 0.5) and sum(seconds) < 5):
        wait_for(device)
        start = time.perf_counter()
        function()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Ceilings(NamedTuple):
    """What the device reached in one large matrix product, flop/s by precision, and in one large copy, bytes/s."""

    flops: dict[str, float]
    bytes: float


def measure_ceilings(device: str, quick: bool) -> Ceilings:
    """Random numbers, since zeros are faster than what is ever computed."""
    size = 256 if quick else 8192
    flops = {}
    for precision, dtype, setting in (
        ("float32", torch.float32, "highest"),
        ("TF32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(setting)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        flops[precision] = 2 * size**3 / median_seconds(lambda a=a, b=b: a @ b, device, quick)
    torch.set_float32_matmul_precision("highest")
    source = torch.randn(2**20 if quick else 2**30, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device, quick)
    return Ceilings(flops, 2 * source.numel() * source.element_size() / seconds)


class Profile(NamedTuple):
    """One run.

    Attributes:
        largest: the ten kernels (of a CPU: operations) of most time: name, calls, share of the time of all.
        launches: kernels in all.
        busy_share: the time of all kernels over that of the run without a profiler; what is missing to 1 the device
            waited for the host.
    """

    largest: list[tuple[str, int, float]]
    launches: int
    busy_share: float


def profile_of(function: Callable[[], object], device: str, seconds: float) -> Profile:
    """Of a function that takes `seconds` as a rule."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        function()
        wait_for(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == wanted]
    times = {e.key: (e.count, e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in events}
    total = sum(spent for _, spent in times.values())
    largest = sorted(times.items(), key=lambda item: -item[1][1])[:10]
    return Profile(
        [(name, calls, spent / total) for name, (calls, spent) in largest],
        sum(calls for calls, _ in times.values()),
        total / 1e6 / seconds,
    )
