"""Molecules per second of training, energies and forces, refinement and generation; where the time goes; one peer."""

import importlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from functools import partial

import torch
from accelerate.utils import send_to_device

from benchmarks.gpu import inputs
from benchmarks.gpu.check import graph_of, products
from benchmarks.gpu.counts import Counts, count
from benchmarks.gpu.kernels import measure_ceilings, median_seconds, profile_of
from benchmarks.gpu.options import Options, part_options
from benchmarks.gpu.results import Results
from dataset_scripts.collator import collate
from modeling_pcbridge import PCBridgeConfig, PCBridgeModel
from pcbridge.training.compilation import compiled
from pcbridge.training.cuda_graphs import CapturedPasses
from pcbridge.training.optimizers import make_optimizers
from pcbridge.training.run import make_accelerator
from pcbridge.training.update import add_gradients, run_update

BATCH = 256
BATCHES = {"QM9": (32, 256, 1024, 4096), "drug-like": (32, 256, 1024), "200 atoms": (32, 128)}
CASES = ("stage 1", "stage 2", "energy and forces", "one denoising step")
# Batches whose operations are counted; they grow by the same with every molecule.
_COUNTED = (2, 4)
# The share of the part's minutes after which nothing new is begun.
_LAST_BEGIN = 0.8


class Speed:
    """One part's results, and the model and configuration that they are of."""

    def __init__(self, options: Options):
        self.options, self.device, self.quick = options, options.device, options.quick
        self.results = Results(options.output, "speed", options.device)
        self.config = options.training
        self.accelerator = make_accelerator(self.config)
        torch.manual_seed(0)
        self.model = PCBridgeModel(PCBridgeConfig.from_preset(self.config.preset, **self.config.model)).train()
        self.on_cpu = deepcopy(self.model)
        self.model.to(self.device)
        self.counts: dict[tuple[str, str], tuple[Counts, Counts]] = {}
        self.ceilings = measure_ceilings(self.device, self.quick)
        for precision, reached in self.ceilings.flops.items():
            self.results.add(
                "What the device reached", what=f"matrix product, {precision}", value=f"{reached:.3g} flop/s"
            )
        self.results.add("What the device reached", what="copy", value=f"{self.ceilings.bytes:.3g} bytes/s")

    def batch(self, molecules: str, size: int) -> dict:
        return collate(inputs.examples(molecules, size, self.model.config.resonance_invariant))

    def function(
        self, case: str, model: PCBridgeModel, batch: dict, precision: str, how: str = "plain"
    ) -> Callable[[], object]:
        """What a case runs, on the device of `batch`."""
        if stage := self.options.stages.get(case):
            optimizers = make_optimizers(model, self.config, 0.0)
            accelerator = self.accelerator
            # In place of the precision of the process: an Accelerator has one for good.
            accelerator.autocast = partial(
                torch.autocast, batch["positions"].device.type, torch.bfloat16, enabled=precision == "bf16"
            )
            ids = [""] * len(batch["positions"])
            update = partial(run_update, model, [[(batch, ids)]], 0, stage, self.config, accelerator, optimizers)
            if how == "CUDA graph":
                model.zero_grad()
                passes = partial(add_gradients, model, stage, accelerator)
                update = partial(update, captured=CapturedPasses(passes, batch["positions"].device))
                for _ in range(3):
                    update()
            return update
        graph, positions = graph_of(batch), batch["positions"]
        if case == "energy and forces":
            return partial(model.energy_and_forces, graph, positions)
        timesteps = torch.full((len(positions),), 100, device=positions.device)
        return torch.no_grad()(partial(model.denoise, graph, positions, timesteps))

    def counted(self, case: str, molecules: str, size: int) -> Counts:
        """Launches, operations and bytes of a batch of `size`, from those of two small ones on the CPU."""
        key = (case, molecules)
        if key not in self.counts:
            state = self.accelerator.state
            device, state.device = state.device, torch.device("cpu")
            try:
                runs = [self.function(case, self.on_cpu, self.batch(molecules, few), "float32") for few in _COUNTED]
                runs[0]()  # the first step of an optimiser makes its moments
                runs[1]()
                self.counts[key] = (count(runs[0]), count(runs[1]))
            finally:
                state.device = device
        first, second = self.counts[key]
        more = (size - _COUNTED[0]) / (_COUNTED[1] - _COUNTED[0])
        return Counts(
            second.launches,
            round(first.flops + more * (second.flops - first.flops)),
            round(first.moved + more * (second.moved - first.moved)),
        )

    def measure(self, table: str, case: str, molecules: str, size: int, precision: str, how: str = "plain") -> None:
        """One row."""
        about = {"case": case, "molecules": molecules, "batch": size, "precision": precision, "how": how}
        if self.results.minutes > _LAST_BEGIN * self.options.minutes:
            self.results.add(table, **about, note="not begun: no time left")
            return
        with self.results.whatever_happens(table, **about), ExitStack() as stack:
            stack.enter_context(products(precision, self.device))
            if how == "compiled":
                stack.enter_context(compiled(self.model))
            batch = send_to_device(self.batch(molecules, size), self.device)
            run = self.function(case, self.model, batch, precision, how)
            if how == "CUDA graph" and case not in self.options.stages:
                run = _captured(run)
            memory = None
            if self.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds = median_seconds(run, self.device, self.quick)
            if self.device == "cuda":
                memory = torch.cuda.max_memory_allocated() / 1e9
            counts = self.counted(case, molecules, size)
            self.results.add(
                table,
                **about,
                molecules_per_second=size / seconds,
                milliseconds=1e3 * seconds,
                peak_memory_gb=memory,
                share_of_matrix_peak=counts.flops / seconds / self.ceilings.flops[precision],
                # Of the bytes that all operations touch, some from a cache: it may be more than all.
                share_of_bandwidth=counts.moved / seconds / self.ceilings.bytes,
                launches=counts.launches.total(),
            )

    def profile(self, case: str, molecules: str, size: int) -> None:
        """The ten largest kernels, and how long the device waits for the host."""
        table = f"Profile of {case}, {size} {molecules} molecules, TF32"
        with self.results.whatever_happens(table), products("TF32", self.device):
            run = self.function(case, self.model, send_to_device(self.batch(molecules, size), self.device), "TF32")
            found = profile_of(run, self.device, median_seconds(run, self.device, self.quick))
            for name, calls, time_share in found.largest:
                self.results.add(table, kernel=name[:80], calls=calls, share=time_share)
            self.results.add(table, kernel="all", calls=found.launches, share=1.0)
            self.results.add(
                table, kernel="waiting for the host, of the whole time", share=max(0.0, 1 - found.busy_share)
            )

    def structures(self, count: int) -> None:
        """Whole predictions, checks of stereo marks on the host included."""
        batch = self.batch("drug-like", count)
        graphs = send_to_device({**graph_of(batch).inputs, "positions": batch["positions"]}, self.device)
        self.model.eval()
        few = {"max_attempts": 1}  # an untrained model is not right more often
        for name, options in (
            ("refinement, 10 steps of mean shift", {"method": "mean_shift", "num_inference_steps": 10}),
            ("generation, 20 DDIM steps", few),
            ("generation, 20 DDIM steps, and 10 of mean shift", {**few, "mean_shift_steps": 10}),
        ):
            with self.results.whatever_happens("Structures", what=name), products("float32", self.device):
                predict = partial(self.model.predict_structure, **graphs, **options)
                seconds = median_seconds(predict, self.device, True)
                self.results.add(
                    "Structures", what=name, molecules=count, seconds=seconds, molecules_per_second=count / seconds
                )
        self.model.train()

    def peer(self, molecules: str, size: int) -> None:
        """PCBridge and SchNetPack's PaiNN at the same width and depth: energies and forces, and training on them."""
        table = "Beside a peer, width 128, 4 layers, float32 with TF32"
        for module, name in (("pcbridge", "PCBridge"), ("schnetpack", "SchNetPack PaiNN")):
            with self.results.whatever_happens(table, program=name), products("TF32", self.device):
                try:
                    subject = importlib.import_module(f"benchmarks.subjects.{module}").Subject()
                except ImportError as error:
                    self.results.add(table, program=name, note=f"not measured: {error}")
                    continue
                subject.model.to(self.device)
                different = inputs.molecules(molecules)
                chosen = [different[place % len(different)] for place in range(size)]
                batch = send_to_device(subject.collate(chosen), self.device)
                for case in ("train_step", "energy_and_forces"):
                    seconds = median_seconds(partial(getattr(subject, case), batch), self.device, self.quick)
                    self.results.add(
                        table,
                        program=name,
                        case=case,
                        molecules=molecules,
                        batch=size,
                        molecules_per_second=size / seconds,
                    )


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    """`run` as one CUDA graph, which the host launches at once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def main(options: Options) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    speed = Speed(options)
    if options.quick:
        for case in CASES:
            speed.measure("Molecules per second", case, "QM9", 8, "float32")
        speed.measure("Precisions", "stage 1", "QM9", 8, "bf16")
        speed.profile("stage 1", "QM9", 4)
        speed.structures(4)
        speed.peer("QM9", 4)
    else:
        for case in CASES:  # what matters most comes first
            speed.measure("Molecules per second", case, "drug-like", BATCH, "TF32")
        for case in CASES:
            speed.measure("Compiled and captured", case, "drug-like", BATCH, "TF32", "CUDA graph")
        for case in CASES[:2]:
            speed.profile(case, "drug-like", BATCH)
        speed.structures(1000)
        for molecules in ("drug-like", "QM9"):
            speed.peer(molecules, BATCH)
        for precision in ("float32", "bf16"):
            for case in CASES:
                speed.measure("Precisions", case, "drug-like", BATCH, precision)
        for molecules, sizes in BATCHES.items():
            for size in sizes:
                for case in CASES[:3]:
                    speed.measure("Molecules per second", case, molecules, size, "TF32")
        for case in CASES:
            speed.measure("Compiled and captured", case, "drug-like", BATCH, "TF32", "compiled")
    speed.results.finish()


if __name__ == "__main__":
    main(part_options())
