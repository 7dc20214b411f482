"""A real search of tiny runs whose driver is killed in the middle, and which is resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.tracking.journal import RECORDS
from support.files import read_lines
from tune.trial_log import DIVERGED, DONE, ENDED, STARTED, TRIALS, read_entries

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TIMEOUT_S = 420
# the baseline's rate, one at which a run cannot but diverge, and a lower one
RATES = ["optim.lr=choice(1000,0.001)", "optim.warmup=0.1"]
TRIALS_IN_ALL, EPOCHS = 3, 6
SEARCH = ["--trials", str(TRIALS_IN_ALL), "--sampler", "grid", "--set", *RATES]
SHORT = ["--seeds", "1", "--evals", "2", "--base.epochs", str(EPOCHS), "--stopper", "none"]


def start(runs, *more):
    command = [sys.executable, "-m", "tune", "search", "demo", "--base.runs-dir", str(runs)]
    return subprocess.Popen(
        [*command, *SEARCH, *SHORT, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def lines(folder):
    return [line for line, _ in read_lines(folder / TRIALS)]


def halfway(folder):
    """Whether a trial has ended, and another is running."""
    written = lines(folder)
    ended = [line for line in written if line["status"] in ENDED]
    return bool(ended) and len(written) - len(ended) > len(ended)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A search that was killed between its trials and resumed, and its log before and after."""
    runs = tmp_path_factory.mktemp("resume")
    folder = runs / "demo-warmup-lr"
    first = start(runs)
    deadline = time.monotonic() + TIMEOUT_S
    while not halfway(folder):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = lines(folder)
    second = start(runs, "--resume")
    output, _ = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 0, output
    return {"folder": folder, "before": before, "output": output, "runs": runs}


def test_no_trial_is_run_twice_and_none_is_missing(resumed):
    after = lines(resumed["folder"])
    assert after[: len(resumed["before"])] == resumed["before"]
    started = [line["number"] for line in after if line["status"] == STARTED]
    ended = [line["number"] for line in after if line["status"] in ENDED]
    assert sorted(started) == sorted(ended) == list(range(TRIALS_IN_ALL))


def test_a_running_trial_is_resumed_with_its_own_settings(resumed):
    entries = {entry.number: entry for entry in read_entries(resumed["folder"] / TRIALS)}
    for line in resumed["before"]:
        assert entries[line["number"]].sample == line["sample"]
    for entry in entries.values():
        path = resumed["folder"] / "trials" / entry.name / RECORDS
        steps = [line["step"] for line, _ in read_lines(path) if line["kind"] == "train"]
        assert steps == sorted(set(steps)), "a step was recorded twice"


def test_a_rate_far_too_high_is_recorded_as_diverged(resumed):
    for entry in read_entries(resumed["folder"] / TRIALS):
        high = entry.sample["optim.lr"] > 1
        assert entry.status == (DIVERGED if high else DONE)
        assert ("loss" in entry.reason) == high
    assert "Traceback" not in resumed["output"]


def test_mlflow_has_one_parent_with_all_trials_below_it(resumed):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{resumed['runs']}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("vit").experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run is not parent]
    assert parent.info.run_name == "demo-warmup-lr"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    names = [f"trial-{n:03d}" for n in range(TRIALS_IN_ALL)]
    assert sorted(run.info.run_name for run in children) == names
    assert {run.info.status for run in found} == {"FINISHED"}
    outcomes = [run.data.tags["outcome"] for run in children]
    assert sorted(outcomes) == ["diverged", "done", "done"]
    assert parent.data.metrics["best"] > 0


def test_train_takes_the_best_settings_as_they_are(resumed):
    best = json.loads((resumed["folder"] / "best.json").read_text())
    assert best["settings"]["epochs"] == EPOCHS
    command = [sys.executable, "-m", "pipeline", "train", "--preset-file"]
    command += [str(resumed["folder"] / "best.json"), "--plan"]
    planned = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert f" {EPOCHS} epochs" in planned.stdout
