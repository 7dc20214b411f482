"""A run that is killed anywhere ends with the same bits; any number of workers, same batches."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from pipeline.checkpoint import local
from pipeline.checkpoint.stored import read_state
from pipeline.rollback import roll_back
from pipeline.run import fit
from pipeline.settings.config import DataConfig, RecordConfig, TrainConfig
from pipeline.tracking.journal import read_records
from vit.config import ImageConfig, MixConfig, OptimConfig, ViTConfig

pytestmark = pytest.mark.ray

STEPS, BATCH = 80, 50
LOG_EVERY = 30  # most checkpoints are in the middle of an interval
RECORDED = [*range(LOG_EVERY, STEPS, LOG_EVERY), STEPS]
TIMEOUT_S = 900


def config(name: str, runs: Path, digits: Path, **changes) -> TrainConfig:
    """A small run with augmentation, mixing, averaging and accumulation in use."""
    settings = {
        "name": name,
        "runs_dir": str(runs),
        "data": DataConfig(dir=str(digits), slice_samples=7, task_samples=100),
        "model": ViTConfig(
            image_size=16, patch_size=8, width=32, depth=2, mlp_width=64, heads=2, pool="mean"
        ),
        "images": ImageConfig(crop_area=(0.5, 1.0), flip=False),
        "mix": MixConfig(mixup=0.2),
        "optim": OptimConfig(lr=1e-3, warmup=20, warmup_unit="steps", ema=0.99),
        "epochs": STEPS * BATCH / 1437,
        "global_batch": BATCH,
        "micro_batch": 14,
        "workers": 2,
        "precision": "fp32",
        "compile": False,
        "log_every": LOG_EVERY,
        "eval_every": STEPS // 2,
        "checkpoint_every": 10,
        "crops": "center",
        "audit": True,
        "record": RecordConfig(models="none"),
        "max_restarts": 10,
        **changes,
    }
    return TrainConfig(**settings)


def keys(run: Path) -> list[list[str]]:
    """Keys of every global batch, in order."""
    paths = sorted((run / "samples").glob("step-*"))
    assert [path.name for path in paths] == [f"step-{n + 1:09d}.json" for n in range(STEPS)]
    return [json.loads(path.read_text()) for path in paths]


def losses(run: Path) -> dict[tuple[int, str], float]:
    """Means and extremes of loss and norm, by step and name."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    names = ("train/loss", "train/loss_min", "train/loss_max", "grad_norm", "grad_norm_max")
    return {(r["step"], name): r[name] for r in records if r["kind"] == "train" for name in names}


def weights(run: Path, step: int = STEPS) -> dict:
    return load_file(run / "checkpoints" / f"step-{step:09d}" / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, digits, tmp_path_factory):
    """Folder of a run with two workers that nothing interrupted, with all its checkpoints."""
    runs = tmp_path_factory.mktemp("exact")
    fit(config("undisturbed", runs, digits, keep_checkpoints=100))
    return runs / "undisturbed"


