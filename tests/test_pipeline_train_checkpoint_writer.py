"""Checkpoints are written in the background; what goes wrong there is known in the next step."""

import threading
from types import SimpleNamespace

import pytest
from waiting import wait_for

from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.train import checkpoint_writer
from pipeline.train.checkpoint_writer import CheckpointWriter
from support.lease import LeaseLost, leased


class Queue:
    """Takes records as the queue's actor does."""

    def __init__(self) -> None:
        self.records = []
        self.put = SimpleNamespace(remote=self.records.append)


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "wait_until_flushed", lambda _: None)
    return Queue()


def writer_in(folder, queue, rank=0) -> CheckpointWriter:
    config = SimpleNamespace(parallel="ddp", global_batch=8, keep_checkpoints=2)
    job = SimpleNamespace(config=config, checkpoints=Checkpoints(folder=folder))
    return CheckpointWriter(job, queue, rank)


def state_that(writes) -> SimpleNamespace:
    return SimpleNamespace(step=3, capture=lambda: SimpleNamespace(write=writes))


def test_a_failed_write_is_raised_in_the_next_step(tmp_path, queue):
    failed = threading.Event()

    def fail(folder):
        failed.set()
        raise OSError("No space left on device")

    writer = writer_in(tmp_path, queue)
    writer.save(state_that(fail), {})
    assert failed.wait(60)
    with pytest.raises(OSError, match=r"step 3 could not be written \(No space left.*make room"):
        wait_for(writer.check)
    assert not list(tmp_path.iterdir())


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, queue):
    gate = threading.Event()

    def wait(folder):
        assert gate.wait(60)
        raise OSError("in the end")

    writer = writer_in(tmp_path, queue)
    writer.save(state_that(wait), {"val/top1": 0.5})
    writer.check()
    assert queue.records == [{"kind": "eval", "step": 3, "val/top1": 0.5}]
    gate.set()
    with pytest.raises(OSError, match="in the end"):
        writer.close()


def test_a_worker_of_a_driver_that_has_lost_the_run_makes_no_checkpoint_visible(tmp_path, queue):
    run = RunFolder.of(str(tmp_path), "run")
    run.path.mkdir()
    writer = writer_in(run.checkpoints.folder, queue)
    writer._job.folder, writer._job.owner = run, {"host": "lost"}
    with leased(run):  # by another driver
        writer.save(state_that(lambda folder: []), {})
        with pytest.raises(LeaseLost, match="has taken over"):
            writer.close()
    assert run.checkpoints.all() == []


def test_only_rank_0_writes_a_replicated_model(tmp_path, queue):
    writer = writer_in(tmp_path, queue, rank=1)
    writer.save(state_that(lambda folder: pytest.fail("rank 1 writes")), {"val/top1": 0.5})
    writer.close()
    assert not queue.records
