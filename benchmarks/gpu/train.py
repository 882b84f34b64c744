"""The ordinary training for some minutes: states kept as it goes, a checkpoint at the end, going on from a state."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.gpu.options import Options, part_options
from benchmarks.gpu.results import Results
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.errors import CalculationError
from pcbridge.training.config import TrainingConfig
from pcbridge.training.initial_model import initial_model
from pcbridge.training.run import CONSISTENCY, STAGE1, make_accelerator, save_checkpoint
from pcbridge.training.states import newest_state, read_progress

ROOT = Path(__file__).parents[2]
# Seconds between looks at what training has saved.
_PAUSE = 10.0
# Megabytes that a released checkpoint may have.
_LARGEST = 16
# To rehearse: a few molecules, and a state every ten updates.
_SOURCES = '[{"name": "pm6", "only_labelled": true, "max_rows": 40}]'
_QUICK = [
    *(f"--{stage}.sources={_SOURCES}" for stage in ("stage1", "stage2")),
    *("--batch_size=8", "--checkpoint_every=10", "--evaluation=null", "--compare_multi_task=false"),
]


class Training:
    """One run of the training command, watched."""

    def __init__(self, options: Options):
        self.options = options
        self.results = Results(options.output, "train", options.device)
        # Beside the results, which hold no more than what is to be kept.
        self.folder = options.output.with_name(options.output.name + "_training")
        self.kept: dict[str, Path] = {}

    def run(self) -> None:
        """Train until it ends or the time is up.

        Raises:
            CalculationError: training failed.
        """
        options = self.options
        command = [sys.executable, str(ROOT / "train_accelerate.py"), *options.training_arguments]
        command += [*(_QUICK if options.quick else ()), f"--output_dir={self.folder}"]
        if options.states:
            shutil.rmtree(self.folder, ignore_errors=True)
            for archive in options.states:
                shutil.unpack_archive(archive, self.folder / "training_state")
            command.append("--resume=latest")
        process = subprocess.Popen(command)
        try:
            # However long it takes to begin, one state is waited for.
            while process.poll() is None and (self.results.minutes < options.minutes or not self.kept):
                time.sleep(min(_PAUSE, 1.0 if options.quick else _PAUSE))
                self.keep()
            # What a scheduler sends: training saves its state and leaves.
            process.terminate()
            code = process.wait(60)
        finally:
            process.kill()
        self.keep()
        if code not in (0, 128 + signal.SIGTERM):
            raise CalculationError(f"training ended with exit code {code}")

    def keep(self) -> None:
        """Put the newest state of each stage, if it is new, beside the results."""
        for stage in (STAGE1, CONSISTENCY):
            folder = self.folder / "training_state" / stage
            try:
                state = newest_state(folder)
                if state is None or state == self.kept.get(stage):
                    continue
                progress = read_progress(state)
                aside = shutil.make_archive(
                    str(self.folder / stage), "zip", self.folder / "training_state", f"{stage}/{state.name}"
                )
            except (OSError, CalculationError):  # training has just replaced it
                continue
            target = self.options.output / f"training_state_{stage}.zip"
            shutil.copyfile(aside, target.with_suffix(".partial"))
            target.with_suffix(".partial").replace(target)
            self.kept[stage] = state
            last = progress["history"][-1] if progress["history"] else {}
            losses = {name: value for name, value in last.items() if name.endswith("loss") and value}
            self.results.add("States", minutes=self.results.minutes, stage=stage, updates=progress["step"], **losses)

    def finish(self) -> None:
        """The checkpoint of the last state, tried out."""
        stage = CONSISTENCY if CONSISTENCY in self.kept else STAGE1
        if stage not in self.kept:
            raise CalculationError("training saved no state")
        config = self.options.training
        folder = checkpoint_of(self.kept[stage], stage, config, self.folder / "checkpoint")
        archive = shutil.make_archive(str(self.folder / "checkpoint"), "zip", folder)
        shutil.copyfile(archive, self.options.output / "checkpoint.zip")
        size = Path(archive).stat().st_size / 1e6
        processor, model = PCBridgeProcessor.from_pretrained(folder), PCBridgeModel.from_pretrained(folder)
        inputs = processor(["CC(=O)Nc1ccc(O)cc1"])
        structures = model.predict_structure(**inputs).positions[:, 0]
        energy = model.predict_energy(**inputs, positions=structures).energy
        passed = bool(energy.isfinite().all() and structures.isfinite().all()) and size <= _LARGEST
        steps = read_progress(self.kept[stage])["step"]
        self.results.add("Checkpoint", stage=stage, updates=steps, megabytes=size, passed=passed)


def checkpoint_of(state: Path, stage: str, config: TrainingConfig, folder: Path) -> Path:
    """The moving average of the weights in a training state, as a checkpoint in `folder`."""
    model, data = initial_model(config)
    weights = load_file(state / "modules.safetensors")
    prefix = "average/"
    model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    stages = {name: of for name, of in ((STAGE1, config.stage1), (CONSISTENCY, config.stage2)) if of is not None}
    if stage == STAGE1:
        stages.pop(CONSISTENCY, None)
    shutil.rmtree(folder, ignore_errors=True)
    return save_checkpoint(model.eval(), folder, config, data, stages, make_accelerator(config))


def main(options: Options) -> None:
    training = Training(options)
    with training.results.whatever_happens("Training"):
        training.run()
    with training.results.whatever_happens("Checkpoint"):
        training.finish()
    training.results.finish()


if __name__ == "__main__":
    main(part_options())
