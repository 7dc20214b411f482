"""When the workers start again after a failure, and when they do not."""

import contextlib
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from pipeline.train import attempts
from pipeline.train.attempts import train_workers
from pipeline.train.report_queue import NONE, STOP

TOTAL = 100


class Run:
    """A run whose attempts end as the test says, each at a step."""

    def __init__(self, monkeypatch, outcomes, *, max_restarts=2, requests=()):
        self.step, self.attempts, self.each = 0, 0, {"GPU": 1, "CPU": 1}
        self.outcomes, self.requests = iter(outcomes), iter(requests)
        config = SimpleNamespace(
            **{"max_restarts": max_restarts, "min_workers": None, "workers": 16},
            **{"device": "auto", "worker_cpus": None},
        )
        latest = lambda: SimpleNamespace(step=self.step) if self.step else None  # noqa: E731
        checkpoints = SimpleNamespace(latest=latest)
        self.job = SimpleNamespace(config=config, total_steps=TOTAL, checkpoints=checkpoints)
        for name, value in (
            ("run_attempt", self.attempt),
            ("Capacity", lambda *_: self),
            ("requested", lambda *_: contextlib.nullcontext()),
            ("wait_until_flushed", lambda _: None),
            ("find_stragglers", lambda _: None),
            ("PAUSE_S", 0.0),
        ):
            monkeypatch.setattr(attempts, name, value)
        monkeypatch.setattr(attempts.ray, "get", lambda answer: answer)
        self.queue = SimpleNamespace(
            requested=SimpleNamespace(remote=lambda: next(self.requests, NONE)),
            begin=SimpleNamespace(remote=self.begin),
        )

    def begin(self):
        self.attempts += 1

    def wait(self, stopped):
        return 0 if stopped() else 16

    def missing(self, workers):
        return 0

    def attempt(self, job, view, queue, each, workers):
        assert (each, workers) == (self.each, 16)
        self.step, outcome = next(self.outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def train(self, fatal=""):
        train_workers(self.job, None, None, self.queue, lambda: fatal)


def failure(text="worker died"):
    return WorkerGroupError(text, {1: RuntimeError(f"Traceback ...\n{text}")})


def test_restarts_are_counted_since_the_last_new_checkpoint(monkeypatch):
    Run(monkeypatch, [*[(step, failure()) for step in range(10, 90, 10)], (TOTAL, None)]).train()


def test_failures_without_progress_end_the_run(monkeypatch):
    run = Run(monkeypatch, [(10, failure()) for _ in range(9)])
    with pytest.raises(RuntimeError, match="worker 1 failed: worker died.*checkpoint is unchanged"):
        run.train()
    # the first attempt made progress, and the two restarts that followed did not
    assert len(list(run.outcomes)) == 9 - 3


def test_workers_that_could_not_be_placed_are_no_failure(monkeypatch):
    unplaced = ControllerError(WorkerGroupStartupTimeoutError(16))
    run = Run(monkeypatch, [*[(10, unplaced)] * 9, (TOTAL, None)])
    run.train()
    assert run.attempts == 10
    with pytest.raises(RuntimeError, match="training failed: other"):
        Run(monkeypatch, [(0, ControllerError(OSError("other")))] * 9).train()


def test_a_run_that_is_stopped_while_it_waits_for_nodes_ends(monkeypatch):
    run = Run(monkeypatch, [], requests=[STOP])
    run.train()
    assert run.step == 0


def test_an_error_that_a_restart_cannot_help_is_not_tried_again(monkeypatch):
    run = Run(monkeypatch, [(10, failure()), (TOTAL, None)])
    with pytest.raises(RuntimeError, match="ValueError on node h2: bad sample"):
        run.train(fatal="ValueError on node h2: bad sample")
    assert len(list(run.outcomes)) == 1


def test_a_loss_that_is_not_finite_ends_the_run_in_its_own_words(monkeypatch):
    with pytest.raises(FloatingPointError, match="loss nan in step 12"):
        Run(monkeypatch, [(10, "loss nan in step 12")]).train()


def test_a_run_that_ended_early_goes_on_with_more_workers_unless_it_was_stopped(monkeypatch):
    run = Run(monkeypatch, [(10, None), (TOTAL, None)])
    run.train()
    assert run.attempts == 2
    stopped = Run(monkeypatch, [(10, None), (TOTAL, None)], requests=[NONE, STOP])
    stopped.train()
    assert stopped.step == 10


def test_an_interrupted_run_counts_down_while_it_waits_for_its_checkpoint(monkeypatch, caplog):
    monkeypatch.setattr(attempts, "GRACE_S", 0.5)
    monkeypatch.setattr(attempts, "COUNTDOWN_S", 0.2)
    caplog.set_level("INFO")
    attempts.wait_for_checkpoint(Future())
    lines = [line for line in caplog.messages if "press Ctrl-C again to stop at once" in line]
    assert len(lines) == 3
    assert "the run will resume from an earlier one" in caplog.messages[-1]
    caplog.clear()
    written = Future()
    written.set_result(None)
    attempts.wait_for_checkpoint(written)
    assert len(caplog.messages) == 1
