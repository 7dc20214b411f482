"""The record reaches MLflow whatever happens to its server: all of it, once, in order, unseen."""

import contextlib
import json
import logging
import math
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time

import mlflow
import pytest
import torch
from checkpoints import write
from mlflow_server import Door, MlflowServer

from pipeline import run_events
from pipeline.checkpoint import local
from pipeline.evaluation.model import EvalModel
from pipeline.settings.presets import find_preset
from pipeline.tracking import journal, mlflow_sync
from pipeline.tracking.mlflow_address import tracking_uri
from pipeline.tracking.mlflow_client import TrackingServer
from pipeline.tracking.recorder import Recorder
from support.console import open_console
from support.files import append_line, read_lines
from support.redact import RedactingFormatter, redact, redacted
from vit.model import ViT

CLASSES = tuple(f"n{number:08d}" for number in range(10))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real MLflow server; tests that kill it start it again."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def door(server):
    door = Door(server.port, token="t0ken-of-this-test")
    yield door
    door.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Short pauses; patience enough for a server on a busy machine."""
    monkeypatch.setattr(mlflow_sync, "PAUSE_S", 0.05)
    monkeypatch.setattr(mlflow_sync, "MAX_PAUSE_S", 0.3)
    monkeypatch.setattr(mlflow_sync, "PATIENCE_S", 60)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def record(folder, name="run", settings=None, **more) -> Recorder:
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings or {"optim.lr": 0.1, "name": name}
    return Recorder(folder, name=name, experiment="test", settings=settings, **more)


def train(recorder: Recorder, first: int, last: int, pause_s: float = 0.0) -> list[float]:
    """Steps that leave a record each; seconds of each step."""
    times = []
    for step in range(first, last):
        before = time.perf_counter()
        if pause_s:
            time.sleep(pause_s)
        recorder.add({"kind": "train", "step": step, "train/loss": 1 / (step + 1), "lr": 0.1})
        times.append(time.perf_counter() - before)
    return times


def run_at(store: str, folder) -> mlflow.entities.Run:
    """The run of a folder, as the store has it."""
    token = json.loads((folder / "mlflow.json").read_text())["token"]
    client = mlflow.MlflowClient(store)
    found = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], f"tags.run_token = '{token}'"
    )
    (run,) = found
    return run


def points(store: str, folder, name: str = "train/loss") -> list[tuple[int, float]]:
    history = mlflow.MlflowClient(store).get_metric_history(run_at(store, folder).info.run_id, name)
    return [(point.step, point.value) for point in history]


def in_order(door: Door, steps: int) -> bool:
    """Whether the losses came in the order of their steps, each one for the first time."""
    came = [step for name, step in door.arrived if name == "train/loss"]
    return list(dict.fromkeys(came)) == list(range(steps))


def expected(steps: int) -> list[tuple[int, float]]:
    return [(step, 1 / (step + 1)) for step in range(steps)]


# --- the embedded file ---


CRASH = """
import os, sys, time
from pathlib import Path
from pipeline.tracking.recorder import Recorder
folder = Path(sys.argv[1])
recorder = Recorder(folder, name="run", experiment="test", settings={"optim.lr": 0.1})
for step in range(20):
    recorder.add({"kind": "train", "step": step, "train/loss": 1 / (step + 1), "lr": 0.1})
cursor = folder / "mlflow.json"
while not cursor.exists() or '"sent": 0' in cursor.read_text():
    time.sleep(0.05)
with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"kind": "train", "step": 20, "tr')  # a line that the crash cuts off
    file.flush()
    os._exit(9)
