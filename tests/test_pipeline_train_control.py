"""What the workers of a run decide together, from the sum of their votes."""

import pytest

from pipeline.train import control
from pipeline.train.control import Control
from pipeline.train.report_queue import NONE, RESIZE, STOP


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = [0.0]
    monkeypatch.setattr(control.time, "monotonic", lambda: now[0])
    return now


def together(workers: list[Control]) -> None:
    """One step: all workers decide from the sums of all votes."""
    sums = [sum(column) for column in zip(*(worker.votes() for worker in workers), strict=True)]
    for worker in workers:
        worker.decide(*sums)


def stays() -> bool:
    return False


def group(request: int, minutes: float = 1.0, leaves=stays, *, elastic=False) -> list[Control]:
    """Three workers, of whose nodes that of the second may go away."""
    signals, nodes = (lambda: request, None, None), (stays, leaves, stays)
    pairs = zip(signals, nodes, strict=True)
    return [Control(signal, leaves, minutes, elastic=elastic) for signal, leaves in pairs]


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


def test_what_is_due_stays_due_until_it_is_saved(clock):
    (worker,) = group(NONE)[:1]
    worker.decide(0, 1, 0)
    worker.decide(0, 0, 0)  # the votes of the next step
    assert worker.due
    worker.saved()
    assert not worker.due  # although no other votes were counted


def test_one_node_that_goes_away_makes_all_save_once(clock):
    left = []
    workers = group(NONE, leaves=lambda: bool(left))
    together(workers)
    assert not any(worker.due for worker in workers)
    left.append("soon")
    together(workers)
    assert all(worker.due for worker in workers)
    for worker in workers:
        worker.saved()
    together(workers)
    assert not any(worker.due or worker.resizes for worker in workers)


def test_an_elastic_run_ends_with_that_checkpoint_so_that_it_goes_on_without_the_node(clock):
    workers = group(NONE, leaves=lambda: True, elastic=True)
    together(workers)
    assert all(worker.due and worker.resizes and not worker.stops for worker in workers)
