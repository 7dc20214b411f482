"""The queue hands records over in order, and passes the stop request back."""

import threading

import pytest
import ray

from pipeline.train.report_queue import (
    ReportQueue,
    StopSignal,
    run_report_queue,
    wait_until_flushed,
)

pytestmark = pytest.mark.ray


def test_records_arrive_in_order_and_none_is_left_behind(ray_cluster):
    taken = []
    with run_report_queue(lambda item: taken.append(item)) as queue:
        for step in range(50):
            queue.put.remote({"kind": "train", "step": step})
    assert [item["step"] for item in taken] == list(range(50))


def test_settled_means_that_the_driver_has_kept_the_records(ray_cluster):
    kept, gate = [], threading.Event()

    def keep(item: dict) -> bool:
        gate.wait()
        kept.append(item["step"])
        return False

    with run_report_queue(keep) as queue:
        queue.put.remote({"kind": "train", "step": 1})
        assert not ray.get(queue.flushed.remote())
        assert kept == []
        gate.set()
        wait_until_flushed(queue)
        assert kept == [1]


def test_the_wish_to_stop_is_seen_and_stays(ray_cluster):
    queue = ReportQueue.remote()
    stop_signal = StopSignal(queue)
    assert not any(bool(stop_signal) for _ in range(20))
    ray.get(queue.stop.remote())
    while not stop_signal:
        pass
    assert all(bool(stop_signal) for _ in range(20))


def test_what_the_driver_raises_over_a_record_stops_the_workers_and_surfaces(ray_cluster):
    def refuse(item: dict) -> bool:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), run_report_queue(refuse) as queue:
        stop_signal = StopSignal(queue)
        queue.put.remote({"kind": "train", "step": 1})
        while not stop_signal:
            pass
