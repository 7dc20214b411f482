"""A run goes back to an earlier checkpoint: what came after it is gone, its records are void."""

import pytest
from checkpoints import write

from pipeline.checkpoint.run_folder import LOCK, RunFolder
from pipeline.rollback import roll_back
from pipeline.tracking import journal
from support.files import AlreadyLocked, locked


@pytest.fixture(params=["folder", "store"])
def run(request, tmp_path, monkeypatch):
    """A finished run with checkpoints of steps 1, 2 and 3."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("support.lease.SETTLE_S", 0.0)
    runs_dir = tmp_path / "runs"
    run = RunFolder.of(str(runs_dir) if request.param == "folder" else runs_dir.as_uri(), "run")
    run.path.mkdir(parents=True)
    for step in (1, 2, 3):
        write(run.checkpoints.folder, step, run.checkpoints.uri)
        journal.write_record(run.path, {"kind": "train", "step": step, "train/loss": 1.0})
    (run.path / "result.json").write_text("{}")
    run.push("metrics.jsonl", "result.json")
    return run


def location(run: RunFolder) -> str:
    return run.uri or run.folder


def test_later_checkpoints_records_and_the_result_are_gone(run):
    assert roll_back(location(run), 2).step == 2
    assert [checkpoint.step for checkpoint in run.checkpoints.all()] == [1, 2]
    assert [record["step"] for record, _ in journal.read_records(run.path)] == [1, 2]
    assert run.read("metrics.jsonl") == (run.path / "metrics.jsonl").read_bytes()
    assert run.read("result.json") is None


def test_a_step_without_a_checkpoint_is_refused_and_nothing_changes(run):
    with pytest.raises(ValueError, match="no checkpoint of step 5; it has: 1, 2, 3"):
        roll_back(location(run), 5)
    assert len(run.checkpoints.all()) == 3
    assert run.read("result.json") is not None


def test_a_run_that_is_training_is_refused(run):
    with locked(run.path / LOCK, ""), pytest.raises(AlreadyLocked, match="stop it first"):
        roll_back(location(run), 1)


def test_a_place_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        roll_back(str(tmp_path / "nothing"), 1)
