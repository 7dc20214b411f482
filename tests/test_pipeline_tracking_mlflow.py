"""What a run is in MLflow: who, what code, which data, settings, points and models, each once."""

import getpass
import json
import subprocess

import mlflow
import mlflow.data
import pytest
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow_server import MlflowServer
from test_pipeline_tracking import impatient, run_at  # noqa: F401 (a fixture)

from pipeline.evaluation.probe import Probe
from pipeline.settings.config import ProbeConfig
from pipeline.tracking import journal, mlflow_models, mlflow_sync, origin
from pipeline.tracking.mlflow_address import page_of, tracking_uri
from pipeline.tracking.mlflow_data import source_of
from pipeline.tracking.recorder import Recorder
from pipeline.train.system_metrics import host_samples

DIGEST = "f" * 64


def record(folder, **settings) -> Recorder:
    folder.mkdir(parents=True, exist_ok=True)
    return Recorder(folder, name="night", experiment="test", settings=settings)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run that was started three times, and the run in the embedded file."""
    folder = tmp_path_factory.mktemp("runs") / "night"
    first = record(folder, workers=2, name="night", **{"optim.lr": 0.1})
    first.add({"kind": "train", "step": 400, "train/loss": 0.5})
    first.add({"kind": "eval", "step": 400, "val/top1": 0.125})
    (evaluation,) = [r for r, _ in journal.read_records(folder) if r["kind"] == "eval"]
    about = {"checkpoint": "step-000000400", "step": 400, "dataset": "cars/val", "digest": DIGEST}
    metrics = {"val/top1": 0.125}
    first.write_event("evaluation", metrics=metrics, at=evaluation["time"], **about)
    first.write_event("evaluation", metrics={"eval/val/ten-logits/top1": 0.25}, **about)
    sources = "/data/cars, s3://KEY:SECRET@bucket/more/cars?region=eu, /other/cars"
    about = {"name": "cars/train", "digest": DIGEST, "context": "training", "samples": 30}
    first.write_event("dataset", source=sources, **about)
    first.finish("KILLED")
    record(folder, workers=4, name="night", **{"optim.lr": 0.1}).finish("KILLED")
    again = record(folder, workers=4, name="night", seed=7, **{"optim.lr": 0.2})
    again.add({"kind": "train", "step": 800, "train/loss": 0.25})
    again.finish("FINISHED")
    return folder, run_at(f"sqlite:///{folder.parent}/mlflow.db", folder)


def client_of(folder) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri(folder.parent))


def test_a_run_says_who_started_it_with_what_program_and_commit(resumed):
    folder, run = resumed
    tags, client = run.data.tags, client_of(folder)
    assert run.info.run_name == tags["mlflow.runName"] == "night"
    assert run.info.user_id == tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.source.type"] == "LOCAL" and tags["mlflow.source.name"]
    head = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(head, capture_output=True, text=True, check=False)
    assert tags.get("mlflow.source.git.commit", "") == done.stdout.strip()
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_trial_says_who_started_its_search(resumed, monkeypatch):
    folder, run = resumed
    monkeypatch.setattr("sys.argv", ["/ray/default_worker.py"])
    trial = folder.parent / "trial"
    trial.mkdir()
    Recorder(trial, name="t", experiment="test", settings={}, parent=folder).finish("FINISHED")
    tags = run_at(tracking_uri(folder.parent), trial).data.tags
    assert tags["mlflow.source.name"] == run.data.tags["mlflow.source.name"]
    assert tags["mlflow.parentRunId"] == run.info.run_id


def test_programs_are_named_as_people_type_them(monkeypatch):
    assert origin.program("/x/pipeline/__main__.py") == "python -m pipeline"
    assert origin.program("/x/my_search.py") == "my_search.py"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    assert origin.user() == "ada"


def test_parameters_are_those_of_the_first_start_and_a_tag_says_what_later_ones_changed(resumed):
    _, run = resumed
    assert run.data.params == {"workers": "2", "name": "night", "optim.lr": "0.1", "seed": "7"}
    changes = "after step 400: optim.lr 0.1 -> 0.2; after step 400: workers 2 -> 4"
    assert run.data.tags["changed settings"] == changes and run.data.tags["starts"] == "3"


def test_the_figure_of_a_checkpoint_and_of_its_curve_are_one_point(resumed):
    folder, run = resumed
    history = client_of(folder).get_metric_history(run.info.run_id, "val/top1")
    assert [(point.step, point.value) for point in history] == [(400, 0.125)]
    assert run.data.metrics["eval/val/ten-logits/top1"] == 0.25  # there is no model


def test_every_location_of_the_data_is_an_input_whose_source_mlflow_opens(resumed):
    _, run = resumed
    found = {}
    for each in run.inputs.dataset_inputs:
        found[each.dataset.name] = mlflow.data.get_source(each)
        assert each.dataset.digest == "f" * 36 and "SECRET" not in each.dataset.source
    uris = {"cars": "/data/cars", "cars-2": "s3://bucket/more/cars", "cars-3": "/other/cars"}
    assert {name: source.uri for name, source in found.items()} == {
        f"{name}/train": uri for name, uri in uris.items()
    }


def test_sources_load_as_folders_of_this_machine(tmp_path):
    for location in (str(tmp_path), f"file://{tmp_path}"):
        kind, facts = source_of(location)
        dataset = mlflow.entities.Dataset("x", "d", kind, json.dumps(facts))
        assert mlflow.data.get_source(dataset).load() == str(tmp_path)
    assert source_of("gs://b/x") == ("gs", {"uri": "gs://b/x"})
    kind, facts = source_of("https://example.org/x")
    dataset = mlflow.entities.Dataset("x", "d", kind, json.dumps(facts))
    assert mlflow.data.get_source(dataset).url == "https://example.org/x"


def test_samples_of_machines_have_mlflows_names_or_its_words_for_what_it_does_not_measure():
    node = host_samples(0)
    next(node)
    ours = {name.removeprefix("system/") for name in next(node)}
    theirs = set()
    for monitor in (CPUMonitor(), DiskMonitor()):
        monitor.collect_metrics()
        theirs |= monitor.metrics.keys()
    assert ours - theirs == {"network_receive_megabytes_per_s", "network_transmit_megabytes_per_s"}


def test_a_folder_that_cannot_name_a_metric_is_refused_before_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"'pets \(37\)'.*letters.*rename"):
        Probe.open_all(ProbeConfig(data=(str(tmp_path / "pets (37)"),)))


# --- models ---


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("place", ["embedded", pytest.param("server", marks=pytest.mark.server)])
def test_a_model_goes_with_its_checkpoint_unless_it_is_registered(
    place, request, tmp_path, monkeypatch, caplog
):
    def save(checkpoint, folder, flavor):
        folder.mkdir()
        (folder / "MLmodel").write_text(checkpoint.name)

    monkeypatch.setattr(mlflow_models, "save_model", save)
    server = request.getfixturevalue("server") if place == "server" else None
    if server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = tmp_path / "run.1"
    recorder = record(folder)
    names = [f"step-{step:09}" for step in (1, 2, 3)]
    for step, name in enumerate(names[:2], start=1):
        (folder / name).mkdir()
        recorder.write_event("model", name=f"run.1-step-{step}", checkpoint=name, step=step)
    recorder.write_event("model", name="run.1-step-3", checkpoint=names[2], step=3)  # never sent
    facts = {"name": f"vit-{place}", "metric": "val/top1", "value": 0.5, "digest": DIGEST}
    recorder.write_event("register", checkpoint=names[1], **facts)
    for step, name in enumerate(names, start=1):
        recorder.write_event("prune", checkpoint=name, step=step)
    recorder.finish("KILLED")
    client, at = client_of(folder), cursor(folder)
    (kept,) = client.search_logged_models([at["experiment_id"]])
    assert kept.name == "run-1-step-2" and at["models"] == {}
    files = server.folder / "artifacts" if server else tmp_path / "mlartifacts"
    assert [path.read_text() for path in files.rglob("MLmodel")] == [names[1]]
    assert not [r for r in caplog.records if r.levelname != "INFO"]
    assert not (folder / journal.REFUSED).exists()
    page = page_of(folder)
    assert at["run_id"] in page if server else page.startswith("mlflow ui --backend-store-uri")
    outputs = client.get_run(at["run_id"]).outputs.model_outputs
    assert len(outputs) == 2  # MLflow keeps the line of what was there
    # told again, nothing changes
    for name in names[:2]:
        (folder / name).rmdir()
    text = json.loads((folder / "mlflow.json").read_text())
    next(iter(text["servers"].values())).update(told=0)
    (folder / "mlflow.json").write_text(json.dumps(text))
    assert mlflow_sync.sync(folder) == 0
    (again,) = client.search_logged_models([at["experiment_id"]])
    assert again.model_id == kept.model_id


def test_a_checkpoint_that_goes_while_it_is_read_holds_nothing_up(tmp_path, monkeypatch):
    def save(checkpoint, folder, flavor):
        checkpoint.rmdir()  # by the run, which writes the next one
        raise FileNotFoundError(checkpoint)

    monkeypatch.setattr(mlflow_models, "save_model", save)
    folder, name = tmp_path / "run", "step-000000001"
    recorder = record(folder)
    (folder / name).mkdir()
    recorder.write_event("model", name="run-step-1", checkpoint=name, step=1)
    recorder.write_event("prune", checkpoint=name, step=1)
    recorder.write_event("tags", tags={"later": "yes"})
    recorder.finish("FINISHED")
    client, at = client_of(folder), cursor(folder)
    run = client.get_run(at["run_id"])
    assert run.info.status == "FINISHED" and run.data.tags["later"] == "yes"
    assert client.search_logged_models([at["experiment_id"]]) == []
    assert not (folder / journal.REFUSED).exists()


def cursor(folder) -> dict:
    (at,) = json.loads((folder / "mlflow.json").read_text())["servers"].values()
    return at
