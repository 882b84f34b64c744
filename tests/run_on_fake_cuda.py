"""Training and inference on CUDA tensors that hold no data, on a torch without CUDA; a script of test_fake_cuda.py.

LD_PRELOAD=LIBRARY python tests/run_on_fake_cuda.py    # the library is compiled from fake_cuda.cpp

torch's FakeTensorMode takes shapes, dtypes and devices through every operation. It refuses one whose tensors are on two
devices and one that needs values on the host (.item(), .tolist(), nonzero, boolean indexing); `Rules` refuses what else
a GPU would refuse or wait for. Prints, as JSON, what was wrong in each case, null where nothing was.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from traceback import extract_tb
from types import SimpleNamespace
from unittest.mock import patch

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import collate, example_from_row
from dataset_scripts.schema import B3LYP_6_31GD
from modeling_pcbridge import LossSettings, PCBridgeConfig, PCBridgeModel
from modeling_pcbridge.diffusion import DiffusionSchedule
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch
from modeling_pcbridge.sampling import SamplingSettings, draw_structures
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.optimizers import make_optimizers
from pcbridge.training.update import run_update

aten = torch.ops.aten
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
# Every loss in every form, each option of one at least once.
LOSSES = {
    "multi-task": LossSettings(force_weight=0.0),
    "paper": LossSettings(force_weight=0.1, optimality_weight=0.1, score_weight=1.0),
    "norm, aligned": LossSettings(force_form="norm", align_targets=True, denoising_exponent=2.0, data_precision=0.1),
    "denoised": LossSettings(force_weight=0.0, score_weight=1.0, score_form="denoised"),
    "distillation": LossSettings(distillation_weight=1.0, relaxation_steps=2, distillation_trains_encoder=True),
}
# Of every loss in bf16; fp16 goes the same way, and float32 is what losses are tested in elsewhere.
UPDATES = {f"{name}, bf16": (losses, torch.bfloat16) for name, losses in LOSSES.items()}
UPDATES |= {"paper, fp16": (LOSSES["paper"], torch.float16), "paper, float32": (LOSSES["paper"], None)}
SAMPLING = {
    "ddim": SamplingSettings(num_inference_steps=2, eta=1.0, mean_shift_steps=2, relaxation_steps=2),
    "ddim without noise": SamplingSettings(num_inference_steps=2, eta=0.0),
    "denoising": SamplingSettings(method="denoising"),
    "refine": SamplingSettings(method="refine", num_inference_steps=2),
    "mean_shift": SamplingSettings(method="mean_shift", num_inference_steps=2),
}


class Rules(TorchDispatchMode):
    """What fake tensors let through and a GPU refuses, or makes the host wait for."""

    _PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **kwargs)
        if func in self._PRODUCTS and len({tensor.dtype for tensor in tensors}) > 1:
            raise TypeError(f"{func} of {[tensor.dtype for tensor in tensors]}")
        if (generator := kwargs.get("generator")) is not None and generator.device.type != result.device.type:
            raise TypeError(f"{func} on {result.device} by a generator of {generator.device}")
        on_host = [tensor.device.type == "cpu" for tensor in tensors]
        if func in (aten.index.Tensor, aten.index_put_.default, aten.where.self) and len(set(on_host)) > 1:
            raise TypeError(f"{func} uploads an operand, which waits")
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            waits = not (kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,)))
            if result.device.type != source.device.type and (result.device.type == "cpu" or waits):
                raise TypeError(f"a copy from {source.device} to {result.device} waits")
        return result


@contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast("cuda", dtype), which switches itself off where there is no GPU."""
    if dtype is None:
        yield
        return
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def fake_model(dtype: torch.dtype = torch.float32, **form) -> PCBridgeModel:
    """A small model on the fake device; `Module.to` swaps tensors, which fake ones do not allow."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vector_size": 8, "num_attention_heads": 2}
    layers = {"num_hidden_layers": 1, "num_structure_layers": 1}
    model = PCBridgeModel(PCBridgeConfig(**sizes, **layers, **form, energy_levels_of_theory=["a", "b"])).to(dtype)
    with FAKE:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(FAKE.from_tensor(parameter.detach()).to("cuda"))
            for name, buffer in module._buffers.items():
                module._buffers[name] = FAKE.from_tensor(buffer).to("cuda")
    return model


def fake_batch() -> dict:
    """Stereo marks; rows with both labels, with a structure only, and with labels only."""
    pm6, displaced = load_bundled("pm6", "train"), load_bundled("pm6_displaced", "train")
    rows = [pm6[place] for place in (3, 4, 500, 900)] + [displaced[0]]
    batch = collate([example_from_row(row, [B3LYP_6_31GD]) for row in rows])
    assert batch["stereo_quadruples"].shape[1] > 0
    return {
        key: FAKE.from_tensor(value).to("cuda") if isinstance(value, Tensor) else value for key, value in batch.items()
    }


def graph() -> GraphBatch:
    return GraphBatch(**{key: BATCH[key] for key in GRAPH_KEYS})


def update(losses: LossSettings, precision: torch.dtype | None = None, parts: int = 1, **options) -> None:
    """One update of one micro-batch in so many parts."""
    stage = StageConfig(1, 1e-3, 0, [], losses)
    config = TrainingConfig(stage, None, **options)
    accelerator = SimpleNamespace(
        device=torch.device("cuda"),
        num_processes=1,
        process_index=0,
        distributed_type=DistributedType.NO,
        reduce=lambda tensor, reduction: tensor,
        no_sync=lambda model: nullcontext(),
        autocast=lambda: autocast(precision),
        unwrap_model=lambda model: model,
    )
    optimizers = make_optimizers(MODEL, config, stage.learning_rate)
    part = (BATCH, [""] * len(BATCH["positions"]))
    values = run_update(MODEL, [parts * [part]], 0, stage, config, accelerator, optimizers)
    assert values.record.device.type == values.good.device.type == "cuda"


def sample(settings: SamplingSettings) -> None:
    """Without what is on the host: the marks are checked there, and it knows how many atoms the molecules have."""
    count = len(BATCH["positions"])
    starts = BATCH["positions"] if settings.method in ("refine", "mean_shift") else None
    with torch.no_grad(), patch.object(DiffusionSchedule, "ddim_scheduler", real_scheduler):
        structures, _ = draw_structures(MODEL, graph(), [9] * count, list(range(count)), settings, starts)
    assert structures.device.type == "cuda" and structures.dtype == torch.float32


def real_scheduler(schedule: DiffusionSchedule, num_steps: int):
    """It lives on the host, with numbers."""
    with _disable_current_modes():
        return DDIM_SCHEDULER(schedule, num_steps)


def predict(model: PCBridgeModel) -> None:
    """Energies and forces, at a level of theory that is not the first."""
    output = model.predict_energy(**graph().inputs, positions=BATCH["positions"], level_of_theory="b")
    assert output.energy.device.type == output.forces.device.type == "cuda" and output.energy.dtype == torch.float64


def planted(place: str, wrong: Callable) -> Callable[[], None]:
    """An update with `wrong` in the place of what is there."""

    def case() -> None:
        with patch(place, wrong):
            update(LossSettings(), torch.bfloat16)

    return case


def large_molecules(is_capturing: bool) -> Callable[[], None]:
    """An update, as part of a CUDA graph or not, of molecules that are large enough for lists of neighbours."""

    def case() -> None:
        lists = patch("modeling_pcbridge.pair_layout.FEWEST_ATOMS_FOR_LISTS", 0)
        with lists, patch("torch.cuda.is_current_stream_capturing", lambda: is_capturing):
            update(LOSSES["multi-task"])

    return case


def cpu_table(schedule, timesteps: Tensor) -> Tensor:
    return schedule.compute_alphas_cumprod()[timesteps][..., None, None]


def cases() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    for name, options in UPDATES.items():
        found[f"update: {name}"] = lambda options=options: update(*options)
    found["update: two parts, by Muon"] = lambda: update(LOSSES["multi-task"], parts=2, optimizer="muon")
    for name, settings in SAMPLING.items():
        found[f"sample: {name}"] = lambda settings=settings: sample(settings)
    found["update: large molecules in a CUDA graph"] = large_molecules(is_capturing=True)
    found["mistake: lists of neighbours"] = large_molecules(is_capturing=False)
    found["predict: float32"] = lambda: predict(MODEL)
    found["predict: weights in bf16"] = lambda: predict(IN_BF16)
    found |= {
        f"mistake: {name}": planted(*mistake)
        for name, mistake in {
            ".item() in a loss": ("modeling_pcbridge.loss_terms.energy_loss", lambda a, b: a * (a - b).sum().item()),
            "boolean index in a mean": (
                "modeling_pcbridge.loss_terms.reduce_mean",
                lambda losses, mask, count: losses[mask].mean(),
            ),
            "table on the CPU": ("modeling_pcbridge.diffusion.DiffusionSchedule.alpha_bar", cpu_table),
            "noise on the CPU": (
                "modeling_pcbridge.loss_terms.centred_noise",
                lambda mask, dtype, generator: torch.randn(*mask.shape, 3, generator=generator),
            ),
            "generator of the CPU": (
                "pcbridge.training.update.noise_generator",
                lambda *_: torch.Generator(),
            ),
            "numbers of the host": (
                "modeling_pcbridge.loss_terms.denoising_loss",
                lambda a, b, weights, precision: (a - b).sum((1, 2)) * torch.tensor([0.5]).to(a.device),
            ),
            "zero of the host": (
                "modeling_pcbridge.loss_terms.reduce_mean",
                lambda losses, mask, count: torch.where(mask, losses, torch.zeros(())).sum() / count,
            ),
            "two precisions in a product": (
                "modeling_pcbridge.energy_decoder.LevelHeads.forward",
                lambda heads, features, levels: (features @ features.mT.bfloat16()).sum(-1),
            ),
            "a question about the gradient": (
                "pcbridge.training.update.drop_gradients_unless",
                lambda good, model: None if good else model.zero_grad(),
            ),
        }.items()
    }
    return found


def main() -> None:
    results = {}
    with FAKE:  # tables go to the device once per process, and the host waits for that
        MODEL.quasi_newton_steps(graph(), BATCH["positions"], 1)
    for name, case in cases().items():
        # The backward pass in this thread, where the modes are.
        with FAKE, Rules(), torch.autograd.set_multithreading_enabled(False):
            try:
                case()
                results[name] = None
            except Exception as error:
                ours = [frame for frame in extract_tb(error.__traceback__) if "-packages" not in frame.filename]
                results[name] = f"{type(error).__name__}: {error} at {ours[-2].filename}:{ours[-2].lineno}"
    print(json.dumps(results))


with FAKE:
    BATCH = fake_batch()
TERMS = {"torsion_terms": True, "out_of_plane_terms": True}
LOCAL = {"attention_cutoff": 4.0, "structure_cutoff": 4.0, **TERMS, "level_differences": True}
MODEL, IN_BF16 = fake_model(**LOCAL), fake_model(torch.bfloat16)
DDIM_SCHEDULER = DiffusionSchedule.ddim_scheduler

if __name__ == "__main__":
    main()
