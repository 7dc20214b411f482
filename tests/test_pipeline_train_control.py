"""What the workers of a run decide together, from the sum of their votes."""

import pytest
import ray.train

from pipeline.train import control
from pipeline.train.control import Control
from pipeline.train.report_queue import NONE, RESIZE, STOP


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set, and nodes that are not preempted."""
    now = [0.0]
    monkeypatch.setattr(control.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    return now


def together(workers: list[Control]) -> None:
    """One step: all workers decide from the sums of all votes."""
    sums = [sum(column) for column in zip(*(worker.votes() for worker in workers), strict=True)]
    for worker in workers:
        worker.decide(*sums)


def group(request: int, minutes: float = 1.0) -> list[Control]:
    return [Control(lambda: request, minutes), Control(None, minutes), Control(None, minutes)]


@pytest.mark.parametrize(
    ("request_", "stops", "resizes", "due"),
    [(NONE, False, False, False), (RESIZE, False, True, False), (STOP, True, True, True)],
)
def test_all_ranks_obey_the_request_that_rank_0_has_seen(clock, request_, stops, resizes, due):
    workers = group(request_)
    together(workers)
    assert {(w.stops, w.resizes, w.due) for w in workers} == {(stops, resizes, due)}


def test_a_checkpoint_is_due_after_its_interval_by_the_clock_of_rank_0(clock):
    workers = group(NONE)
    together(workers)
    clock[0] = 61.0
    together(workers)
    assert all(worker.due for worker in workers)
    for worker in workers:
        worker.saved()
    together(workers)
    assert not any(worker.due for worker in workers)


def test_one_node_that_goes_away_makes_all_save_once(clock, monkeypatch):
    workers = group(NONE)
    seen = iter([None, None, "soon"])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(seen))
    together(workers)
    assert all(worker.due for worker in workers)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: "soon")
    together(workers)
    assert not any(worker.due for worker in workers)
