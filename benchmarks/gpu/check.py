"""The same numbers as on the CPU, and no hidden wait: energies, forces, losses, gradients, updates, structures."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from benchmarks.gpu.options import Options, part_options
from benchmarks.gpu.results import Results
from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import collate, example_from_row
from modeling_pcbridge import LossSettings, PCBridgeModel, pair_layout
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch
from modeling_pcbridge.losses import LOSS_NAMES
from modeling_pcbridge.sampling import SamplingSettings, draw_structures
from pcbridge.training.config import StageConfig, TrainingConfig
from pcbridge.training.cuda_graphs import CapturedPasses
from pcbridge.training.optimizers import make_optimizers
from pcbridge.training.run import make_accelerator
from pcbridge.training.update import add_gradients, count_labels, run_update

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
# Relative errors in float32 that are rounding. Derivatives and many steps one after another make more of it; the first
# step of Adam is the sign of the gradient, so that where the gradient is rounding only it goes the other way.
CLOSE, OF_GRADIENTS, OF_UPDATES = 1e-4, 1e-3, 0.15  # an H200: up to .07
STRUCTURES = 1e-3  # angstrom, the largest distance of an atom
# Errors against float64 of what rounds on purpose: energies in eV, forces in eV/angstrom, gradients relative; about
# three times those of docs/training.md, which were emulated on a CPU.
ROUNDED = {"float32": (5e-5, 2e-4, 1e-3), "TF32": (0.01, 0.015, 0.2), "bf16": (0.06, 0.25, 2.0)}
LOSSES = {
    "multi-task": LossSettings(denoising_weight=0.1, force_weight=0.5, force_form="norm", align_targets=True),
    "paper": LossSettings(force_weight=0.1, optimality_weight=0.1, score_weight=1.0),
    "distillation": LossSettings(
        force_weight=0.5, distillation_weight=1.0, distillation_trains_encoder=True, data_precision=0.1
    ),
}
SAMPLING = {
    "DDIM, 20 steps": SamplingSettings(),
    "mean shift, 10 steps": SamplingSettings(method="mean_shift", num_inference_steps=10),
    "refinement, 10 steps, and relaxation": SamplingSettings(
        method="refine", num_inference_steps=10, relaxation_steps=3
    ),
}


@contextmanager
def no_waits(device: str) -> Iterator[None]:
    """Within the context an operation that waits for the GPU raises an error; a CPU has none."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def products(precision: str, device: str) -> Iterator[None]:
    """Matrix products in "float32", "TF32" or "bf16"."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    try:
        with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def training_batch(model: PCBridgeModel, rows: int) -> dict:
    """Minima and displaced structures with both labels, stereo marks and charges among them; on the CPU."""
    labelled = [row for row in load_bundled("pm6", "validation") if row["energy"] is not None]
    displaced = load_bundled("pm6_displaced", "validation")
    chosen = labelled[:: len(labelled) // rows][:rows] + displaced.select(range(rows)).to_list()
    levels = model.config.energy_levels_of_theory
    # QM9's model has them at its second level.
    return collate([example_from_row(row, levels, model.config.resonance_invariant) for row in chosen])


def graph_of(batch: dict) -> GraphBatch:
    return GraphBatch(**{key: batch[key] for key in GRAPH_KEYS})


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; NaN is no number."""
    expected = expected.detach().double().cpu()
    return ((found.detach().double().cpu() - expected).norm() / expected.norm()).item()


