"""Processes, kills, damage on disk and bad numbers: the run that comes out is the one that would have been."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from dataclasses import replace
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import small_model
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import LABELLED, ROOT, SMALL_MODEL, small_config

import train_accelerate
from dataset_scripts.command_errors import errors_as_sentences
from modeling_pcbridge.losses import LossSettings
from pcbridge.training import data, update
from pcbridge.training import stage as stage_training
from pcbridge.training.bad_numbers import BadLossError, poison_if_bad
from pcbridge.training.config import StageConfig, ValidationConfig
from pcbridge.training.initial_model import initial_model
from pcbridge.training.log import peak_memory_gb
from pcbridge.training.run import run
from pcbridge.training.states import (
    TrainingStateError,
    newest_state,
    read_progress,
    restore_training_state,
    save_training_state,
)
from pcbridge.training.update import BLOCKS, RECORD_NAMES, run_update
from pcbridge.training.validation import Validation

ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
# Processes of their own without the seconds that imports take.
FORK = multiprocessing.get_context("fork")


def state_folder(output_dir: Path) -> Path:
    return output_dir / "training_state" / "stage1"


def assert_equal_runs(first: Path, second: Path) -> None:
    histories = [json.loads((folder / "metrics.json").read_text())["histories"] for folder in (first, second)]
    assert histories[0] == histories[1]
    weights = [load_file(folder / "stage1" / "model.safetensors") for folder in (first, second)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A run of 22 updates with a state after each 10 and the last: its folder, which tests leave alone, and history."""
    folder = tmp_path_factory.mktemp("whole")
    history = run(small_config(folder, keep_checkpoints=3, trackers=["tensorboard"]))["histories"]["stage1"]
    return folder, history


def options_of_a_cut_run(output_dir: Path, num_workers: int = 0) -> list[str]:
    sources = [{"name": "pm6", "max_rows": 200}, {"name": "pm6_displaced", "max_rows": 100}]
    return [
        f"--stage1.sources={json.dumps(sources)}",
        f"--model={json.dumps(SMALL_MODEL)}",
        "--stage1.num_steps=120",
        "--stage2=null",
        "--evaluation=null",
        "--batch_size=9",
        "--checkpoint_every=10",
        f"--num_workers={num_workers}",
        "--cpu=true",
        "--resume=latest",
        f"--output_dir={output_dir}",
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(train_accelerate.parse(options_of_a_cut_run(folder)))
    return folder


def train_in_a_group_of_its_own(output_dir: Path) -> None:
    os.setsid()
    sys.argv = ["train_accelerate.py", *options_of_a_cut_run(output_dir, num_workers=1)]
    train_accelerate.main()


def killed_until_done(output_dir: Path, numbers: list[int], rng: random.Random) -> list[int]:
    """Kill a run by each signal at a random moment of its training, starting it again each time; the exit codes.

    The signal goes to its loader too, as schedulers send it.
    """
    codes = []
    for number in numbers:
        process = FORK.Process(target=train_in_a_group_of_its_own, args=(output_dir,))
        process.start()
        # Let it come to training first; then anything may be under way, saving included.
        while process.is_alive() and not (output_dir / "training_state").exists():
            time.sleep(0.05)
        time.sleep(rng.uniform(0.5, 2.0) if codes else rng.uniform(0.0, 0.5))
        if process.is_alive():
            os.killpg(process.pid, number)
        process.join()
        codes.append(process.exitcode)
        if process.exitcode == 0:
            break
    run(train_accelerate.parse(options_of_a_cut_run(output_dir)))
    return codes


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGTERM, signal.SIGKILL],
        pytest.param(20 * [signal.SIGKILL], marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(uninterrupted, tmp_path, numbers):
    codes = killed_until_done(tmp_path / "cut", numbers, random.Random(len(numbers)))
    for code, number in zip(codes[:2], numbers, strict=False):
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)
    assert_equal_runs(uninterrupted, tmp_path / "cut")


def test_resume_is_bit_for_bit(whole, tmp_path, monkeypatch):
    save = stage_training.save_training_state

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_training, "save_training_state", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(small_config(tmp_path))
    monkeypatch.undo()
    run(small_config(tmp_path, resume="latest"))
    assert_equal_runs(whole[0], tmp_path)


