"""The models of the record follow the evaluated checkpoints of the run, and so does its page."""

import json
import threading
import time

import pytest
from checkpoints import CONFIG, write

from pipeline import milestones as milestones_module
from pipeline.milestones import milestones
from pipeline.rollback import roll_back
from pipeline.run_events import attached, record_end
from pipeline.run_models import fetch_model, record_models, restore_models, write_model
from pipeline.tracking import journal
from pipeline.train.job import CONFIG as CONFIG_FILE
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
    assert events_of(job, "model")[-1]["digest"] != events_of(job, "model")[-2]["digest"]


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
    (copies / "step-000000020/model.safetensors").unlink()  # another machine, or a damaged copy
    restore_models(job)
    assert (copies / "step-000000020/model.safetensors").is_file()


@pytest.mark.parametrize("job", ["store"], indirect=True)
def test_a_copy_of_another_content_is_replaced(job):
    checkpoint_at(job, 10, val_top1=0.5)
    write(job.dir / "models", 10, metrics={"val/top1": 0.75})
    fetch_model(job, job.folder.models.latest())
    digest = job.checkpoints.latest().digest
    (copy,) = (job.dir / "models").iterdir()
    assert digest == job.folder.models.latest().digest
    assert json.loads((copy / META).read_text())["metrics"] == {"val/top1": 0.5}


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


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


# --- the end ---


class Recorded:
    """A recorder that only ends."""

    def finish(self, *arguments):
        self.end = arguments


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
    assert recorder.end == (status, {job.dir / "report.html": ""}, {"outcome": outcome})
    assert f">{state}</span>" in (job.dir / "report.html").read_text()
    assert told(job) == [("model", 10)]


def test_a_page_that_cannot_be_written_does_not_keep_the_end_out_of_the_record(job, caplog):
    (job.dir / CONFIG_FILE).unlink()
    recorder = Recorded()
    record_end(recorder, job, "KILLED")
    assert recorder.end == ("KILLED", {}, None)
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