"""


@pytest.mark.server
def test_a_run_that_crashed_continues_its_curve_without_doubled_points(tmp_path):
    store, folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "run"
    folder.mkdir()
    crashed = subprocess.run([sys.executable, "-c", CRASH, folder], check=False, timeout=120)
    assert crashed.returncode == 9
    cursor = (folder / "mlflow.json").read_text()
    sent = json.loads(cursor)["servers"]["embedded"]["sent"]
    assert sent > 0
    # as if the server had answered and the crash come before the cursor was written
    (folder / "mlflow.json").write_text(cursor.replace(f'"sent": {sent}', '"sent": 0'))
    again = record(folder)
    train(again, 10, 40)  # steps since the last checkpoint are made again
    again.finish("FINISHED")
    assert points(store, folder) == expected(40)
    run = run_at(store, folder)
    assert run.info.status == "FINISHED" and run.data.tags["starts"] == "2"
    assert run.data.params["optim.lr"] == "0.1"


@pytest.mark.parametrize("uri", [None, ""])
def test_an_unset_or_empty_uri_means_the_embedded_file(uri, tmp_path, monkeypatch):
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = tmp_path / "run"
    recorder = record(folder)
    train(recorder, 0, 5)
    (folder / "note.txt").write_text("kept")
    recorder.finish("FINISHED", {folder / "note.txt": "notes"})
    assert json.loads((folder / "mlflow.json").read_text())["servers"].keys() == {"embedded"}
    assert points(f"sqlite:///{tmp_path}/mlflow.db", folder) == expected(5)
    assert list((tmp_path / "mlartifacts").rglob("notes/note.txt"))


def test_a_lost_embedded_file_is_made_anew_from_the_journal(tmp_path):
    first, second = tmp_path / "first/run", tmp_path / "second/run"
    recorder = record(first)
    train(recorder, 0, 5)
    recorder.add({"kind": "system", "system/cpu": 1.0})
    recorder.finish("KILLED")
    # what a store has of it for another machine
    shutil.copytree(first, second, ignore=shutil.ignore_patterns("system.jsonl"))
    again = record(second)
    train(again, 5, 8)
    again.finish("FINISHED")
    assert points(f"sqlite:///{second.parent}/mlflow.db", second) == expected(8)


def copy_database(source, target):
    with (
        contextlib.closing(sqlite3.connect(source)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


@pytest.mark.parametrize("lost", ["the last records", "the run"])
def test_a_server_that_is_a_backup_gets_what_it_has_lost(lost, tmp_path, monkeypatch):
    database, backup = tmp_path / "server.db", tmp_path / "backup.db"
    store = f"sqlite:///{database}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    record(tmp_path / "other").finish("FINISHED")
    if lost == "the run":
        copy_database(database, backup)
    recorder = record(tmp_path / "run")
    train(recorder, 0, 20)
    if lost == "the last records":
        recorder.finish("KILLED")
        copy_database(database, backup)
        recorder = record(tmp_path / "run")
    train(recorder, 20, 50)
    recorder.write_event("tags", tags={"colour": "red"})
    recorder.finish("FINISHED")
    copy_database(backup, database)  # the machine is lost, and another one starts with its copy
    # in another process, because this one has the database open
    command = [sys.executable, "-m", "pipeline", "track", "sync", str(tmp_path / "run")]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0
    run = run_at(store, tmp_path / "run")
    assert points(store, tmp_path / "run") == expected(50)
    assert run.info.status == "FINISHED" and run.data.tags["colour"] == "red"


def test_a_record_is_sent_by_one_process_at_a_time(tmp_path):
    recorder = record(tmp_path / "run")
    time.sleep(0.3)
    with pytest.raises(ValueError, match="another process sends"):
        mlflow_sync.sync(tmp_path / "run")
    recorder.finish("KILLED")
    assert mlflow_sync.sync(tmp_path / "run") == 0


# --- a server that fails ---


@pytest.mark.server
def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = tmp_path / "run"
    recorder = record(folder)
    up = train(recorder, 0, 300, 0.005)
    server.kill()
    down = train(recorder, 300, 900, 0.005)
    server.start()
    after = train(recorder, 900, 1200, 0.005)
    recorder.finish("FINISHED")
    assert points(server.store, folder) == expected(1200)
    assert run_at(server.store, folder).info.status == "FINISHED"
    # a step takes as long while the server is down
    assert statistics.median(down) < 1.25 * statistics.median([*up, *after]) + 0.001


@pytest.mark.server
@pytest.mark.parametrize("mode", ["500", "full"])
def test_a_server_that_answers_with_errors_gets_all_of_it_later(
    mode, server, door, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    folder = tmp_path / "run"
    recorder = record(folder)
    train(recorder, 0, 50)
    door.mode = mode
    times = train(recorder, 50, 150, 0.005)
    assert statistics.median(times) < 0.02
    door.mode = "open"
    train(recorder, 150, 200)
    recorder.finish("FINISHED")
    assert points(server.store, folder) == expected(200) and in_order(door, 200)


@pytest.mark.server
def test_lost_answers_double_nothing(server, door, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    folder = tmp_path / "run"
    recorder = record(folder)
    train(recorder, 0, 10)
    time.sleep(1)
    door.mode = "deaf"  # the server keeps what it is told, and we never hear of it
    train(recorder, 10, 60, 0.02)
    door.mode = "open"
    recorder.finish("FINISHED")
    assert points(server.store, folder) == expected(60) and in_order(door, 60)


@pytest.mark.server
def test_a_slow_server_does_not_slow_the_steps_and_is_waited_for(
    server, door, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    door.mode = "slow"
    folder = tmp_path / "run"
    recorder = record(folder)
    times = train(recorder, 0, 200, 0.002)
    assert statistics.median(times) < 0.02  # one of its answers takes 0.3
    recorder.finish("FINISHED")
    assert points(server.store, folder) == expected(200)


@pytest.mark.server
def test_a_server_that_is_down_at_start_and_end_gets_the_record_by_sync(
    server, tmp_path, monkeypatch, caplog
):
    dead = Door(1)
    dead.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead.uri)
    monkeypatch.setattr(mlflow_sync, "PATIENCE_S", 1.5)
    caplog.set_level(logging.WARNING)
    folder = tmp_path / "run"
    recorder = record(folder)
    train(recorder, 0, 30)
    (folder / "note.txt").write_text("kept")
    before = time.monotonic()
    recorder.finish("FINISHED", {folder / "note.txt": "notes"})
    assert time.monotonic() - before < 15
    assert f"python -m pipeline track sync {folder}" in caplog.text
    time.sleep(1)  # the thread gives up
    environment = {**os.environ, "MLFLOW_TRACKING_URI": dead.uri}
    command = [sys.executable, "-m", "pipeline", "track", "sync", str(folder)]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "nothing is lost" in failed.stdout, failed.stderr
    environment["MLFLOW_TRACKING_URI"] = server.uri
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = run_at(server.store, folder)
    assert points(server.store, folder) == expected(30)
    assert run.info.status == "FINISHED"
    client = mlflow.MlflowClient(server.uri)
    assert [a.path for a in client.list_artifacts(run.info.run_id, "notes")] == ["notes/note.txt"]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "sent 0 records and 0 events" in again.stdout


def test_sync_of_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no record of a run"):
        mlflow_sync.sync(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there"):
        mlflow_sync.sync(tmp_path / "none")


@pytest.mark.server
def test_a_token_opens_the_door_and_is_seen_nowhere(server, door, tmp_path, monkeypatch):
    token = "t0ken-of-this-test"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    door.mode = "token"
    folder = tmp_path / "run"
    recorder = record(folder)
    train(recorder, 0, 5)
    time.sleep(1)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    train(recorder, 5, 10)
    recorder.finish("FINISHED")
    assert points(server.store, folder) == expected(10)
    for path in folder.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes()


# --- models ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("models") / "run"
    small = {"model.num_classes": 10, "model.depth": 1, "model.width": 32, "model.mlp_width": 32}
    config = find_preset("demo").replace({**small, "name": "run", "runs_dir": str(folder.parent)})
    for step, top1 in ((10, 0.5), (20, 0.4)):
        torch.manual_seed(step)
        model = ViT(config.model)
        torch.nn.init.normal_(model.head.weight)
        write(
            folder / "checkpoints",
            step,
            samples=step,
            model=model.state_dict(),
            state={},
            metrics={"val/top1": top1, "val/loss": 1.0},
            config=config,
            classes=CLASSES,
            fingerprint="f" * 64,
        )
    return folder


def test_models_compete_by_the_split_that_selects_and_only_those_that_are_reported(tmp_path):
    config = find_preset("demo")
    for step, metrics in (
        (1, {"val/top1": 0.9}),
        (2, {"val/top1": 0.8, "select/top1": 0.7}),
        (3, {"val/top1": 0.9, "select/top1": 0.6}),
    ):
        path = write(tmp_path / "checkpoints", step, metrics=metrics, config=config)
        checkpoint = local.Checkpoint.open(path)
        run_events.write_model(tmp_path, checkpoint, "vit", is_chosen=step < 3)
    events = [e for e in journal.read_events(tmp_path) if e["event"] == "register"]
    found = [(event["metric"], event["value"], event["competes"]) for event in events]
    val, selected = ("val/top1", 0.9, True), ("select/top1", 0.7, True)
    assert found == [val, selected, ("select/top1", 0.6, False)]


@pytest.mark.server
def test_checkpoints_become_models_that_mlflow_opens_without_unpickling(
    trained, server, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    recorder = record(trained)
    recorder.write_event(
        "dataset",
        name="digits/val",
        digest="f" * 64,
        source="s3://KEYID:SECRET@bucket/digits",
        context="evaluation",
        samples=360,
    )
    for item in local.checkpoints(trained / "checkpoints"):
        run_events.write_model(trained, item, register="vit-test")
    recorder.finish("FINISHED")
    assert "artifacts:" not in capfd.readouterr().err  # a bar of MLflow on the console
    client = mlflow.MlflowClient(server.uri)
    run = run_at(server.store, trained)
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == "f" * 36 and "SECRET" not in data.dataset.source
    assert json.loads(data.dataset.profile)["manifest_sha256"] == "f" * 64
    models = client.search_logged_models([run.info.experiment_id])
    models = {model.name: model for model in models if model.source_run_id == run.info.run_id}
    assert models.keys() == {"run-step-10", "run-step-20"}
    assert {output.model_id for output in run.outputs.model_outputs} == {
        model.model_id for model in models.values()
    }
    figures = {metric.key: metric.value for metric in models["run-step-10"].metrics}
    assert figures["val/top1"] == 0.5
    mlflow.set_tracking_uri(server.uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    loaded = mlflow.pytorch.load_model(f"models:/{models['run-step-10'].model_id}")
    images = torch.randn(3, 3, 32, 32)
    eval_model = EvalModel.open(trained / "checkpoints" / "step-000000010")
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), eval_model.load(eval_model.model)(images))
    # the better one keeps the alias; the newest is `latest`
    best = client.get_model_version_by_alias("vit-test", "best")
    assert best.tags["model_id"] == models["run-step-10"].model_id
    latest = client.get_latest_versions("vit-test")[0]
    assert latest.tags["model_id"] == models["run-step-20"].model_id
    # told again, nothing is there twice
    cursor = json.loads((trained / "mlflow.json").read_text())
    for at in cursor["servers"].values():
        at |= {"told": 0, "models": {}}
    (trained / "mlflow.json").write_text(json.dumps(cursor))
    assert mlflow_sync.sync(trained) == 0
    assert "does not take" not in caplog.text
    assert len(client.search_model_versions("name = 'vit-test'")) == 2
    again = client.search_logged_models([run.info.experiment_id])
    assert sum(model.source_run_id == run.info.run_id for model in again) == 2


def test_the_alias_best_is_given_by_values_of_one_metric_on_equal_data(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = mlflow.MlflowClient(tracking_uri(tmp_path))
    number = client.create_experiment("vit", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(number).info.run_id
    # the first and the last are of checkpoints that their runs do not report
    values = [("select/top1", -math.inf, "a"), ("val/top1", 0.8, "a"), ("select/top1", 0.9, "a")]
    values += [("val/top1", 0.7, "a"), ("val/top1", 0.95, "b"), ("val/top1", 0.85, "a")]
    values += [("val/top1", 0.99, "a")]
    best_ones = (None, 2, 2, 2, 2, 6, 6)
    for place, (metric, value, digest), best in zip(range(7), values, best_ones, strict=True):
        model = client.create_logged_model(number, name=f"m{place}", source_run_id=run)
        event = {"event": "register", "checkpoint": f"runs/m{place}", "name": "vit"}
        event |= {"digest": digest * 64} | ({"competes": False} if place == 6 else {})
        at = {"run_id": run, "models": {f"m{place}": model.model_id}}
        TrackingServer(tmp_path, tmp_path).apply(at, event | {"metric": metric, "value": value})
        assert client.get_registered_model("vit").aliases.get("best") == best
    assert client.get_model_version("vit", "7").tags["val/top1"] == "0.99"
    assert "version 3 of vit has select/top1, and 'best' is version 2 by val/top1" in caplog.text
    assert "'best' is version 2 on other images (digest aaaaaaaa, not bbbbbbbb)" in caplog.text


# --- secrets ---

PLANTED = {
    "http://user:hunter2@mlflow.example:5000/x": "hunter2",
    "s3://AKIDEXAMPLE:wJalr/XUtn+FEMI@bucket/shards": "wJalr",
    "s3://bucket/x?access_key=abcdefgh&secret_key=ijklmnop&region=eu": "ijklmnop",
    "Authorization: Bearer abc123.def456": "abc123",
    "MLFLOW_TRACKING_PASSWORD=correct-horse": "correct-horse",
    '{"aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG"}': "K7MDENG",
    "the key AKIAIOSFODNN7EXAMPLE is Amazon's": "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv": "AIzaSyA1234567890",
    "token hf_abcdefghijklmnopqrstuvwxyz": "hf_abcdefghijklmnop",
    "https://x.blob.core.windows.net/c?sv=1&sig=aBcD%2B12": "aBcD",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----": "MIIEvQ",
}


@pytest.mark.parametrize(("text", "secret"), PLANTED.items())
def test_secrets_of_every_kind_are_found(text, secret):
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "pool=token, heads=4",
        "https://example.org/a@b?page=2",
        "s3://bucket/imagenet/train-00001.tar",
        "basic training of 10 tokens: 5",
        "optim.lr=0.001 seed=7 key n01440764/x",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact(text) == text


def test_values_of_the_environment_are_secret_wherever_they_turn_up(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "xyzzy-plugh")
    monkeypatch.setenv("SSH_KEY", "/home/me/.ssh/id")
    assert redacted({"a": ["the xyzzy-plugh it is", 3]}) == {"a": ["the *** it is", 3]}
    assert redact("/home/me/.ssh/id") == "/home/me/.ssh/id"


def test_planted_secrets_reach_no_parameter_tag_log_or_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STORE_PASSWORD", "p4ssw0rd-in-env")
    folder, store = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    settings = {"data.dir": "s3://AKID:S3CR3T@bucket/shards", "note": "p4ssw0rd-in-env"}
    recorder = record(folder, settings=settings)
    recorder.write_event("tags", tags={"source": "https://me:S3CR3T@git.example/x"})
    recorder.finish("FINISHED")
    run = run_at(store, folder)
    assert run.data.params["data.dir"] == "s3://***@bucket/shards"
    assert run.data.tags["source"] == "https://***@git.example/x"
    open_console(verbose=False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    log = logging.getLogger("pipeline.test")
    log.addHandler(handler)
    try:
        raise OSError("cannot reach s3://AKID:S3CR3T@bucket")
    except OSError:
        log.exception("with p4ssw0rd-in-env")
    written = "".join(capsys.readouterr())
    assert "cannot reach s3://***@bucket" in written
    text = written + "".join(
        path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()
    )
    assert "S3CR3T" not in text and "p4ssw0rd-in-env" not in text


def test_a_run_that_was_moved_is_sent_on(tmp_path):
    store = f"sqlite:///{tmp_path}/new/mlflow.db"
    folder = tmp_path / "old" / "run"
    recorder = record(folder)
    train(recorder, 0, 5)
    recorder.finish("KILLED")
    (folder / "note.txt").write_text("kept")
    journal.write_event(folder, "artifact", path=folder / "note.txt", folder="", version=1)
    (tmp_path / "old").rename(tmp_path / "new")
    folder = tmp_path / "new" / "run"
    assert mlflow_sync.sync(folder) == 0
    run = run_at(store, folder)
    assert points(store, folder) == expected(5) and run.info.status == "KILLED"
    again = json.loads((folder / "mlflow.json").read_text())["servers"]["embedded"]
    assert again["told"] == (folder / "events.jsonl").stat().st_size


def test_a_line_without_room_leaves_the_journal_as_it_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            append_line(path, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    append_line(path, {"step": 2})
    assert [line["step"] for line, _ in read_lines(path)] == [1, 2]


def test_events_are_kept_once(tmp_path):
    for _ in range(2):
        journal.write_event(tmp_path, "tags", tags={"a": "1"})
    assert len(journal.read_events(tmp_path)) == 1


def test_a_variable_that_another_thread_removes_does_not_keep_secrets_in(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abcdefgh")

    class Vanishing(dict):
        """An environment of which a variable is gone as soon as it is looked at."""

        def __getitem__(self, name):
            if name.startswith("GONE"):
                raise KeyError(name)
            return super().__getitem__(name)

        def get(self, name, default=None):
            return default if name.startswith("GONE") else super().get(name, default)

        def items(self):
            return ((name, self[name]) for name in self)

    monkeypatch.setattr(os, "environ", Vanishing(**os.environ, GONE_TOKEN="12345678"))
    assert redact("abcdefgh is secret") == "*** is secret"