def test_the_average_of_a_short_run_has_left_the_first_weights(whole):
    """After 22 updates an average of decay .998 from the start would hold 96 % of the first weights."""
    folder, _ = whole
    config = small_config(folder)
    torch.manual_seed(config.seed)
    first = initial_model(config)[0].state_dict()
    state = load_file(state_folder(folder) / "step-00000022" / "modules.safetensors")
    names = [name for name, tensor in first.items() if tensor.is_floating_point() and "layers" in name]
    average, last = ([state[f"{module}/{name}"] for name in names] for module in ("average", "model"))
    left = sum((a - b).square().sum() for a, b in zip(average, last, strict=True))
    way = sum((first[name] - tensor).square().sum() for name, tensor in zip(names, last, strict=True))
    assert left < 0.25 * way


def test_a_damaged_state_is_refused_and_the_one_before_it_used(whole, tmp_path, caplog):
    damaged = tmp_path / "damaged"
    shutil.copytree(whole[0], damaged)
    states = sorted(state_folder(damaged).iterdir())
    assert [state.name for state in states] == ["step-00000010", "step-00000020", "step-00000022"]
    for state in states[1:]:
        content = bytearray((state / "modules.safetensors").read_bytes())
        content[len(content) // 2] ^= 1
        (state / "modules.safetensors").write_bytes(content)
    run(small_config(damaged, keep_checkpoints=3, resume="latest"))
    assert caplog.text.count("damaged (the checksum of modules.safetensors is wrong)") == 2
    assert_equal_runs(whole[0], damaged)
    for state in state_folder(damaged).iterdir():
        (state / "progress.json").write_text("{}")
    with pytest.raises(TrainingStateError, match="every training state"):
        run(small_config(damaged, resume="latest"))


def test_a_full_disk_leaves_the_last_state(tmp_path):
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    save_training_state(tmp_path, {"model": model}, [optimizer], {"step": 10}, keep=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            TrainingStateError, match=r"step-00000020 could not be written .* the last one is .*00000010"
        ):
            save_training_state(tmp_path, {"model": model}, [optimizer], {"step": 20}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    state = newest_state(tmp_path)
    restore_training_state(state, {"model": model}, [optimizer])
    assert read_progress(state) == {"step": 10}


def test_a_damaged_newer_state_goes_and_not_the_one_just_written(tmp_path):
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    for step in (10, 20, 30):
        save_training_state(tmp_path, {"model": model}, [optimizer], {"step": step}, keep=3)
    save_training_state(tmp_path, {"model": model}, [optimizer], {"step": 15}, keep=1)
    assert read_progress(newest_state(tmp_path)) == {"step": 15} and len(list(tmp_path.iterdir())) == 1


def test_processes_that_find_different_states_do_not_start(tmp_path, monkeypatch):
    """As when output_dir is on a disk of each node, and only the first has states."""
    monkeypatch.setattr(stage_training, "gather_object", lambda own: [*own, "step-00000010"])
    with pytest.raises(TrainingStateError, match=r"\(None, step-00000010\) .*must be a folder that all of them share"):
        run(small_config(tmp_path, resume="latest"))


def test_states_are_pruned_and_an_earlier_run_is_set_aside(whole, tmp_path):
    folder, history = whole
    of_stage1, of_stage2 = state_folder(tmp_path), tmp_path / "training_state" / "consistency"
    shutil.copytree(state_folder(folder), of_stage1)
    of_stage2.mkdir()
    # The same run, since nothing of the earlier one enters.
    assert run(small_config(tmp_path, keep_checkpoints=1))["histories"]["stage1"] == history
    assert [state.name for state in of_stage1.iterdir()] == ["step-00000022"]
    assert (tmp_path / "training_state" / "stage1.previous" / "step-00000022").exists()
    assert not of_stage2.exists()  # else a later resume would meet it


def test_resuming_with_other_settings_is_refused(whole, tmp_path):
    shutil.copytree(state_folder(whole[0]), state_folder(tmp_path))
    with pytest.raises(TrainingStateError, match="made with another batch_size"):
        run(small_config(tmp_path, resume="latest", batch_size=6))
    with pytest.raises(TrainingStateError, match="made with another weight_decay"):
        run(small_config(tmp_path, resume="latest", weight_decay=0.5))
    with pytest.raises(TrainingStateError, match=r"made with another model\.hidden_size;"):
        run(small_config(tmp_path, resume="latest", model=SMALL_MODEL | {"hidden_size": 16}))
    config = small_config(tmp_path, resume="latest")
    with pytest.raises(TrainingStateError, match=r"made with another stage\.learning_rate, stage\.num_steps;"):
        run(replace(config, stage1=replace(config.stage1, num_steps=9, learning_rate=0.1)))


def test_bad_numbers_are_reported_by_molecule_and_end_the_run_in_the_end(tmp_path, monkeypatch, caplog):
    config = small_config(tmp_path, max_bad_updates=3)
    losses = LossSettings().only(energy_weight=1.0)
    few = replace(config.stage1, sources=[replace(LABELLED[0], max_rows=40)], losses=losses)
    ids = [example.molecule_id for example in data.load_source(few.sources[0], "train", ["B3LYP/6-31G*"])]
    collate = data.collate_in_parts

    def with_bad_rows(count: int):
        def collate_bad(examples, max_pairs):
            # Beyond float32, so that the loss is infinite; no label in a file can be NaN.
            return collate(
                [replace(e, energy=1e39) if e.molecule_id in ids[:count] else e for e in examples], max_pairs
            )

        return collate_bad

    monkeypatch.setattr(data, "collate_in_parts", with_bad_rows(1))
    history = run(replace(config, stage1=few))["histories"]["stage1"]
    bad = ids[0]
    assert f"is NaN or infinite (molecules {bad}); its gradient counts as zero" in caplog.text
    assert all(0 < value < 1e6 for record in history for key, value in record.items() if key.endswith("loss") and value)
    monkeypatch.setattr(data, "collate_in_parts", with_bad_rows(40))
    with pytest.raises(BadLossError, match="that is 3 in a row"):
        run(replace(config, stage1=few))
    # Validation goes on where there is no good update to tell of.
    validation = ValidationConfig(every=10, max_molecules=4, num_pictures=0)
    history = run(replace(config, stage1=few, max_bad_updates=100, validation=validation))["histories"]["stage1"]
    assert [set(record) for record in history] == 3 * [{"step", "learning_rate", "validation_loss"}]


def test_tensorboard_has_every_loss_of_every_window(whole):
    folder, history = whole
    events = EventAccumulator(str(folder / "trackers"))
    events.Reload()
    assert {"stage1/molecules_per_second", "stage1/gradient_norm"} <= set(events.Tags()["scalars"])
    logged = events.Scalars("stage1/energy_loss")
    assert [event.step for event in logged] == [record["step"] for record in history]
    assert [event.value for event in logged] == pytest.approx([record["energy_loss"] for record in history])


def test_mixed_precision_follows_float32(tmp_path, fresh_accelerate, monkeypatch):
    """Two stages, so that the model is wrapped for mixed precision twice; labels stay in float32 and better."""
    records = {}
    for name in ("no", "bf16", "fp16"):
        fresh_accelerate()
        config = small_config(tmp_path / name, mixed_precision=name)
        if name == "fp16":
            with pytest.raises(ValueError, match="fp16 needs a GPU"):
                run(config)
            # torch has it on CPUs, accelerate has not.
            config = replace(config, mixed_precision="no")
            monkeypatch.setattr(Accelerator, "autocast", lambda _: torch.autocast("cpu", torch.float16))
            fresh_accelerate()
        stage = replace(config.stage1, num_steps=4)
        histories = run(replace(config, stage1=stage, stage2=stage))["histories"]
        assert set(histories) == {"stage1", "consistency"}
        records[name] = histories["stage1"][0]
    for precision, name in product(("bf16", "fp16"), ("energy_loss", "force_loss", "denoising_loss")):
        assert records[precision][name] == pytest.approx(records["no"][name], rel=0.05), name
        assert records[precision][name] != records["no"][name]


def test_the_second_stage_has_batches_and_noise_of_its_own(tmp_path):
    """Of two equal stages that change nothing the second would have the losses of the first."""
    config = small_config(tmp_path)
    stage = replace(config.stage1, num_steps=1, learning_rate=1e-30)
    first, second = (history[0] for history in run(replace(config, stage1=stage, stage2=stage))["histories"].values())
    assert first["energy_loss"] != second["energy_loss"]
    assert first["denoising_loss"] != second["denoising_loss"]


def test_deterministic_refuses_sums_without_an_order(tmp_path, monkeypatch):
    """An operation that has no ordered form ends the run; without the option it goes through."""

    def unordered(loss):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
        return poison_if_bad(loss)

    monkeypatch.setattr(update, "poison_if_bad", unordered)
    config = small_config(tmp_path)
    config = replace(config, stage1=replace(config.stage1, num_steps=1))
    run(config)
    try:
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            run(replace(config, deterministic=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_peak_memory_is_in_gigabytes():
    """This process has imported torch, and has not filled a machine."""
    assert 0.1 < peak_memory_gb(torch.device("cpu")) < 100


def test_parts_are_few_and_have_the_least_padding():
    """Against every way to cut a batch."""
    sizes, max_pairs = np.array([2, 3, 3, 5, 8, 9, 9, 20]), 200

    def padded(ends):
        return [(end - start) * sizes[end - 1] ** 2 for start, end in pairwise([0, *ends])]

    cuts = [[*cut, 8] for count in range(8) for cut in combinations(range(1, 8), count)]
    # the last molecule alone is beyond the limit
    allowed = [cut for cut in cuts if cut[-2:] == [7, 8] and max(padded(cut[:-1])) <= max_pairs]
    best = min(allowed, key=lambda cut: (len(cut), sum(padded(cut))))
    assert len(best) == 4
    assert sum(padded(data._ends_of_parts(sizes, max_pairs))) == sum(padded(best))
    assert data._ends_of_parts(sizes, max_pairs) in allowed
    assert data._ends_of_parts(sizes, 8 * 20**2) == [8]


def test_micro_batch_in_parts_gives_the_same_gradient(tmp_path):
    """Losses without noise, in float64: the limit on pairs changes memory, not the update."""
    examples = list(data.load_source(replace(LABELLED[1], max_rows=24), "train", ["B3LYP/6-31G*"]))
    gradients, shares = [], []
    for max_pairs in (None, 700):
        accelerator = Accelerator(cpu=True)
        model = small_model().double()
        micro_batch = data.collate_in_parts(examples, max_pairs)
        for batch, _ in micro_batch:
            molecules, atoms = batch["atomic_numbers"].shape
            assert max_pairs is None or molecules * atoms**2 <= max_pairs
            batch["positions"], batch["forces"] = batch["positions"].double(), batch["forces"].double()
        assert [len(micro_batch) > 1] == [max_pairs is not None]
        kept = []
        stage = StageConfig(1, 0.0, 0, [], LossSettings(force_weight=1.0, denoising_weight=0.0))

        class Keep:
            def step(self, model=model, kept=kept):
                kept += [torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])]

            def zero_grad(self, set_to_none):
                pass

        config = small_config(tmp_path, max_grad_norm=1e9)
        values = run_update(accelerator.prepare(model), [micro_batch], 0, stage, config, accelerator, [Keep()])
        record = dict(zip(RECORD_NAMES, values.record.tolist(), strict=True))
        blocks = [record[f"gradient_norm_{block}"] for block in BLOCKS]
        assert record["gradient_norm"] == pytest.approx(sum(norm**2 for norm in blocks) ** 0.5, rel=1e-5)
        assert blocks[2] == 0 and min(blocks[:2]) > 0
        gradients += kept
        shares.append(record["padded_share"])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    assert shares[1] < shares[0]


def test_molecules_over_the_limit_are_left_out_with_a_sentence(caplog):
    source = replace(LABELLED[0], max_rows=None)
    everything = data.load_source(source, "train", ["B3LYP/6-31G*"])
    kept = data.load_source(source, "train", ["B3LYP/6-31G*"], max_pairs=15**2 + 1)
    assert max(example.graph.num_atoms for example in kept) == 15
    assert f"left out {len(everything) - len(kept)} molecules of more than 15 atoms" in caplog.text


def test_validation_keeps_the_best_weights_and_ends_early(tmp_path, monkeypatch):
    """The loss is said to be lowest after 20 updates; what is kept are the averaged weights of that moment."""
    told = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(Validation, "loss", lambda *_: next(told))
    config = small_config(tmp_path, validation=ValidationConfig(10, 6, patience=2, num_pictures=1), keep_checkpoints=9)
    stage = StageConfig(200, 1e-3, 0, LABELLED[:1], LossSettings())
    history = run(replace(config, stage1=stage))["histories"]["stage1"]
    assert [record["validation_loss"] for record in history] == [3.0, 1.0, 2.0, 1.5]
    assert (tmp_path / "pictures" / "stage1" / "step-00000010.png").exists()
    saved = load_file(tmp_path / "stage1" / "model.safetensors")
    states = {path.name: load_file(path / "modules.safetensors") for path in state_folder(tmp_path).iterdir()}
    assert len(states) == 4
    for step, state in states.items():
        same = all(torch.equal(state[f"average/{name}"], tensor) for name, tensor in saved.items())
        assert same == (step == "step-00000020"), step
    # It ended there, also for a run that resumes.
    assert run(replace(config, stage1=stage, resume="latest"))["histories"]["stage1"] == history


def test_validation_loss_is_the_loss_of_the_stage_on_other_rows(tmp_path):
    """Without noise it is what the model itself says on all validation rows of each source, by the sources' weights."""
    config = small_config(tmp_path, validation=ValidationConfig(10, num_pictures=0), batch_size=32)
    sources = [replace(source, weight=weight) for source, weight in zip(LABELLED, (1.0, 3.0), strict=True)]
    losses = LossSettings(force_weight=0.5, denoising_weight=0.0)
    stage = replace(config.stage1, losses=losses, sources=sources)
    model = small_model()
    loss = Validation(model, data.TrainingData(config, model), stage, config, tmp_path, Accelerator(cpu=True)).loss(
        model
    )
    of_sources = []
    for source in LABELLED:
        [(batch, _)] = data.collate_in_parts(list(data.load_source(source, "validation", ["B3LYP/6-31G*"])), None)
        of_sources.append(model(**batch, loss_settings=losses).loss.item())
    assert abs(of_sources[0] - of_sources[1]) > 0.01 * of_sources[0]
    assert loss == pytest.approx(0.25 * of_sources[0] + 0.75 * of_sources[1], rel=1e-4)


@pytest.mark.parametrize(
    "losses",
    [
        LossSettings(force_weight=1.0, denoising_weight=0.0),
        LossSettings().only(denoising_weight=1.0),
        LossSettings().only(optimality_weight=1.0),
        LossSettings().only(score_weight=1.0),
        LossSettings(distillation_trains_encoder=True).only(distillation_weight=1.0),
        LossSettings().only(distillation_weight=1.0),
    ],
)
def test_the_blocks_said_to_train_are_those_with_a_gradient(losses):
    model = small_model()
    examples = data.load_source(replace(LABELLED[0], max_rows=6), "train", ["B3LYP/6-31G*"])
    (batch, _), *_ = data.collate_in_parts(list(examples), None)
    model(**batch, loss_settings=losses, generator=torch.Generator().manual_seed(0)).loss.backward()
    blocks = {block for trained in losses.trained_blocks().values() for block in trained}
    for name in BLOCKS:
        gradients = [p.grad for p in getattr(model, name).parameters() if p.grad is not None]
        assert any(gradient.abs().max() > 0 for gradient in gradients) == (name in blocks), name


def test_a_loader_that_fails_ends_the_run(tmp_path, monkeypatch, capfd):
    def broken(examples, max_pairs):
        raise ValueError("this shard is damaged")

    def train():
        with errors_as_sentences():
            run(small_config(tmp_path, num_workers=1))

    monkeypatch.setattr(data, "collate_in_parts", broken)
    process = FORK.Process(target=train)
    process.start()
    process.join(60)
    ended = not process.is_alive()
    process.kill()
    assert ended and process.exitcode != 0 and "this shard is damaged" in capfd.readouterr().err
