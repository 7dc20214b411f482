"""What a server refuses is set aside and named, and nothing else waits for it or is lost."""

import json
import logging

import mlflow
import pytest
import requests
from mlflow_server import Door, MlflowServer
from test_pipeline_tracking import (  # noqa: F401 (one is a fixture)
    copy_database,
    expected,
    impatient,
    points,
    run_at,
    train,
)
from waiting import wait_for

from pipeline.settings.presets import find_preset
from pipeline.tracking import journal, mlflow_models, mlflow_sync
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.refusals import Refused

BAD = "probe/pets (37)/5shot"
SETTINGS = {"optim.lr": 0.1, "a (b)": 1, "workers": 2}


def record(folder, experiment="test", settings=None) -> Recorder:
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings or {"optim.lr": 0.1, "workers": 2}
    return Recorder(folder, name="run", experiment=experiment, settings=settings)


class Answer(requests.Response):
    """An answer of a server of files."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status_code = status


def refused(folder) -> list[tuple]:
    lines = (folder / journal.REFUSED).read_text().splitlines()
    return [(line["what"], line["name"], line["step"]) for line in map(json.loads, lines)]


def test_refused_points_parameters_tags_and_events_are_in_a_file_and_warned_of_once(
    tmp_path, caplog, monkeypatch
):
    faults = [requests.HTTPError(response=Answer(413)), RuntimeError("in a store's library")]
    real = mlflow.MlflowClient.log_artifact

    def log_artifact(client, run_id, path, folder):
        if path.endswith((".bin", ".txt")) and faults:
            raise faults.pop(0)
        real(client, run_id, path, folder)

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", log_artifact)
    folder, store = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    recorder = record(folder, settings=SETTINGS)
    train(recorder, 0, 300)
    for step in (298, 299):
        recorder.add({"kind": "probe", "step": step, BAD: 0.5, "probe/cars": 0.25})
    train(recorder, 300, 600)
    recorder.write_event("tags", tags={"x" * 300: "too long a name", "colour": "red"})
    for name in ("large.bin", "note.txt"):
        (folder / name).write_text(name)
        journal.write_artifact(folder, folder / name)
    recorder.write_event("artifact", path="none.txt", folder="", version=1)
    recorder.write_event("sonnet", name="18")  # of a later version
    recorder.write_event("evaluation", checkpoint="step-9", step=9)  # it lacks facts
    recorder.write_event("tags", tags={"size": "large"})
    recorder.finish("FINISHED")
    run = run_at(store, folder)
    assert run.info.status == "FINISHED" and run.data.tags["colour"] == "red"
    assert run.data.tags["size"] == "large"
    assert run.data.params == {"optim.lr": "0.1", "workers": "2"}
    assert run.data.metrics["probe/cars"] == 0.25 and points(store, folder) == expected(600)
    found = [(BAD, 298), (BAD, 299), ("a (b)", None), ("x" * 300, None), ("18", None)]
    found += [("step-9", 9)]
    files = [("large.bin", None), ("none.txt", None)]
    names = [(name, step) for _, name, step in refused(folder)]
    assert sorted(names, key=str) == sorted([*found, *files], key=str)
    lines = map(json.loads, (folder / journal.REFUSED).read_text().splitlines())
    line = next(line for line in lines if line["what"] == "metric")
    assert (line["server"], line["what"], line["value"]) == ("embedded", "metric", 0.5)
    assert line["time"] > 1e9 and "Names may only contain" in line["reason"]
    assert caplog.text.count(f"does not take metric {BAD}") == 1
    assert str(folder / journal.REFUSED) in caplog.text
    (note,) = mlflow.MlflowClient(store).list_artifacts(run.info.run_id)
    assert note.path == "note.txt" and "RuntimeError: in a store's library" in caplog.text
    # sent again, nothing is there twice, and the refused name does not look like a loss
    cursor = json.loads((folder / "mlflow.json").read_text())
    cursor["servers"]["embedded"] |= {"sent": 0, "told": 0}
    (folder / "mlflow.json").write_text(json.dumps(cursor))
    assert mlflow_sync.sync(folder) == 0
    assert len(refused(folder)) == 8 and points(store, folder) == expected(600)


def test_a_model_that_was_pruned_once_is_named_when_it_comes_again_and_is_refused(
    tmp_path, monkeypatch
):
    def save(checkpoint, folder, flavor):
        raise Refused("it cannot be written as a graph")

    monkeypatch.setattr(mlflow_models, "save_model", save)
    folder = tmp_path / "run"
    (folder / "step-2").mkdir(parents=True)
    recorder = record(folder)
    for again in (1, 2):
        about = {"checkpoint": "step-2", "step": 2, "again": again}
        recorder.write_event("model", name="run-step-2", **about)
        recorder.write_event("prune", **about)
    recorder.finish("KILLED")
    assert not (folder / journal.REFUSED).exists()  # they have gone anyway
    journal.write_event(folder, "model", name="run-step-2", checkpoint="step-2", step=2, again=3)
    assert mlflow_sync.sync(folder) == 0
    assert refused(folder) == [("model", "step-2", 2)]


def test_curves_wait_for_the_upload_of_one_model_and_not_of_all(tmp_path, monkeypatch):
    folder, store = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    record(folder).finish("KILLED")
    seen = []

    def save(checkpoint, model, flavor):
        seen.append(len(points(store, folder)) if seen else 0)
        step = len(seen) - 1
        journal.write_record(folder, {"kind": "train", "step": step, "train/loss": 1 / (step + 1)})
        model.mkdir()
        (model / "MLmodel").write_text("")

    monkeypatch.setattr(mlflow_models, "save_model", save)
    for step in (1, 2, 3):
        (folder / f"step-{step}").mkdir()
        journal.write_event(folder, "model", checkpoint=f"step-{step}", step=step)
    assert mlflow_sync.sync(folder) == 0
    assert seen == [0, 1, 2] and points(store, folder) == expected(3)


def test_the_record_of_a_deleted_run_or_experiment_waits_and_it_is_said_what_to_do(
    tmp_path, caplog, monkeypatch
):
    folder, store = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    recorder = record(folder)
    train(recorder, 0, 5)
    recorder.finish("KILLED")
    run, client = run_at(store, folder), mlflow.MlflowClient(store)
    number, run_id = run.info.experiment_id, run.info.run_id
    journal.write_record(folder, {"kind": "train", "step": 5, "train/loss": 1 / 6, "lr": 0.1})
    client.delete_run(run_id)
    assert mlflow_sync.sync(folder) == 1
    assert "refuses the record: the run is deleted; restore it on MLflow's page" in caplog.text
    client.restore_run(run_id)
    client.delete_experiment(number)
    caplog.clear()
    assert mlflow_sync.sync(folder) == 1
    assert "the experiment 'test' is deleted; restore it" in caplog.text
    monkeypatch.setattr(mlflow_sync, "PATIENCE_S", 0.3)
    last = record(folder)
    last.finish("KILLED")
    assert "refuses the record: the experiment 'test' is deleted" in caplog.text
    assert "does not answer" not in caplog.text
    last._sync._thread.join(60)  # it gives up
    client.restore_experiment(number)
    assert mlflow_sync.sync(folder) == 0
    assert points(store, folder) == expected(6) and not (folder / journal.REFUSED).exists()
    # or another experiment gets all of it
    client.delete_experiment(number)
    monkeypatch.setattr(mlflow_sync, "PATIENCE_S", 60)
    again = record(folder, experiment="other")
    train(again, 6, 8)
    again.finish("FINISHED")
    run = run_at(store, folder)  # the one that is not deleted
    assert client.get_experiment(run.info.experiment_id).name == "other"
    assert points(store, folder) == expected(8) and run.info.status == "FINISHED"


@pytest.mark.parametrize("experiment", ["", "x" * 501])
def test_a_name_that_no_server_takes_is_refused_before_the_start(experiment):
    with pytest.raises(ValueError, match="experiment"):
        find_preset("demo").replace({"experiment": experiment})


# --- a real server that does everything wrong ---


@pytest.mark.server
def test_a_server_that_refuses_loses_restarts_fails_and_hangs_gets_the_rest_in_order_once(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.WARNING)
    server = MlflowServer(tmp_path)
    server.start()
    door = Door(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    client, folder = mlflow.MlflowClient(server.store), tmp_path / "runs" / "run"
    database, backup = tmp_path / "server.db", tmp_path / "backup.db"
    copy_database(database, backup)
    recorder = record(folder, settings=SETTINGS)
    train(recorder, 0, 20)
    recorder.add({"kind": "probe", "step": 19, BAD: 0.5, "probe/cars": 0.25})
    sent(folder)
    run_id = run_at(server.store, folder).info.run_id
    client.delete_run(run_id)  # on the page
    train(recorder, 20, 40)
    wait_for(lambda: "the run is deleted; restore it" in caplog.text)
    client.restore_run(run_id)
    sent(folder)
    door.mode = "500"
    train(recorder, 40, 60, 0.01)
    recorder.write_event("tags", tags={"colour": "red"})
    door.mode = "hang"
    train(recorder, 60, 80, 0.1)  # longer than a call may take
    door.mode = "open"
    server.kill()
    copy_database(backup, database)  # the machine is lost, and another starts with its copy
    train(recorder, 80, 100)
    server.start()
    recorder.add({"kind": "eval", "step": 100, "val/top1": 0.5})
    (evaluation,) = [r for r, _ in journal.read_records(folder) if r["kind"] == "eval"]
    data = {"dataset": "digits/val", "digest": "d"}
    recorder.write_event(
        "evaluation",
        checkpoint="step-100",
        step=100,
        metrics={"val/top1": 0.5, BAD: 0.6},
        at=evaluation["time"],
        **data,
    )
    recorder.finish("FINISHED")
    run = run_at(server.store, folder)
    assert run.info.run_id != run_id and run.info.status == "FINISHED"
    assert points(server.store, folder) == expected(100)
    assert points(server.store, folder, "val/top1") == [(100, 0.5)]
    assert run.data.metrics["probe/cars"] == 0.25 and run.data.tags["colour"] == "red"
    found = [("metric", BAD, 19), ("param", "a (b)", None), ("metric", BAD, 100)]
    assert sorted(refused(folder), key=str) == sorted(found, key=str)
    assert "has lost this run; it is sent again" in caplog.text
    assert caplog.text.count(f"does not take metric {BAD}") == 1
    door.close()
    server.kill()


def sent(folder) -> None:
    """Wait until the server has all of the record."""
    cursor, files = folder / "mlflow.json", {"sent": journal.RECORDS, "told": journal.EVENTS}

    def is_sent() -> bool:
        (at,) = json.loads(cursor.read_text())["servers"].values()
        return all(at[name] == (folder / file).stat().st_size for name, file in files.items())

    wait_for(lambda: cursor.exists() and is_sent())
