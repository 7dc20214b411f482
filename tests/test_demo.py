"""The whole pipeline on real input: interrupted by Ctrl-C, resumed, evaluated, recorded."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray

TIMEOUT_S = 900
# a run that is short, but long enough to be interrupted: 8 epochs of 1,437 digits in
# batches of 128
SHORT, STEPS = ("--epochs", "8"), 90


def start(runs: Path, *changes: str) -> subprocess.Popen:
    """Start the demo as a terminal does: in a process group of its own."""
    command = [sys.executable, "-m", "pipeline", "train", "demo", "--runs-dir", str(runs)]
    return subprocess.Popen(
        [*command, *changes],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        preexec_fn=listen_to_ctrl_c,
    )


def listen_to_ctrl_c() -> None:
    """Undo what a child inherits where the tests run in the background of a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition, process: subprocess.Popen) -> None:
    """Wait until a condition holds, as long as the process runs."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.1)


def last_step(runs: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    return max((int(path.name[5:]) for path in runs.glob("demo/checkpoints/step-*")), default=0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo that was interrupted and then finished, and all that it printed."""
    runs = tmp_path_factory.mktemp("demo") / "runs"

    first = start(runs, *SHORT)
    wait_for(lambda: last_step(runs), first)
    family = psutil.Process(first.pid).children(recursive=True)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C
    interrupted, _ = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 130, interrupted
    _, alive = psutil.wait_procs(family, timeout=60)
    left = [path for path in runs.rglob("*") if path.suffix == ".tmp" or path.name[:6] == ".step-"]
    second = start(runs, *SHORT)
    finished, _ = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 0, finished
    return {
        "runs": runs,
        "interrupted": interrupted,
        "finished": finished,
        "alive": alive,
        "left": left,
    }


def records(runs: Path) -> list[dict]:
    return [json.loads(line) for line in (runs / "demo/metrics.jsonl").read_text().splitlines()]


def test_ctrl_c_leaves_no_process_and_no_half_written_file(demo):
    assert demo["alive"] == []
    assert demo["left"] == []
    assert "the same command resumes" in demo["interrupted"]
    assert "Traceback" not in demo["interrupted"]


def test_the_same_command_resumes_from_the_last_checkpoint(demo):
    step = int(re.search(r"from step-(\d+)", demo["finished"])[1])
    assert step > 30 or step % 30 == 0


def test_top_1_on_held_out_digits_is_far_above_chance(demo):
    result = json.loads((demo["runs"] / "demo/result.json").read_text())
    # a tenth is chance; that the whole demo reaches 96 percent is shown by test_wheel.py
    assert result["protocols"]["center"]["top1"] >= 0.60
    assert result["protocols"]["five"]["top1"] >= 0.60
    assert result["protocols"]["center"]["images"] == 360
    assert Path(result["checkpoint"]).is_dir()


def test_run_ends_with_a_table(demo):
    table = demo["finished"][demo["finished"].index("crops") :]
    for word in ("center", "five", "top-1", "top-5", "images/s", "checkpoint", "mlflow ui"):
        assert word in table
    assert "Downloading artifacts" not in demo["finished"]  # MLflow's bars


def test_each_step_is_recorded_once(demo):
    steps = [item["step"] for item in records(demo["runs"]) if item["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS


def test_mlflow_shows_one_run_with_parameters_metrics_checkpoint_and_evaluation(demo):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{demo['runs']}/mlflow.db")
    experiment = client.get_experiment_by_name("vit")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "demo"
    assert run.data.params["optim.lr"] == "0.002"
    recorded = {r["step"]: r["train/loss"] for r in records(demo["runs"]) if r["kind"] == "train"}
    assert history_of(client, run, "train/loss") == recorded
    names = ("center", "five-logits")
    figures = {name: run.data.metrics[f"eval/val/{name}/top1"] for name in names}
    assert min(figures.values()) >= 0.60
    assert not [name for name in run.data.metrics if name.startswith(("final/", "checkpoint/"))]
    (point,) = client.get_metric_history(run.info.run_id, "eval/val/five-logits/top1")
    assert point.step == STEPS  # that of the checkpoint
    models = {model.name: model for model in client.search_logged_models([run.info.experiment_id])}
    attached = {metric.key: metric.value for metric in models[f"demo-step-{STEPS}"].metrics}
    assert attached["eval/val/five-logits/top1"] == point.value
    assert attached["val/top1"] == history_of(client, run, "val/top1")[STEPS]


def history_of(client, run, name: str) -> dict[int, float]:
    """The points of a metric by step, of which each has one."""
    history = client.get_metric_history(run.info.run_id, name)
    points = {point.step: point.value for point in history}
    assert len(points) == len(history)
    return points


def test_broken_members_are_named_and_odd_modes_arrive_as_rgb(demo):
    for member in ("n00000003_9001.JPEG", "n00000007_9002.JPEG"):
        assert member in demo["interrupted"]


def test_a_finished_run_shows_its_result_again(demo):
    again = start(demo["runs"], *SHORT)
    output, _ = again.communicate(timeout=TIMEOUT_S)
    assert again.returncode == 0
    assert "is finished" in output and "top-1" in output
