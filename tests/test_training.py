"""The training script end to end on a small model, its resume, and two processes against one."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataset_scripts.bundled import load_bundled
from dataset_scripts.command_errors import errors_as_sentences
from modeling_pcbridge import LossSettings, PCBridgeConfig, PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.errors import InputError
from pcbridge.evaluation.report import plot_losses, plot_structures
from pcbridge.training.card import card_of_run
from pcbridge.training.config import SourceConfig, StageConfig, TrainingConfig
from pcbridge.training.data import load_source, reference_energies_of, sample_rows
from pcbridge.training.initial_model import initial_model
from pcbridge.training.optimizers import learning_rate_factor
from pcbridge.training.run import check_evaluation, run, without_consistency
from train_accelerate import main, parse

ROOT = Path(__file__).parent.parent
SMALL_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "vector_size": 16,
    "num_hidden_layers": 2,
    "num_structure_layers": 1,
    "num_attention_heads": 4,
    "num_gaussians": 16,
    "initializer_range": 0.18,
}
FEW_TIMESTEPS = PCBridgeConfig(
    num_train_timesteps=8, denoising_timestep=4, refinement_timestep=4, mean_shift_timesteps=[4, 1]
)
LABELLED = [
    SourceConfig("pm6", 1.0, only_labelled=True, max_rows=100),
    SourceConfig("pm6_displaced", 1.0, max_rows=100),
]


def small_config(output_dir: Path, **changes) -> TrainingConfig:
    losses = LossSettings(
        force_weight=0.5, force_form="norm", optimality_weight=0.1, score_weight=0.1, score_form="denoised"
    )
    values = {
        "stage1": StageConfig(22, 3e-3, 2, LABELLED, losses),
        "stage2": None,
        "model": SMALL_MODEL,
        "output_dir": str(output_dir),
        "checkpoint_every": 10,
        "batch_size": 8,
        "optimizer": "muon",
        "cpu": True,
        "evaluation": None,
        "compare_multi_task": False,
    }
    return TrainingConfig(**{**values, **changes})


def test_script_trains_both_stages_evaluates_and_leaves_everything(tmp_path, monkeypatch, capsys, fresh_accelerate):
    few = [{"name": "pm6", "only_labelled": True, "max_rows": 24}, {"name": "pm6_displaced", "max_rows": 8}]
    overrides = [
        f"--output_dir={tmp_path}",
        f"--stage1.sources={json.dumps(few)}",
        f"--stage2.sources={json.dumps(few)}",
        f"--model={json.dumps(SMALL_MODEL)}",
        "--batch_size=16",
        "--stage1.num_steps=120",
        "--stage1.warmup_steps=5",
        "--stage2.num_steps=15",
        "--evaluation.max_molecules=8",
        "--evaluation.num_samples=2",
        "--evaluation.num_inference_steps=4",
        "--evaluation.split=validation",
    ]
    monkeypatch.setattr(sys, "argv", ["train_accelerate.py", *overrides])
    main()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    history = metrics["histories"]["stage1"]
    for name, fraction in (("loss", 0.85), ("energy_loss", 0.6), ("force_loss", 0.9), ("denoising_loss", 0.95)):
        assert history[-1][name] < fraction * history[0][name], name
    assert {record["distillation_loss"] for record in metrics["histories"]["multi-task"]} == {0.0}
    assert all(record["distillation_loss"] > 0 for record in metrics["histories"]["consistency"])
    assert set(metrics["models"]) == {"multi-task", "consistency"}
    for results in metrics["models"].values():
        assert results["ddim"]["bond_length_error"] > 0 and results["energy"]["pm6_force_mae"] > 0
    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert "| multi-task: generated, DDIM |" in table and "| ETKDGv3 + MMFF94 |" in table
    for picture in ("losses.png", "energy_scatter.png", "structures.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")

    checkpoint = tmp_path / "consistency"
    assert {"model.safetensors", "config.json", "processor_config.json", "README.md", "modeling_pcbridge.py"} <= {
        path.name for path in checkpoint.iterdir()
    }
    model = PCBridgeModel.from_pretrained(checkpoint)
    processor = PCBridgeProcessor.from_pretrained(checkpoint)
    assert model.predict_structure(**processor(["CCO"]), num_inference_steps=2).positions.isfinite().all()
    water = processor([([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])])
    # With fitted reference energies even a model trained for seconds is within a percent of -76.4 hartree.
    assert model.predict_energy(**water).energy.item() == pytest.approx(-76.4 * 27.2114, rel=0.01)


def test_the_card_says_what_the_run_was_trained_on(tmp_path):
    config = small_config(tmp_path, init_from="me/mine")
    model = PCBridgeConfig(energy_level_of_theory="wB97M-D3BJ/def2-TZVPPD", supported_elements=[1, 6, 16])
    card = card_of_run(model, config, {"stage1": config.stage1}, "| bond error | .01 |").text
    assert "at wB97M-D3BJ/def2-TZVPPD.\nForces" in card and "Elements other than H, C, S." in card
    assert (
        "weights of `me/mine`" in card
        and "- stage1: 22 updates of 8 molecules per process from `pm6` (weight 1)" in card
    )
    assert (
        "3,037" not in card
        and "B3LYP" not in card
        and "## Use" in card
        and "## Metrics\n\n| bond error | .01 |" in card
    )
    assert "score consistency at the denoised point (not Eq. 11) 0.1" in card and "Of the paper" not in card


def test_elements_that_the_model_does_not_know_are_refused(tmp_path):
    few = SMALL_MODEL | {"supported_elements": [1, 6]}
    with pytest.raises(ValueError, match=r"pm6 has atomic numbers \[7, 8\], which the model does not support"):
        run(small_config(tmp_path, model=few))


def test_elements_without_any_energy_are_named(tmp_path, caplog):
    rows = load_bundled("pm6", "train").filter(lambda row: row["energy"] is not None)
    rows = rows.map(lambda row: row | ({"energy": None, "forces": None} if 9 in row["atomic_numbers"] else {}))
    (tmp_path / "data" / "train").mkdir(parents=True)
    rows.to_parquet(tmp_path / "data" / "train" / "0.parquet")
    stage = replace(small_config(tmp_path).stage1, sources=[SourceConfig(str(tmp_path / "data"))])
    model, _ = initial_model(small_config(tmp_path, stage1=stage))
    assert "has atomic numbers [9], so total energies of molecules with them will be far off" in caplog.text
    assert (model.energy_decoder.reference_energies.energies[[1, 6, 7, 8]] < -10).all()


def test_rows_are_sampled_from_every_part_of_a_source():
    rows = list(range(1000))
    assert sample_rows(rows, None) == sample_rows(rows, 1000) == rows
    assert sample_rows(rows, 3) == [0, 499, 999]
    some = sample_rows(rows, 350)
    assert len(some) == 350 == len(set(some)) and (some[0], some[-1]) == (0, 999)
    assert max(np.diff(some)) < 10


def test_losses_are_plotted_where_there_are_any(tmp_path):
    with_validation = [{"step": 9, "energy_loss": 1.0}, {"step": 19, "energy_loss": 0.5, "validation_loss": 0.7}]
    plot_losses({"stage1": with_validation, "multi-task": [{"step": 9, "energy_loss": 2.0}]}, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 5_000
    plot_losses({"stage1": []}, tmp_path / "none.png")
    plot_structures([], {"model": []}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_learning_rate_warms_up_and_decays_to_zero():
    stage = StageConfig(num_steps=10, learning_rate=1.0, warmup_steps=4, sources=[])
    factors = [learning_rate_factor(step, stage) for step in range(11)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
    short = StageConfig(num_steps=4, learning_rate=1.0, warmup_steps=50, sources=[])
    assert [learning_rate_factor(step, short) for step in range(5)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert learning_rate_factor(0, replace(short, num_steps=1)) == 1.0


def test_reference_energies_leave_small_residuals():
    examples = load_source(SourceConfig("pm6", only_labelled=True), "train", ["B3LYP/6-31G*"])
    energies = reference_energies_of([e.graph.atomic_numbers for e in examples], [e.energy for e in examples])
    assert set(energies) == {1, 6, 7, 8, 9}
    assert energies[6] == pytest.approx(-38.0 * 27.2114, rel=0.01)
    residuals = [e.energy - sum(energies[int(z)] for z in e.graph.atomic_numbers) for e in examples]
    assert abs(np.mean(residuals)) < 0.05 and np.std(residuals) < 1.5


def test_multi_task_baseline_has_no_consistency_and_as_much_weight_on_structures():
    stage = parse([]).stage2
    baseline = without_consistency(stage)
    assert stage.losses.distillation_weight > 0
    off = ("optimality_weight", "score_weight", "distillation_weight")
    assert not any(getattr(baseline.losses, name) for name in off)
    assert baseline.losses.data_precision == 0.0
    assert baseline.losses.denoising_weight == stage.losses.denoising_weight + stage.losses.distillation_weight
    assert baseline.losses.force_weight == stage.losses.force_weight and baseline.sources == stage.sources
    # The paper's losses take no weight from the data.
    other = replace(stage, losses=replace(stage.losses, distillation_weight=0.0, score_weight=1.0))
    assert without_consistency(other).losses.denoising_weight == stage.losses.denoising_weight


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("--stage1.sources=[{name: nowhere}]", "train_accelerate.py: no data source 'nowhere'"),
        ("--mixed_precision=fp16", "train_accelerate.py: fp16 needs a GPU"),
        ("--preset=huge", "train_accelerate.py: .*huge"),
        ("--init_from=./nowhere", "train_accelerate.py: (?s:.*)./nowhere"),
        ("--evaluation.num_inference_steps=600", "train_accelerate.py: .* take 500 or 1000"),
    ],
)
def test_the_script_ends_with_a_sentence(wrong, reason, tmp_path, monkeypatch, fresh_accelerate, capsys):
    few = "[{name: pm6, only_labelled: true, max_rows: 8}]"
    options = ["--cpu=true", f"--output_dir={tmp_path}", f"--stage1.sources={few}", f"--stage2.sources={few}", wrong]
    monkeypatch.setattr(sys, "argv", ["folder/train_accelerate.py", *options])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert re.search(reason, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (PCBridgeConfig(supported_elements=[1, 5]), [], "of atomic numbers .1, 5.; set evaluation to null"),
        (FEW_TIMESTEPS, ["--evaluation=null", "--validation={every: 10}"], "8"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_before_the_training(model, options, reason):
    with pytest.raises(InputError, match=reason):
        check_evaluation(parse(options), model)
    check_evaluation(parse(["--evaluation=null", "--validation={every: 10, num_pictures: 0}"]), model)


def test_errors_of_other_libraries_keep_their_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pcbridge train"])
    with pytest.raises(ValueError, match="invalid literal"), errors_as_sentences():
        int("x")
    with pytest.raises(SystemExit, match="1"), errors_as_sentences():
        PCBridgeConfig.from_preset("huge")
    assert capsys.readouterr().err.startswith("pcbridge train: no preset")


def test_paper_configuration_has_the_papers_constants():
    config = parse(["--config", str(ROOT / "configs" / "paper.yaml"), "--seed=5"])
    assert (config.stage1.num_steps, config.stage2.num_steps, config.seed) == (300_000, 200_000, 5)
    losses = config.stage2.losses
    assert (losses.energy_weight, losses.denoising_weight) == (1.0, 0.01)
    assert (losses.optimality_weight, losses.score_weight) == (0.1, 1.0)
    assert (losses.optimality_timesteps, losses.score_timesteps, losses.kT) == ((400, 700), (5, 300), 0.1)
    assert (losses.score_form, losses.force_form) == ("noisy", "squared")
    assert (config.stage1.learning_rate, config.stage1.warmup_steps) == (2e-4, 10_000)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--optimizer=sgd"], "optimizer"),
        (["--mixed_precision=fp8"], "bf16"),
        (["--stage1=null"], "init_from"),
        (["--nonsense=1"], "nonsense"),
        (["--batch_size=0"], "batch_size must be at least 1"),
        (["--ema_decay=1"], "ema_decay must be at least 0 and below 1"),
        (["--max_grad_norm=0"], "max_grad_norm must be positive"),
        (
            ["--stage1.losses.energy_weight=0", "--stage1.losses.denoising_weight=0", "--stage1.losses.force_weight=0"],
            "there is nothing to train",
        ),
        (["--stage1.num_steps=0"], "num_steps must be positive"),
        (["--stage1.sources=[{name: pm6, weight: -1}]"], "weight must be positive"),
        (["--evaluation.num_samples=0"], "evaluation.num_samples must be at least 1"),
        (["--evaluation.num_inference_steps=1"], "evaluation.num_inference_steps must be at least 2"),
        (["--evaluation.max_molecules=0"], "evaluation.max_molecules must be at least 1"),
        (["--evaluation.split=all"], "evaluation.split must be one of train, validation, test"),
    ],
)
def test_wrong_options_say_why(wrong, reason, capsys):
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse(wrong)
    assert reason in capsys.readouterr().err + str(caught.value)
