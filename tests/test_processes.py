"""Any number of processes, with whole or spread models, gives the run of one process."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import train_with_every_loss
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from conftest import small_model
from safetensors.torch import load_file
from test_training import LABELLED, ROOT, small_config
from test_training_engine import ENVIRONMENT, FORK
from torch.distributed.elastic.utils.distributed import get_free_port

from modeling_pcbridge import LossSettings
from pcbridge.training import run as training_run
from pcbridge.training.config import StageConfig
from pcbridge.training.run import run
from pcbridge.training.update import LOSS_NAMES
from train_accelerate import parse


def in_forks(processes: int, arguments: tuple[str, ...]) -> None:
    """As torchrun would, without the seconds that imports take."""
    port = str(get_free_port())

    def train(rank: int) -> None:
        if processes > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        AcceleratorState._reset_state(reset_partial_state=True)
        train_with_every_loss.main(Path(arguments[0]), int(arguments[1]), *arguments[2:])

    ranks = [FORK.Process(target=train, args=(rank,)) for rank in range(processes)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == processes * [0]


def train(
    folder: Path,
    processes: int = 1,
    configuration: str | None = None,
    optimizer: str = "adam",
    dtype: str = "float64",
) -> tuple[list[dict], dict]:
    """Twelve updates of four micro-batches with every loss, dealt out to the processes; history and weights.

    `accelerate launch` starts them if there is a configuration.
    """
    folder.mkdir(exist_ok=True)
    arguments = (str(folder), str(4 // processes), optimizer, dtype)
    if configuration is None:
        in_forks(processes, arguments)
    else:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port=0"]
        command += ["--config_file", str(ROOT / "configs" / "accelerate" / f"{configuration}.yaml")]
        command += [f"--num_processes={processes}", str(ROOT / "tests" / "train_with_every_loss.py"), *arguments]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    ran_on, history = json.loads((folder / "history.json").read_text())
    assert ran_on == processes
    return history, load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> tuple[Path, list[dict], dict]:
    folder = tmp_path_factory.mktemp("one")
    history, weights = train(folder)
    assert history[0]["optimality_consistency_loss"] > 0 and history[0]["score_consistency_loss"] > 0
    initial = small_model(num_structure_layers=1).state_dict()
    assert max((weights[name] - tensor).abs().max().item() for name, tensor in initial.items()) > 1e-3
    return folder, history, weights


def stage_state(output_dir: Path, step: int) -> Path:
    return output_dir / "training_state" / "stage" / f"step-{step:08d}"


@pytest.mark.parametrize(
    "processes, configuration, resumed",
    [
        (2, None, False),
        (2, "fsdp2_8_gpus", True),
        pytest.param(2, "fsdp2_8_gpus", False, marks=pytest.mark.slow),
        pytest.param(4, "ddp_8_gpus", False, marks=pytest.mark.slow),
    ],
)
def test_processes_do_not_change_the_run(one_process, tmp_path, processes, configuration, resumed):
    """Parts of unequal number, validation and training states included; `resumed` from a state of one process."""
    one, expected_history, expected_weights = one_process
    if resumed:
        shutil.copytree(stage_state(one, 10), stage_state(tmp_path, 10))
    history, weights = train(tmp_path, processes, configuration)
    for record, expected in zip(history, expected_history, strict=True):
        for name, value in expected.items():
            # Totals are kept in float32. The padded share is a mean over processes of means over their parts.
            assert record[name] == pytest.approx(value, rel=0.1 if name == "padded_share" else 1e-6), name
    tensors = [(weights, expected_weights)]
    for file in ("modules.safetensors", "optimizers.safetensors"):
        tensors.append(tuple(load_file(stage_state(folder, 12) / file) for folder in (tmp_path, one)))
    for got, expected in tensors:
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (got[name] - tensor).abs().max() < 1e-9 * max(1, tensor.abs().max()), name


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_deepspeed_gives_the_run_of_one_process(tmp_path, resumed):
    """In float32, which its copy of the weights is in: Adam turns rounding of a vanishing gradient into whole steps."""
    pytest.importorskip("deepspeed")
    one, two = tmp_path / "one", tmp_path / "two"
    expected_history, _ = train(one, dtype="float32")
    if resumed:
        shutil.copytree(stage_state(one, 10), stage_state(two, 10))
    history, _ = train(two, 2, "deepspeed_8_gpus", dtype="float32")
    for record, expected in zip(history, expected_history, strict=True):
        for name in (*LOSS_NAMES, "gradient_norm", "validation_loss"):
            assert record[name] == pytest.approx(expected[name], rel=1e-5), name
    for file, tolerance in (("modules.safetensors", 3e-3), ("optimizers.safetensors", 1e-6)):
        got, expected = (load_file(stage_state(folder, 12) / file) for folder in (two, one))
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (got[name] - tensor).abs().max() < tolerance * max(1, tensor.abs().max()), name


@pytest.mark.slow
def test_muon_on_sharded_matrices_is_off_by_its_own_rounding(tmp_path):
    """It works in bfloat16 inside: a sum in another order moves the weights, after 12 updates by .7 % of their way."""
    _, one = train(tmp_path / "one", optimizer="muon")
    _, sharded = train(tmp_path / "sharded", 2, "fsdp2_8_gpus", optimizer="muon")
    initial = small_model(num_structure_layers=1).state_dict()

    def distance(first: dict, second: dict) -> float:
        return sum((first[name] - tensor).square().sum().item() for name, tensor in second.items()) ** 0.5

    assert distance(one, sharded) < 0.03 * distance(one, initial)


def deepspeed(**plugin) -> dict:
    plugin = SimpleNamespace(**{"zero_stage": 1, "offload_optimizer_device": "none", **plugin})
    return {"distributed_type": DistributedType.DEEPSPEED, "deepspeed_plugins": plugin}


def fsdp(**plugin) -> dict:
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **plugin})
    return {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}


@pytest.mark.parametrize(
    "changes, options, reason",
    [
        ({"distributed_type": DistributedType.MEGATRON_LM}, {}, "--multi_gpu"),
        (deepspeed(zero_stage=2), {}, "zero_stage 1 without"),
        (deepspeed(offload_optimizer_device="cpu"), {}, "zero_stage 1 without"),
        (deepspeed(), {"optimizer": "muon"}, "needs whole matrices"),
        (deepspeed(), {"optimizer": "adam", "mixed_precision": "bf16"}, "no autocast"),
        (deepspeed(), {"compile": True}, "has not been tried"),
        (fsdp(fsdp_version=1), {}, "--multi_gpu"),
        (fsdp(cpu_ram_efficient_loading=True), {}, "to false"),
    ],
)
def test_ways_to_spread_a_model_that_would_go_wrong_are_refused(
    tmp_path, fresh_accelerate, monkeypatch, changes, options, reason
):
    accelerator = Accelerator(cpu=True)
    for name, value in changes.items():
        setattr(accelerator.state, name, value)
    monkeypatch.setattr(training_run, "Accelerator", lambda **_: accelerator)
    with pytest.raises(ValueError, match=reason):
        run(replace(small_config(tmp_path), **options))


# The training script, but the main process evaluates for as long as the other takes to leave.
LEAVING = """
import atexit, os, sys, time
from pathlib import Path
import torch
import train_accelerate
from pcbridge.training import run