def start(settings: TrainConfig) -> subprocess.Popen:
    """The run as a process of its own, with a Ray of its own."""
    code = (
        "import json, sys\n"
        "from pipeline.settings.config import TrainConfig\n"
        "from pipeline.run import fit\n"
        "from support.console import open_console\n"
        "if __name__ == '__main__':\n"
        "    open_console(verbose=False)\n"
        "    fit(TrainConfig().replace(json.loads(sys.argv[1])))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(settings.flat())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is a training worker that runs."""
    try:
        return "RayTrainWorker" in str(process.cmdline())
    except psutil.Error:  # it has ended
        return False


def kill(process: subprocess.Popen, victim: str, draw: random.Random) -> None:
    """SIGKILL a training worker, the driver, or the whole tree."""
    family = psutil.Process(process.pid).children(recursive=True)
    workers = list(filter(is_worker, family))
    if victim == "worker" and workers:
        draw.choice(workers).kill()
        return
    process.kill()
    if victim == "tree":
        for member in family:
            member.kill()
    process.communicate()
    psutil.wait_procs(workers, timeout=30)  # not for Ray's agents, which stay for a minute


def train_and_kill(settings: TrainConfig, victims: Sequence[str], draw: random.Random) -> Path:
    """Train to the end, and kill each victim at a random step on the way; folder of the run."""
    run = Path(settings.runs_dir) / settings.name
    process = start(settings)
    for victim, moment in zip(
        victims, sorted(draw.sample(range(5, STEPS - 5), len(victims))), strict=True
    ):
        reached = run / "samples" / f"step-{moment:09d}.json"
        deadline = time.monotonic() + TIMEOUT_S
        while not reached.exists():
            assert time.monotonic() < deadline
            if process.poll() is not None:
                pytest.fail(process.communicate()[0])
            time.sleep(0.02)
        kill(process, victim, draw)
        if process.poll() is not None:
            process = start(settings)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    return run


def assert_the_same_run(run: Path, undisturbed: Path) -> None:
    """The same batches, the same records of the loss, the same weights to the bit."""
    assert keys(run) == keys(undisturbed)
    assert losses(run) == losses(undisturbed)
    expected = weights(undisturbed)
    assert all((tensor == expected[name]).all() for name, tensor in weights(run).items())


def assert_the_same_batches_and_losses(run: Path, undisturbed: Path) -> None:
    """The same batches, and the same losses up to the order of additions in float32."""
    assert keys(run) == keys(undisturbed)
    expected = losses(undisturbed)
    assert losses(run) == pytest.approx(expected, abs=1e-4, rel=1e-3)
    assert len(expected) == 5 * len(RECORDED)


def test_a_run_that_loses_a_worker_ends_with_the_same_bits(undisturbed, digits, tmp_path):
    killed = []

    def kill_one(record: dict) -> None:
        if record["kind"] == "checkpoint" and record["step"] == STEPS // 2 and not killed:
            killed.append(next(filter(is_worker, psutil.Process().children(recursive=True))))
            killed[0].kill()

    fit(config("killed", tmp_path, digits), on_record=kill_one)
    assert killed
    assert_the_same_run(tmp_path / "killed", undisturbed)


@pytest.mark.slow
def test_killed_in_each_way_the_run_ends_with_the_same_bits(undisturbed, digits, tmp_path):
    settings = config("killed", tmp_path, digits)
    run = train_and_kill(settings, ("worker", "driver", "tree"), random.Random(8))
    assert_the_same_run(run, undisturbed)


def test_every_sample_is_consumed_exactly_once_in_an_epoch(undisturbed):
    consumed = [key for batch in keys(undisturbed) for key in batch]
    assert len(consumed) == STEPS * BATCH
    for epoch in range(STEPS * BATCH // 1437):
        assert len(set(consumed[epoch * 1437 : (epoch + 1) * 1437])) == 1437


@pytest.mark.slow
def test_three_sharded_workers_and_then_one_see_the_same_batches_and_losses(
    undisturbed, digits, tmp_path
):
    def halfway(record: dict) -> str | None:
        reached = record["kind"] == "eval" and record["step"] >= STEPS // 2
        return "halfway" if reached else None

    settings = config("other", tmp_path, digits, workers=3, parallel="fsdp")
    assert fit(settings, on_record=halfway) is None
    fit(config("other", tmp_path, digits, workers=1, parallel="ddp"))
    assert_the_same_batches_and_losses(tmp_path / "other", undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB for the checkpoints of the run "full"; a function that makes it larger."""
    folder = tmp_path / "full" / "checkpoints"
    folder.mkdir(parents=True)

    def mount(*options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"cannot mount a small disk here: {result.stderr.strip()}")

    mount("size=2m")
    yield lambda: mount("remount", "size=100m")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_stops_the_run_and_room_lets_it_resume(
    undisturbed, digits, tmp_path, small_disk
):
    settings = config("full", tmp_path, digits, keep_checkpoints=100, max_restarts=0)
    with pytest.raises(RuntimeError, match="could not be written .*bytes are free.*make room"):
        fit(settings)
    kept = local.checkpoints(tmp_path / "full" / "checkpoints")
    assert 1 <= len(kept) < STEPS // 10
    assert read_state(kept[-1].path)["optimizer"]
    small_disk()
    fit(settings)
    assert keys(tmp_path / "full") == keys(undisturbed)
    assert losses(tmp_path / "full") == losses(undisturbed)


@pytest.mark.slow
def test_a_run_that_diverged_goes_on_from_its_checkpoint_to_the_same_bits(
    undisturbed, digits, tmp_path
):
    """The rate is made absurd from step 35 on, and made right again."""
    absurd = config("diverged", tmp_path, digits, lr_factors=("35:1e30",))
    with pytest.raises(FloatingPointError, match=r"in step 3\d; .*--skip-steps 3\d:3\d "):
        fit(absurd)
    fit(config("diverged", tmp_path, digits))
    assert_the_same_run(tmp_path / "diverged", undisturbed)


@pytest.mark.slow
def test_a_finished_run_is_rolled_back_and_takes_the_same_course_again(
    undisturbed, digits, tmp_path
):
    shutil.copytree(undisturbed.parent, tmp_path / "runs")
    run = tmp_path / "runs" / undisturbed.name
    roll_back(str(run), 50)
    assert not (run / "result.json").exists()
    assert [checkpoint.step for checkpoint in local.checkpoints(run / "checkpoints")][-1] == 50
    fit(config(run.name, run.parent, digits, keep_checkpoints=100))
    assert_the_same_run(run, undisturbed)
    train = [record for record, _ in read_records(run) if record["kind"] == "train"]
    assert [record["step"] for record in train] == RECORDED


@pytest.mark.slow
def test_four_workers_see_the_same_batches_and_skipped_steps_have_no_update(
    undisturbed, digits, tmp_path
):
    changes = {"workers": 4, "skip_steps": ("31:40",), "keep_checkpoints": 100}
    fit(config("skips", tmp_path, digits, **changes))
    run = tmp_path / "skips"
    assert keys(run) == keys(undisturbed)
    before = weights(run, 30)
    assert all((tensor == before[name]).all() for name, tensor in weights(run, 40).items())
    found, expected = losses(run), losses(undisturbed)
    assert found.keys() == expected.keys()
    place = 30, "train/loss"  # up to the order of additions in float32
    assert found[place] == pytest.approx(expected[place], abs=1e-4)


@pytest.mark.slow
def test_a_worker_that_hangs_is_named_and_the_run_ends_with_the_same_bits(
    undisturbed, digits, tmp_path
):
    settings = config("hangs", tmp_path, digits, hang_minutes=0.2)
    process = start(settings)
    reached = tmp_path / "hangs/samples/step-000000025.json"
    deadline = time.monotonic() + TIMEOUT_S
    while not reached.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    next(filter(is_worker, psutil.Process(process.pid).children(recursive=True))).suspend()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert re.search(r"rank \d on node .* is in step \d+, phase", output), output
    assert_the_same_run(tmp_path / "hangs", undisturbed)
