"""A run that is killed: MLflow has its models, their evaluations and its page up to then."""

import json
import os
import re
import signal
from types import SimpleNamespace

import mlflow
import psutil
import pytest
from mlflow_server import MlflowServer
from test_demo import TIMEOUT_S, start, wait_for
from test_pipeline_report import CHROMIUM, browser, shown

from pipeline.checkpoint import local
from pipeline.tracking import journal

pytestmark = [pytest.mark.ray, pytest.mark.server]

# longer than the tests
LONG = ("--epochs", "900", "--model.depth", "1", "--model.width", "32", "--model.mlp-width", "32")
LONG += ("--workers", "1", "--eval-every", "60", "--checkpoint-every", "60")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What MLflow had after a run was killed, and after its next start was interrupted."""
    folder = tmp_path_factory.mktemp("killed")
    server, patch = MlflowServer(folder), pytest.MonkeyPatch()
    server.start()
    patch.setenv("MLFLOW_TRACKING_URI", server.uri)
    try:
        yield SimpleNamespace(
            sigkill=run_until(server, folder, kill, "--log-every", "20"),
            ctrl_c=run_until(server, folder, interrupt, "--log-every", "10"),
            folder=folder / "runs/demo",
        )
    finally:
        patch.undo()
        server.kill()


def run_until(server, folder, end, *changes):
    """Run until MLflow has a new model and the page, end the run, and tell what MLflow has then."""
    before = max(found(server, folder).models, default=0)
    process = start(folder / "runs", *LONG, *changes)

    def is_there():
        now = found(server, folder)
        return now.page and max(now.models, default=0) > before

    wait_for(is_there, process)
    end(process)
    return found(server, folder, look=end is kill and bool(CHROMIUM))


def kill(process):
    """SIGKILL, so that nothing more can be sent."""
    family = psutil.Process(process.pid).children(recursive=True)
    for member in (process, *family):
        member.kill()
    process.communicate()


def interrupt(process):
    """Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output


def found(server, folder, *, look=False):
    """The run in MLflow: status, models by step, points of val/top1, page; and the look of it."""
    client, nothing = mlflow.MlflowClient(server.uri), SimpleNamespace(models={}, page="")
    experiment = client.get_experiment_by_name("vit")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    if not runs:
        return nothing
    (run,), number = runs, experiment.experiment_id
    models = [model for model in client.search_logged_models([number]) if model.metrics]
    page, copy = "", folder / "page/report.html"
    if any(item.path == copy.name for item in client.list_artifacts(run.info.run_id)):
        copy.parent.mkdir(exist_ok=True)
        client.download_artifacts(run.info.run_id, copy.name, str(copy.parent))
        page = copy.read_text()
    address = f"{server.uri}/#/experiments/{number}/runs/{run.info.run_id}"
    return SimpleNamespace(
        status=run.info.status,
        models={int(model.params["step"]): model for model in models},
        points=client.get_metric_history(run.info.run_id, "val/top1"),
        page=page,
        overview=shown(address, folder, 30_000)[0] if look else "",
        shown_page=shown(copy.as_uri(), folder, 3000)[0] if look else "",
    )


def top1_of(model):
    return {metric.key: metric.value for metric in model.metrics}["val/top1"]


def records(folder):
    return {r["step"]: r for r, _ in journal.read_records(folder) if r["kind"] == "eval"}


def test_after_sigkill_mlflow_has_models_evaluations_and_page(killed):
    at = killed.sigkill
    assert at.status == "RUNNING" and "running" in at.page  # nobody could say otherwise
    recorded = records(killed.folder)
    for step, model in at.models.items():
        assert model.name == f"demo-step-{step}"
        assert top1_of(model) == recorded[step]["val/top1"]
    # models are sent before the page that names them
    assert max(map(int, re.findall(r"step-(\d{9})", at.page))) >= min(at.models)


@browser
def test_a_browser_shows_the_model_the_figure_and_the_page_of_a_killed_run(killed):
    at = killed.sigkill
    assert f"demo-step-{max(at.models)}" in at.overview and "val/top1" in at.overview
    assert at.shown_page.count('<g class="line">') >= 5 and "running" in at.shown_page


def test_after_ctrl_c_the_record_ends_and_its_models_are_those_of_the_checkpoints(killed):
    at = killed.ctrl_c
    assert at.status == "KILLED" and ">interrupted</span>" in at.page
    kept = [c.step for c in local.checkpoints(killed.folder / "checkpoints") if c.metrics]
    assert sorted(at.models) == kept
    assert min(at.models) > max(killed.sigkill.models)


def test_the_evaluation_of_a_step_is_one_point(killed):
    recorded = records(killed.folder)
    points = [(point.step, point.timestamp, point.value) for point in killed.ctrl_c.points]
    expected = [(s, int(1000 * r["time"]), r["val/top1"]) for s, r in recorded.items()]
    assert sorted(points) == expected


def test_settings_follow_what_the_resumed_start_changed(killed):
    assert json.loads((killed.folder / "config.json").read_text())["log_every"] == 10
    assert "log_every 20 -&gt; 10" in killed.ctrl_c.page