left = Path(sys.argv.pop(1))
if os.environ["RANK"] != "0":
    atexit.register(left.touch)

def evaluate(*_):
    assert not torch.distributed.is_initialized()
    while not left.exists():
        time.sleep(0.1)
    return {"evaluated": os.environ["RANK"]}

run.evaluate_checkpoints, run.results_markdown = evaluate, lambda _: ""
train_accelerate.main()
"""


def test_the_script_in_two_processes_is_that_of_one_with_the_same_global_batch(tmp_path):
    """They see the rows of one process that accumulates two micro-batches, and leave before the main one evaluates:
    NCCL ends a process group on all processes or on none, and an evaluation may take hours."""
    few = [{"name": "pm6", "only_labelled": True, "max_rows": 60}, {"name": "pm6_displaced", "max_rows": 30}]
    start = tmp_path / "start"
    run(small_config(start, stage1=StageConfig(1, 1e-5, 1, LABELLED, LossSettings())))
    options = [
        f"--init_from={start / 'stage1'}",
        "--compare_multi_task=false",
        "--cpu=true",
        "--stage1=null",
        "--stage2.num_steps=6",
        f"--stage2.sources={json.dumps(few)}",
        # Losses without noise, since each process draws its own.
        "--stage2.losses.denoising_weight=0",
        "--stage2.losses.optimality_weight=0",
        "--stage2.losses.score_weight=0",
    ]
    run(parse([*options, "--evaluation=null", f"--output_dir={tmp_path / 'one'}", "--gradient_accumulation_steps=2"]))
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path / "left"), *options, f"--output_dir={tmp_path / 'two'}"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[1]["evaluated"] == "0"
    for a, b in zip(*(each["histories"]["consistency"] for each in metrics), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        # Adam and Muon do not see the scale of the gradient; its norm before clipping does.
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
        assert a["force_loss"] > 0
    initial = load_file(start / "stage1" / "model.safetensors")
    weights = [load_file(tmp_path / name / "consistency" / "model.safetensors") for name in ("one", "two")]
    # Together, as Adam makes whole steps of the rounding of gradients that vanish, such as those of biases of keys.
    moved, apart = (
        sum((weights[0][name] - tensor).square().sum().item() for name, tensor in other.items()) ** 0.5
        for other in (initial, weights[1])
    )
    assert apart < 0.03 * moved
