"""The models of the record follow the evaluated checkpoints of the run, and so does its page."""

import contextlib
import json
import threading
import time
from dataclasses import replace

import pytest
from checkpoints import CONFIG, write
from recorded_runs import evaluated, predictions
from waiting import wait_for

from pipeline import milestones as milestones_module
from pipeline import run
from pipeline.__main__ import main
from pipeline.checkpoint import remote
from pipeline.checkpoint.local import CONFIG as CONFIG_FILE
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.metrics import calibration
from pipeline.milestones import milestones
from pipeline.outcome import Outcome
from pipeline.report.run_data import RunData
from pipeline.rollback import roll_back
from pipeline.run_events import attached, record_end, variant, write_result
from pipeline.run_models import record_models, write_model
from pipeline.tracking import journal, mlflow_models, mlflow_sync
from pipeline.tracking import recorder as recorder_module
from pipeline.train.job import Job
from support.lease import LeaseLost

META = "meta.json"


@pytest.fixture(params=["folder", "store"])
def job(request, tmp_path, monkeypatch):
    """A run that has begun, in a folder or in a store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("support.lease.SETTLE_S", 0.0)
    runs_dir = tmp_path / "runs"
    place = str(runs_dir) if request.param == "folder" else runs_dir.as_uri()
    config = CONFIG.replace({"name": "my.run", "runs_dir": place})
    job = Job(config=config, train=None, eval=None, provenance={})
    job.dir.mkdir(parents=True)
    (job.dir / CONFIG_FILE).write_text(json.dumps(config.flat()))
    facts = {"name": "my.run", "experiment": "x", "settings": {}, "parent": None, "number": 1}
    journal.write_event(job.dir, "start", **facts)
    for context, digest in (("evaluation", "e" * 64), ("selection", "s" * 64)):
        about = {"context": context, "digest": digest, "source": "s3://b/x", "samples": 9}
        journal.write_event(job.dir, "dataset", name=f"x/{context}", **about)
    return job


def checkpoint_at(job, step, **metrics):
    """Record the evaluation of a step, as workers do, and write its checkpoint."""
    journal.write_record(job.dir, {"kind": "train", "step": step, "train/loss": 1.0})
    if metrics := {name.replace("_", "/"): value for name, value in metrics.items()}:
        journal.write_record(job.dir, {"kind": "eval", "step": step, **metrics})
    uri = job.checkpoints.uri
    folder = job.checkpoints.folder if not uri else job.dir.parent / "another machine"
    write(folder, step, uri, metrics=metrics, config=job.config)


def events_of(job, *kinds):
    return [event for event in journal.read_events(job.dir) if event["event"] in kinds]


def told(job):
    """Kind and step of the events about models."""
    return [(event["event"], event["step"]) for event in events_of(job, "model", "prune")]


def test_an_evaluated_checkpoint_is_a_model_with_its_metrics_as_the_points_of_its_record(job):
    checkpoint_at(job, 10)
    checkpoint_at(job, 20, val_top1=0.5, val_loss=1.0, select_top1=0.6)
    for _ in range(2):  # the second time there is nothing new
        assert [checkpoint.step for checkpoint in record_models(job)] == [20]
    (model,) = events_of(job, "model")
    assert model["name"] == "my.run-step-20"
    assert (job.dir / model["checkpoint"] / "model.safetensors").is_file()
    val, select = events_of(job, "evaluation")
    assert val["metrics"] == {"val/top1": 0.5, "val/loss": 1.0} and val["digest"] == "e" * 64
    assert select["metrics"] == {"select/top1": 0.6} and select["dataset"] == "x/selection"
    (record,) = [r for r, _ in journal.read_records(job.dir) if r["kind"] == "eval"]
    assert val["at"] == select["at"] == record["time"] and val["step"] == 20
    assert val["checkpoint"] == model["checkpoint"]


def test_an_evaluation_that_the_record_does_not_hold_is_a_point_of_its_own(job):
    checkpoint_at(job, 20, val_top1=0.5)
    # the attempt that recorded it died before its checkpoint, and the next one rounded differently
    write(job.checkpoints.folder, 20, job.checkpoints.uri, metrics={"val/top1": 0.75})
    record_models(job)
    (event,) = events_of(job, "evaluation")
    assert event["metrics"] == {"val/top1": 0.75} and "at" not in event


def test_a_model_goes_with_its_checkpoint_but_the_newest_one_stays(job):
    checkpoint_at(job, 10, val_top1=0.5)
    record_models(job)
    checkpoint_at(job, 20)
    job.checkpoints.prune(1)
    record_models(job)
    assert told(job) == [("model", 10)]  # its checkpoint is gone, but there is no other model
    checkpoint_at(job, 30, val_top1=0.6)
    record_models(job)
    assert told(job) == [("model", 10), ("model", 30), ("prune", 10)]


def test_models_of_steps_that_the_run_takes_back_go_and_equal_ones_come_again(job):
    for step in (10, 20):
        checkpoint_at(job, step, val_top1=0.5)
    record_models(job)
    (before,) = [e for e in events_of(job, "evaluation") if e["step"] == 20]
    job.folder.push(journal.RECORDS, journal.EVENTS)
    roll_back(job.folder.place, 10)
    record_models(job)
    checkpoint_at(job, 20, val_top1=0.5)  # the same bits
    record_models(job)
    assert told(job)[2:] == [("prune", 20), ("model", 20)]
    again = events_of(job, "evaluation")[-1]
    assert again["step"] == 20 and again["at"] > before["at"]
    job.folder.push(journal.RECORDS, journal.EVENTS)
    roll_back(job.folder.place, 10)
    checkpoint_at(job, 20, val_top1=0.75)  # others
    record_models(job)
    assert told(job)[4:] == [("prune", 20), ("model", 20)]
    assert events_of(job, "model")[-1]["weights"] != events_of(job, "model")[-2]["weights"]


def test_a_model_is_registered_and_evaluated_again_under_the_path_that_the_record_has(job):
    checkpoint_at(job, 10, val_top1=0.5)
    record_models(job)
    whole = job.checkpoints.fetch(job.checkpoints.latest())
    write_model(job.dir, whole, register="vit")
    (model,), (register,) = events_of(job, "model"), events_of(job, "register")
    assert register["checkpoint"] == model["checkpoint"]
    assert (register["metric"], register["value"]) == ("val/top1", 0.5)
    assert register["digest"] == "e" * 64  # of the images on which it was measured
    assert len(events_of(job, "evaluation")) == 1


def test_a_place_without_checkpoints_makes_no_model_void(job):
    checkpoint_at(job, 10, val_top1=0.5)
    record_models(job)
    job.checkpoints.delete(job.checkpoints.latest())
    record_models(job)
    assert told(job) == [("model", 10)]


@pytest.mark.parametrize("models", ["best", "none"])
def test_no_checkpoint_is_a_model_before_the_end_unless_all_kept_ones_are(job, models):
    job = Job(config=job.config.replace({"record.models": models}), train=None, eval=None)
    checkpoint_at(job, 10, val_top1=0.5)
    assert [checkpoint.step for checkpoint in record_models(job)] == [10]
    assert told(job) == []


@pytest.mark.parametrize("job", ["store"], indirect=True)
def test_of_a_run_in_a_store_the_driver_holds_the_weights_of_its_models_alone(job):
    checkpoint_at(job, 10, val_top1=0.5)
    record_models(job)
    copies = job.dir / "models"
    (copy,) = copies.iterdir()
    assert {path.name for path in copy.iterdir()} == {"model.safetensors", "config.json", META}
    inode = (copy / "model.safetensors").stat().st_ino
    record_models(job)  # it is fetched once
    assert (copy / "model.safetensors").stat().st_ino == inode
    checkpoint_at(job, 20, val_top1=0.5)
    job.checkpoints.prune(1)
    record_models(job)
    assert [path.name for path in copies.iterdir()] == ["step-000000020"]


@pytest.mark.parametrize("job", ["store"], indirect=True)
def test_a_copy_of_another_content_is_replaced(job):
    checkpoint_at(job, 10, val_top1=0.5)
    write(job.dir / "models", 10, metrics={"val/top1": 0.75})
    job.folder.models.fetch_weights(job.folder.models.latest())
    digest = job.checkpoints.latest().digest
    (copy,) = (job.dir / "models").iterdir()
    assert digest == job.folder.models.latest().digest
    assert json.loads((copy / META).read_text())["metrics"] == {"val/top1": 0.5}


@pytest.mark.parametrize("job", ["store"], indirect=True)
def test_another_machine_sends_the_models_that_are_in_the_store_alone(job, tmp_path, monkeypatch):
    saved, faults = [], [OSError("the store is away")]

    def save(checkpoint, folder, flavor):
        assert {path.name for path in checkpoint.iterdir()} >= {"model.safetensors", META}
        saved.append(checkpoint.name)
        folder.mkdir()
        (folder / "MLmodel").write_text("")

    def fetch(*arguments):
        if faults:
            raise faults.pop()
        return real(*arguments)

    real = remote.fetch
    monkeypatch.setattr(mlflow_models, "save_model", save)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step in (10, 20):
        checkpoint_at(job, step, val_top1=0.5)
        record_models(job)
    job.folder.push(journal.RECORDS, journal.EVENTS, CONFIG_FILE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(remote, "fetch", fetch)
    assert main(["track", "sync", job.folder.uri]) == 1  # it waits for the store
    job.checkpoints.delete(job.checkpoints.latest())
    assert main(["track", "sync", job.folder.uri]) == 0
    assert saved == ["step-000000010"]
    (line,) = map(json.loads, (job.dir / journal.REFUSED).read_text().splitlines())
    assert line["name"].endswith("step-000000020") and "no longer exists" in line["reason"]
    assert mlflow_sync.sync(job.dir, job.folder.models) == 0


# --- while the run trains ---


@pytest.fixture
def pages(monkeypatch):
    """How many pages were written; without pauses."""
    monkeypatch.setattr(milestones_module, "PAUSE_S", 0.01)
    written, real = [], milestones_module.write_report

    def write_report(folder, **given):
        written.append(folder)
        return real(folder, **given)

    monkeypatch.setattr(milestones_module, "write_report", write_report)
    return written


def test_model_page_and_journal_are_there_as_soon_as_the_checkpoint_is(job, pages):
    published = threading.Event()
    with milestones(job, published.set) as note:
        checkpoint_at(job, 10)
        note()
        time.sleep(0.1)
        assert not pages and not published.is_set()  # it was not evaluated
        checkpoint_at(job, 20, val_top1=0.5)
        note()
        wait_for(published.is_set)
        assert told(job) == [("model", 20)]
        assert "running" in (job.dir / "report.html").read_text()
        assert [event["path"] for event in events_of(job, "artifact")] == ["report.html"]
        note()
    assert len(pages) == 1


def test_what_a_killed_driver_left_is_recorded_by_the_next(job, pages):
    checkpoint_at(job, 10, val_top1=0.5)
    with milestones(job, lambda: None):
        wait_for(lambda: pages)
    assert told(job) == [("model", 10)]


def test_nothing_waits_for_a_page_and_of_several_that_wait_one_is_written(job, pages):
    gate, calls = threading.Event(), []

    def publish():
        calls.append(1)
        gate.wait(60)

    with milestones(job, publish) as note:
        for step in (10, 20, 30, 40):
            checkpoint_at(job, step, val_top1=0.5)
            note()  # returns at once
            wait_for(lambda: calls)
        gate.set()
        wait_for(lambda: len(calls) == 2)
    assert len(pages) == 2 and ("model", 40) in told(job)


def test_a_failure_is_said_and_the_next_checkpoint_is_another_chance(job, pages, caplog):
    failures = [OSError("the store is away")]

    def publish():
        if failures:
            raise failures.pop()

    with milestones(job, publish) as note:
        checkpoint_at(job, 10, val_top1=0.5)
        note()
        wait_for(lambda: "could not be recorded yet: the store is away" in caplog.text)
        note()
        wait_for(lambda: len(pages) == 2)


def test_a_driver_that_has_lost_the_run_records_no_more(job, pages):
    def publish():
        raise LeaseLost("another one has it")

    with milestones(job, publish) as note:
        checkpoint_at(job, 10, val_top1=0.5)
        note()
        wait_for(lambda: pages)
        checkpoint_at(job, 20, val_top1=0.5)
        note()
        time.sleep(0.1)
    assert told(job) == [("model", 10)]


@pytest.mark.parametrize("drivers", [1, 2])
def test_the_last_checkpoint_is_recorded_when_the_block_ends(job, pages, drivers, monkeypatch):
    monkeypatch.setattr(milestones_module, "PAUSE_S", 60)
    with milestones(job, lambda: None) as note:
        checkpoint_at(job, 20, val_top1=0.5)
        if drivers == 1:
            note()
        else:  # the first one was killed here, and the second one has no step to train
            pass
    assert told(job) == [("model", 20)] and len(pages) == 1


def test_a_block_that_ends_by_an_error_waits_for_no_store(job, pages):
    with pytest.raises(KeyboardInterrupt), milestones(job, lambda: None):
        checkpoint_at(job, 20, val_top1=0.5)
        raise KeyboardInterrupt
    assert told(job) == [] and not pages


# --- the end ---


class Recorded:
    """A recorder that only ends."""

    def end(self, *arguments, **more):
        self.ended = arguments or more


@pytest.mark.parametrize(
    ("status", "outcome", "state"),
    [
        ("KILLED", "x", "interrupted"),
        ("FAILED", "x", "failed"),
        ("FAILED", "diverged", "diverged"),
        ("FINISHED", "far above chance", "stopped"),
    ],
)
def test_a_run_without_a_result_ends_with_its_page_and_its_last_model(job, status, outcome, state):
    checkpoint_at(job, 10, val_top1=0.5)
    recorder = Recorded()
    record_end(recorder, job, status, {"outcome": outcome})
    assert recorder.ended == (status, {job.dir / "report.html": ""}, {"outcome": outcome})
    assert f">{state}</span>" in (job.dir / "report.html").read_text()
    assert told(job) == [("model", 10)]


def test_a_page_that_cannot_be_written_does_not_keep_the_end_out_of_the_record(job, caplog):
    (job.dir / CONFIG_FILE).unlink()
    recorder = Recorded()
    record_end(recorder, job, "KILLED")
    assert recorder.ended == ("KILLED", {}, None)
    assert "the record ends without its page" in caplog.text


def test_a_figure_names_split_crops_and_what_is_averaged(job):
    values = {"top1": 0.5, "top1_low": 0.4, "top1_high": 0.6, "loss": 1.0, "ece": 0.1, "views": 1}
    values |= {"tail": 0.3, "tail_low": 0.2, "tail_high": 0.4, "lca_height": 5.0}
    protocols = {"center": values, "ten": values | {"views": 10}, "random-1": values}
    result = {"split": "test", "average": "probabilities", "protocols": protocols}
    real = {"top1": 0.7, "top1_low": 0.6, "top1_high": 0.8}
    result |= {"real": {"protocols": {"ten": real}}, "v2": {"protocols": protocols}}
    names = {"top1", "top1_low", "top1_high", "loss", "ece", "tail", "lca_height"}
    rules = ("center", "ten-probabilities", "random-1")
    expected = {
        f"eval/{split}/{rule}/{n}" for split in ("test", "v2") for rule in rules for n in names
    }
    expected |= {f"eval/test/ten-probabilities/real_{name}" for name in real}
    assert attached(result).keys() == expected


def test_weights_of_a_model_outlast_its_checkpoint_without_a_second_copy(job):
    checkpoint_at(job, 10, val_top1=0.5)
    record_models(job)
    (model,) = events_of(job, "model")
    kept = job.dir / model["checkpoint"]
    if not job.folder.uri:
        origin = job.checkpoints.latest().path
        assert (kept / "model.safetensors").samefile(origin / "model.safetensors")
        assert not list(kept.glob("state*"))
    checkpoint_at(job, 20)
    job.checkpoints.prune(1)  # MLflow's server was away all the time
    assert mlflow_models.is_there(kept, model["weights"])


def test_a_folder_without_hard_links_has_copies(job, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    checkpoint_at(job, 10, val_top1=0.5)
    record_models(job)
    (model,) = events_of(job, "model")
    assert mlflow_models.is_there(job.dir / model["checkpoint"], model["weights"])


def test_an_evaluation_keeps_the_data_on_which_it_was_made_after_a_start_with_other_data(job):
    checkpoint_at(job, 10, val_top1=0.5)
    record_models(job)
    other = {"context": "evaluation", "source": "s3://b/y", "samples": 9}
    journal.write_event(job.dir, "dataset", name="y/evaluation", digest="d" * 64, **other)
    record_models(job)
    (evaluation,) = events_of(job, "evaluation")
    assert evaluation["digest"] == "e" * 64
    checkpoint_at(job, 20, val_top1=0.5)
    record_models(job)
    assert events_of(job, "evaluation")[-1]["digest"] == "d" * 64


def test_models_go_with_their_checkpoints_also_after_the_setting_has_changed(job):
    checkpoint_at(job, 10, val_top1=0.5)
    record_models(job)
    job = Job(config=job.config.replace({"record.models": "best"}), train=None, eval=None)
    checkpoint_at(job, 20, val_top1=0.5)
    job.checkpoints.prune(1)
    write_model(job.dir, job.checkpoints.latest())  # which the run reports
    record_models(job)
    assert told(job) == [("model", 10), ("model", 20), ("prune", 10)]


def test_a_model_that_was_not_chosen_is_registered_with_its_true_figure_and_does_not_compete(job):
    checkpoint_at(job, 10, val_top1=0.5)
    for is_chosen in (False, True):
        write_model(job.dir, job.checkpoints.latest(), "vit", is_chosen=is_chosen)
    registered = [(event["value"], event["competes"]) for event in events_of(job, "register")]
    assert registered == [(0.5, False), (0.5, True)]


def test_figures_on_imagenet_v2_have_its_name_and_digest(job, tmp_path):
    found = {"center": predictions([0, 1], [0, 1])}
    classes = ("n01440764", "n01443537")
    folder = evaluated(tmp_path / "evaluation", found, classes)
    v2 = json.loads((folder / "result.json").read_text())
    v2 |= {"data": "/data/v2", "split": "test", "fingerprint": "2" * 64}
    evaluated(tmp_path / "both", found, classes, v2=v2)
    write_result(job.dir, tmp_path / "both", attached)
    on_val, on_v2 = events_of(job, "evaluation")
    assert on_val["dataset"] == "in1k/val" and "eval/val/center/top1" in on_val["metrics"]
    assert (on_v2["dataset"], on_v2["digest"]) == ("v2/test", "2" * 64)
    assert all(name.startswith("eval/v2/") for name in on_v2["metrics"])
    # a set of that name may be the data itself
    write_result(job.dir, folder, lambda result: {"probe/v2/linear": 0.5})
    assert events_of(job, "evaluation")[-1]["dataset"] == "in1k/val"


def test_an_evaluation_on_other_data_or_with_another_preparation_has_a_name_of_its_own():
    own = EvaluateConfig(data="/data/in1k", precision="bf16")
    assert variant(own, own.replace({"crops": ("five",), "batch": 1})) == ""
    assert variant(own, own.replace({"data": "/data/sketch"})) == "sketch"
    changes = {"model.image_size": 384, "precision": "fp32"}
    assert variant(own, own.replace(changes)) == "in1k-fp32-384"


def test_a_store_that_is_away_does_not_keep_the_page_out_of_the_end(job, caplog, monkeypatch):
    def away(*_):
        raise OSError("the store is away")

    monkeypatch.setattr("pipeline.checkpoint.checkpoints.Checkpoints.all", away)
    recorder = Recorded()
    record_end(recorder, job, "FAILED")
    assert recorder.ended == ("FAILED", {job.dir / "report.html": ""}, None)
    assert "the record ends without its last model: the store is away" in caplog.text


@pytest.mark.parametrize("job", ["store"], indirect=True)
def test_the_page_of_a_run_in_a_store_shows_its_models_not_the_copy_of_an_old_checkpoint(job):
    checkpoint_at(job, 10, val_top1=0.5)
    job.checkpoints.fetch(job.checkpoints.latest())  # an attempt started from it
    checkpoint_at(job, 20, val_top1=0.5)
    job.checkpoints.delete(replace(job.checkpoints.all()[0], path=job.dir / "gone/step-000000010"))
    record_models(job)
    assert [checkpoint.step for checkpoint in RunData(job.dir).checkpoints] == [20]


def test_the_end_does_not_wait_for_a_slow_server_for_long(tmp_path, monkeypatch, caplog):
    gate = threading.Event()
    monkeypatch.setattr(mlflow_sync, "SLOW_S", 0.2)
    monkeypatch.setattr(mlflow_sync.Sender, "send", lambda _: gate.wait(20))
    recorder = recorder_module.Recorder(tmp_path, name="x", experiment="x", settings={})
    recorder.finish("FINISHED")
    gate.set()
    assert "is not done after 0 s; the record is on disk" in caplog.text


# --- a whole run, whose training and evaluation are given ---


@pytest.fixture
def executed(job, tmp_path, monkeypatch):
    """Runs what is left of a run whose last step is 20; tells the order of what happens."""
    happened = []
    for name in ("ray_session", "shared"):
        monkeypatch.setattr(run, name, lambda *_, **__: contextlib.nullcontext())
    for name in ("check_folder", "record_circumstances"):
        monkeypatch.setattr(run, name, lambda *_: None)
    monkeypatch.setattr(Job, "total_steps", 20)
    monkeypatch.setattr(run, "train", lambda job, *_: job.checkpoints.latest())
    monkeypatch.setattr(milestones_module, "PAUSE_S", 0.01)

    def evaluate_chosen(job):
        wait_for(lambda: told(job))
        happened.append("recorded during the evaluation")
        folder = job.dir / "evaluations/center"
        found = {"center": predictions([0, 1], [0, 1])}
        if not folder.exists():
            facts = {"confusions": {"center": []}}
            facts |= {"calibration": {"center": calibration(found["center"])}, "step": 20}
            evaluated(folder, found, ("n01440764", "n01443537"), **facts)
        chosen = job.checkpoints.fetch(job.checkpoints.latest())
        return chosen, folder, json.loads((folder / "result.json").read_text())

    def close(recorder):
        happened.append("published" if job.folder.read("result.json") else "not published")
        real(recorder)

    real = recorder_module.Recorder.close
    monkeypatch.setattr(recorder_module.Recorder, "close", close)
    monkeypatch.setattr(run, "evaluate_chosen", evaluate_chosen)
    monkeypatch.setattr(mlflow_models, "save_model", lambda _, folder, __: folder.mkdir())
    return lambda: (run.execute(job), happened)


def test_the_last_model_is_recorded_during_the_evaluation_and_mlflow_is_waited_for_last(
    job, executed
):
    checkpoint_at(job, 20, val_top1=0.5)
    journal.write_event(job.dir, "tags", tags={"outcome": "diverged"})  # an earlier start
    outcome, happened = executed()
    assert happened == ["recorded during the evaluation", "published"]
    assert outcome.protocols["center"]["top1"] == 1.0
    tags, status = events_of(job, "tags", "status")[-2:]
    assert tags["tags"] == {"outcome": "done"} and status["status"] == "FINISHED"
    events = (job.dir / journal.EVENTS).stat().st_size
    assert json.loads(job.folder.read("mlflow.json"))["servers"]["embedded"]["told"] == events
    assert executed()[0] == outcome and len(happened) == 2  # it is finished


def test_a_result_that_was_not_recorded_before_the_driver_was_killed_is_recorded(
    job, executed, monkeypatch
):
    def killed(*_):
        raise LeaseLost("as if killed: nothing more is written")

    checkpoint_at(job, 20, val_top1=0.5)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run_result.record_result", killed)
        with pytest.raises(LeaseLost):
            executed()
    assert (job.dir / "result.json").exists() and Outcome.read(job.dir) is None
    outcome, _ = executed()
    assert Outcome.read(job.dir) == outcome
    assert "result.json" in [event["path"] for event in events_of(job, "artifact")]
