"""A search that loses its driver, a trial, the disk or the machine, and is resumed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tune_runs import SMALL, SMALL_TRIALS, plan_in, start

from pipeline.tracking.journal import RECORDS
from support.files import read_lines
from tune.plan import read_plan
from tune.study import STUDY, Study
from tune.trial import DIVERGED, DONE, RUNNING

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# a search of real runs takes three minutes on two quiet cores
TIMEOUT_S = 1200


def trials_of(plan):
    """The trials of a search, read as another process may: without a change of the file."""
    if not (plan.dir / STUDY).exists():
        return []
    copy = plan.dir.parent / "copy"
    copy.mkdir(exist_ok=True)
    shutil.copy(plan.dir / STUDY, copy)
    return Study.read(plan, copy).trials()


def done(plan):
    """How the trials ended that have ended, by name."""
    return {t.name: t.outcome for t in trials_of(plan) if t.status in (DONE, DIVERGED)}


def wait_for(process, condition):
    """Wait until something is so, while the search runs."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.1)


def actors(process):
    """The processes below another one that drive trials."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "TrialActor" in " ".join(child.cmdline()) or "Trainable" in " ".join(child.cmdline())
    ]


def resumed(runs):
    """The output of a search that goes on to its end."""
    process = start(runs, "resume")
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    return output


def killed(search, plan, condition):
    """Kill a search as soon as something is so; how the trials ended that had ended."""
    wait_for(search, condition)
    search.kill()
    search.communicate()
    return done(plan)


def assert_complete(plan, before):
    """All trials have ended, once, and those that had are as they were."""
    after = done(plan)
    assert len(trials_of(plan)) == len(after) == SMALL_TRIALS
    assert {name: after[name] for name in before} == before


def test_a_killed_driver_loses_no_trial_and_runs_none_twice(tmp_path):
    plan = plan_in(tmp_path, **SMALL)
    before = killed(start(tmp_path), plan, lambda: len(done(plan)) >= 7)
    resumed(tmp_path)
    assert_complete(plan, before)
    from ray.tune import ExperimentAnalysis

    shown = [trial.config["trial"] for trial in ExperimentAnalysis(str(plan.dir / "tune")).trials]
    assert sorted(shown) == sorted(done(plan))


def test_a_killed_trial_is_run_again(tmp_path):
    plan = plan_in(tmp_path, **SMALL)
    search = start(tmp_path)
    wait_for(search, lambda: len(done(plan)) >= 3 and actors(search))
    for actor in actors(search):
        actor.kill()
    output, _ = search.communicate(timeout=TIMEOUT_S)
    assert search.returncode == 0, output
    assert_complete(plan, {})


def test_a_hung_trial_does_not_keep_ctrl_c_from_ending_the_search(tmp_path):
    plan = plan_in(tmp_path, **SMALL)
    search = start(tmp_path)
    wait_for(search, lambda: len(done(plan)) >= 3 and actors(search))
    for actor in actors(search):
        actor.suspend()
    time.sleep(5)
    search.send_signal(signal.SIGINT)
    search.communicate(timeout=90)
    before = done(plan)
    assert len(before) < SMALL_TRIALS
    resumed(tmp_path)
    assert_complete(plan, before)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_ends_the_search_with_its_name_and_it_goes_on_when_there_is_room(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
        plan = plan_in(disk, **SMALL)
        search = start(disk)
        wait_for(search, lambda: len(done(plan)) >= 4)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 10))
        output, _ = search.communicate(timeout=TIMEOUT_S)
        assert search.returncode != 0
        assert "No space left on device" in output
        ballast.unlink()
        before = done(plan)
        resumed(disk)
        assert_complete(plan, before)


def test_a_search_in_a_store_goes_on_here_and_without_the_machine_that_it_began_on(
    tmp_path, monkeypatch
):
    runs, here = (tmp_path / "store").as_uri(), str(tmp_path / "one")
    monkeypatch.setenv("XDG_CACHE_HOME", here)
    plan = plan_in(runs, **SMALL)
    before = killed(start(runs), plan, lambda: len(done(plan)) >= 3)
    said = resumed(runs)
    assert_complete(plan, before)
    shutil.rmtree(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    assert resumed(runs).splitlines()[-1] == said.splitlines()[-1]
    files = {path.name for path in (tmp_path / "store" / "demo-warmup-lr").iterdir()}
    assert {"search.json", STUDY, "best.json", "report.html", RECORDS} <= files


# a rate at which a run cannot but diverge, and others
SPACE = ["--set", "optim.lr=choice(0.001,0.004,1000)", "optim.warmup=0.1"]
EPOCHS = 4
SHORT = ["--rungs", "4/2", "3/1", "--seeds", "2", "--base.epochs", str(EPOCHS)]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A search of real runs that was killed between its trials and resumed."""
    runs = tmp_path_factory.mktemp("resume")
    command = [sys.executable, "-m", "tune", "search", "demo", "--base.runs-dir", str(runs)]
    command += [*SPACE, *SHORT]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first = subprocess.Popen(command, **pipes)
    folder = runs / "demo-warmup-lr"
    wait_for(first, (folder / "search.json").exists)
    plan = read_plan(folder)
    before = killed(
        first,
        plan,
        lambda: done(plan) and any(trial.status == RUNNING for trial in trials_of(plan)),
    )
    second = subprocess.Popen([*command, "--resume"], **pipes)
    output, _ = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 0, output
    return {"plan": plan, "before": before, "output": output, "runs": runs}


def test_a_search_of_real_runs_ends_after_its_driver_was_killed(real):
    after = done(real["plan"])
    assert len(trials_of(real["plan"])) == len(after) == 4 + 3 + 4
    assert {name: after[name] for name in real["before"]} == real["before"]
    for name in after:
        path = real["plan"].dir / "trials" / name / RECORDS
        steps = [line["step"] for line, _ in read_lines(path) if line["kind"] == "train"]
        assert steps == sorted(set(steps)), "a step was recorded twice"


def test_a_rate_far_too_high_is_recorded_as_diverged(real):
    diverged = [name for name, outcome in done(real["plan"]).items() if outcome.status == DIVERGED]
    assert len(diverged) == 1
    assert "Traceback" not in real["output"]


def test_mlflow_has_one_parent_with_all_trials_below_it(real):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{real['runs']}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("vit").experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run is not parent]
    assert parent.info.run_name == "demo-warmup-lr"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.info.run_name for run in children) == sorted(done(real["plan"]))
    assert {run.info.status for run in found} == {"FINISHED"}
    outcomes = [run.data.tags["outcome"] for run in children]
    assert sorted(outcomes) == ["diverged", *["done"] * 10]


def test_checkpoints_of_ended_trials_are_removed(real):
    assert not list(real["plan"].dir.glob("trials/*/checkpoints/*"))


def test_train_takes_the_answer_as_it_is(real):
    best = json.loads((real["plan"].dir / "best.json").read_text())
    assert best["settings"]["epochs"] == EPOCHS
    command = [sys.executable, "-m", "pipeline", "train", "--preset-file"]
    command += [str(real["plan"].dir / "best.json"), "--plan"]
    planned = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert f" {EPOCHS} epochs" in planned.stdout