def gradient(model: PCBridgeModel, batch: dict, settings: LossSettings) -> Tensor:
    """Of the loss in all parameters, in one vector; it stays in the model too."""
    model.zero_grad()
    model(**batch, loss_settings=settings, generator=torch.Generator().manual_seed(0)).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class Check:
    """One part's results, row by row."""

    def __init__(self, options: Options):
        self.device, self.quick = options.device, options.quick
        self.results = Results(options.output, "check", options.device)

    def row(self, table: str, what: str, measure: Callable[[], float], tolerance: float) -> None:
        with self.results.whatever_happens(table, what=what):
            error = measure()
            self.results.add(table, what=what, error=error, tolerance=tolerance, passed=error <= tolerance)

    def on_both(self, checkpoint: str) -> None:
        """CPU and device, both in float32, with noise drawn on the CPU."""
        table = f"{checkpoint}: device and CPU in float32"
        with products("float32", self.device):
            here = PCBridgeModel.from_pretrained(CHECKPOINTS / checkpoint).eval()
            there = deepcopy(here).to(self.device)
            batch = training_batch(here, 2 if self.quick else 16)
            moved = send_to_device(batch, self.device)
            models = ((there, moved), (here, batch))

            def predicted(which: int) -> float:
                return relative(*(m.detached_energy_and_forces(graph_of(b), b["positions"])[which] for m, b in models))

            self.row(table, "energy, relative", lambda: predicted(0), CLOSE)
            self.row(table, "forces, relative", lambda: predicted(1), CLOSE)
            for name, settings in LOSSES.items():
                self._losses(table, name, settings, models)
            for name, settings in SAMPLING.items():

                def drawn(settings: SamplingSettings = settings) -> float:
                    starts = settings.method != "ddim"
                    found, expected = (
                        draw_structures(
                            m,
                            graph_of(b),
                            batch["atom_mask"].sum(1).tolist(),
                            list(range(len(batch["positions"]))),
                            settings,
                            b["positions"] if starts else None,
                        )[0].cpu()
                        for m, b in models
                    )
                    return (found - expected).norm(dim=-1).max().item()

                with torch.no_grad():
                    self.row(table, f"{name}, angstrom", drawn, STRUCTURES)

    def _losses(self, table: str, name: str, settings: LossSettings, models: tuple) -> None:
        """Each loss, its gradient, and the weights after an update."""
        with self.results.whatever_happens(table, what=name):
            found, expected = (
                m(**b, loss_settings=settings, generator=torch.Generator().manual_seed(0)) for m, b in models
            )
            for loss in LOSS_NAMES.values():
                values = [getattr(output, loss) for output in (found, expected)]
                if values[1] is not None:
                    self.row(table, f"{name}: {loss}, relative", partial(relative, *values), CLOSE)
            gradients = [gradient(m, b, settings) for m, b in models]
            self.row(table, f"{name}: gradient, relative", lambda: relative(*gradients), OF_GRADIENTS)
            moves = []
            for model, _ in models:
                before = deepcopy(model.state_dict())
                config = TrainingConfig(StageConfig(1, 1e-3, 0, []), None, optimizer="adam")
                for optimizer in make_optimizers(model, config, 1e-3):
                    optimizer.step()
                moves.append(torch.cat([(p - before[n]).flatten().cpu() for n, p in model.named_parameters()]))
                model.load_state_dict(before)
            self.row(table, f"{name}: update by Adam, relative", lambda: relative(*moves), OF_UPDATES)

    def rounding(self, checkpoint: str) -> None:
        """The device in each precision against the CPU in float64."""
        here = PCBridgeModel.from_pretrained(CHECKPOINTS / checkpoint).eval()
        batch = training_batch(here, 2 if self.quick else 16)
        exact = deepcopy(here).double()
        in_float64 = {**batch, "positions": batch["positions"].double(), "forces": batch["forces"].double()}
        there, moved = here.to(self.device), send_to_device(batch, self.device)
        settings = LossSettings(force_weight=1.0, denoising_weight=0.0)  # without noise, which has a precision too
        energy, forces = exact.detached_energy_and_forces(graph_of(in_float64), in_float64["positions"])
        slope = gradient(exact, in_float64, settings)
        # The CPU has no TF32.
        for precision in ("float32", "bf16") if self.device == "cpu" else ROUNDED:
            table = f"{checkpoint}: {precision} on the device against float64"
            limits = ROUNDED[precision]
            with self.results.whatever_happens(table, what="all"), products(precision, self.device):
                found = there.detached_energy_and_forces(graph_of(moved), moved["positions"])
                errors = [
                    (f.double().cpu() - e).abs().max().item() for f, e in zip(found, (energy, forces), strict=True)
                ]
                self.row(table, "energy, eV, largest", lambda errors=errors: errors[0], limits[0])
                self.row(table, "force component, eV/angstrom, largest", lambda errors=errors: errors[1], limits[1])
                found_slope = gradient(there, moved, settings)
                self.row(table, "gradient, relative", lambda g=found_slope: relative(g, slope), limits[2])

    def waits(self, options: Options) -> None:
        """Updates by the training's own code, and sampling, while waiting is forbidden."""
        table = "Waits for the device"
        config = options.training
        accelerator = make_accelerator(config)
        model = PCBridgeModel.from_pretrained(CHECKPOINTS / "consistency").to(accelerator.device).train()
        batch = send_to_device(training_batch(model, 2 if self.quick else 16), accelerator.device)
        optimizers = make_optimizers(model, config, 0.0)
        ids = [""] * len(batch["positions"])
        for name, stage in options.stages.items():
            update = partial(run_update, model, [[(batch, ids)]], 0, stage, config, accelerator, optimizers)
            self._without_waits(table, f"update, {name}", update)
        model.eval()
        num_atoms = batch["atom_mask"].sum(1).tolist()
        for name, settings in SAMPLING.items():
            starts = None if settings.method == "ddim" else batch["positions"]
            sample = partial(
                draw_structures, model, graph_of(batch), num_atoms, list(range(len(num_atoms))), settings, starts
            )
            with torch.no_grad():
                self._without_waits(table, name, sample)

    def replayed(self, options: Options) -> None:
        """Gradients of passes as a CUDA graph against those of the passes one by one; the CPU has none."""
        table, config = "Gradients of a replayed CUDA graph", options.training
        if self.device == "cpu":
            return
        accelerator = make_accelerator(config)
        # The second has a cutoff. Large molecules have lists of neighbours outside of graphs, here the small ones too.
        for checkpoint, fewest in (("consistency", pair_layout.FEWEST_ATOMS_FOR_LISTS), ("drug_like", 0)):
            model = PCBridgeModel.from_pretrained(CHECKPOINTS / checkpoint).to(accelerator.device).train()
            batch = send_to_device(training_batch(model, 16), accelerator.device)
            counts = count_labels([batch], accelerator)
            for stage_name, stage in options.stages.items():
                name = f"{checkpoint}, {stage_name}"
                with (
                    self.results.whatever_happens(table, what=name),
                    products("float32", self.device),
                    patch.object(pair_layout, "FEWEST_ATOMS_FOR_LISTS", fewest),
                ):
                    captured = CapturedPasses(partial(add_gradients, model, stage, accelerator), accelerator.device)
                    gradients = []
                    for _ in range(4):  # twice one by one, captured, replayed
                        for parameter in model.parameters():
                            if parameter.grad is not None:
                                parameter.grad.zero_()
                        captured(batch, counts, 0)
                        gradients.append(
                            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
                        )
                    self.row(table, name, partial(relative, gradients[-1], gradients[1]), OF_GRADIENTS)

    def _without_waits(self, table: str, what: str, function: Callable[[], object]) -> None:
        with self.results.whatever_happens(table, what=what):
            function()  # tables go to the device once
            with no_waits(self.device):
                function()
                function()
            self.results.add(table, what=what, waits=0, passed=True)


def main(options: Options) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    check = Check(options)
    first, *others = ("consistency",) if options.quick else ("consistency", "drug_like", "multi-task", "qm9")
    # What one checkpoint shows comes first: an H200's machine did that of one in a minute.
    with check.results.whatever_happens(f"{first}: device and CPU in float32", what="all"):
        check.on_both(first)
    with check.results.whatever_happens("Waits for the device", what="all"):
        check.waits(options)
    with check.results.whatever_happens("Gradients of a replayed CUDA graph", what="all"):
        check.replayed(options)
    with check.results.whatever_happens(f"{first}: against float64", what="all"):
        check.rounding(first)
    for name in others:
        with check.results.whatever_happens(f"{name}: device and CPU in float32", what="all"):
            check.on_both(name)
        with check.results.whatever_happens(f"{name}: against float64", what="all"):
            check.rounding(name)
    check.results.finish()


if __name__ == "__main__":
    main(part_options())
