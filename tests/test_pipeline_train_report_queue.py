"""Control arrives in order and is confirmed by number; telemetry never delays it."""

import threading
import time

import pytest
import ray
from waiting import wait_for

from pipeline.train.report_queue import (
    MAX_SOURCES,
    NONE,
    RESIZE,
    STOP,
    Heartbeat,
    Lossy,
    ReportQueue,
    StopSignal,
    run_report_queue,
    wait_until_flushed,
)

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
class Worker:
    """A worker in a process of its own."""

    def __init__(self, queue):
        self.queue = queue

    def report(self, step):
        """Put a record, and wait until it is kept."""
        self.queue.put.remote({"kind": "train", "step": step})
        wait_until_flushed(self.queue)
        return step

    def chatter(self, until):
        """Send telemetry without a pause, and records too, until the file exists."""
        number = 0
        while not until.exists():
            number += 1
            ray.get(self.queue.sample.remote("node", {"system/x": number}))
            self.queue.put.remote({"kind": "chatter", "step": number})
        return number


def test_records_arrive_in_order_and_none_is_left_behind(ray_cluster):
    taken = []
    with run_report_queue(lambda item: taken.append(item)) as queue:
        for step in range(200):
            queue.put.remote({"kind": "train", "step": step})
    assert [item["step"] for item in taken] == list(range(200))


def test_flushed_means_that_the_driver_has_kept_the_records(ray_cluster):
    kept, final, gate = [], [], threading.Event()

    def keep(item):
        assert gate.wait(60)
        kept.append(item["step"])

    with run_report_queue(keep, lambda: final.append(list(kept))) as queue:
        queue.put.remote({"kind": "train", "step": 1})
        waiting = queue.wait.remote(ray.get(queue.last.remote()))
        assert not ray.wait([waiting], timeout=0.5)[0]
        assert kept == []
        gate.set()
        ray.get(waiting, timeout=60)
        assert kept == [1] and final[0] == [1]
        before = len(final)
        queue.put.remote({"kind": "train", "step": 2})
    # nobody waited for the second one, and at the end all of it is in its place
    assert kept == [1, 2] and len(final) == before + 1 and final[-1] == [1, 2]


def test_flush_is_called_only_for_those_who_wait_and_at_the_end(ray_cluster):
    kept, calls = [], []
    with run_report_queue(lambda item: kept.append(item), lambda: calls.append(1)) as queue:
        for step in range(5):
            queue.put.remote({"kind": "train", "step": step})
            wait_for(lambda count=step: len(kept) > count)
        assert calls == []
    assert calls == [1]


def test_a_worker_waits_for_its_own_records_whatever_arrives_later(ray_cluster, tmp_path):
    with run_report_queue(lambda item: None) as queue:
        noisy, worker, done = Worker.remote(queue), Worker.remote(queue), tmp_path / "done"
        chatter = noisy.chatter.remote(done)
        wait_for(lambda: ray.get(queue.last.remote()))
        assert [ray.get(worker.report.remote(step), timeout=60) for step in range(3)] == [0, 1, 2]
        done.touch()
        assert ray.get(chatter, timeout=60) > 0


def test_many_may_wait_at_once(ray_cluster):
    with run_report_queue(lambda item: None) as queue:
        queue.put.remote({"kind": "train", "step": 1})
        number = ray.get(queue.last.remote())
        ray.get([queue.wait.remote(number) for _ in range(100)], timeout=60)


def test_requests_are_seen_by_name_and_the_strongest_wins(ray_cluster):
    queue = ReportQueue.remote()
    stop_signal = StopSignal(queue)
    assert not any(stop_signal() for _ in range(20))
    ray.get(queue.ask.remote("resize"))
    wait_for(lambda: stop_signal() != NONE)
    assert stop_signal() == RESIZE
    ray.get(queue.ask.remote("stop"))
    wait_for(lambda: stop_signal() == STOP)


def test_the_next_attempt_does_not_end_at_once_unless_the_run_is_to_stop(ray_cluster):
    queue = ReportQueue.remote()
    ray.get(queue.ask.remote("resize"))
    ray.get(queue.begin.remote())
    assert ray.get(queue.requested.remote()) == NONE
    ray.get(queue.ask.remote("stop"))
    ray.get(queue.begin.remote())
    assert ray.get(queue.requested.remote()) == STOP


@pytest.mark.parametrize("failing", ["record", "flush"])
def test_what_the_driver_raises_stops_the_workers_and_surfaces(ray_cluster, failing):
    def refuse(*_):
        raise OSError("disk")

    calls = {"record": lambda item: None, "flush": None, failing: refuse}
    with pytest.raises(OSError, match="disk"), run_report_queue(**calls) as queue:
        stop_signal = StopSignal(queue)
        queue.put.remote({"kind": "train", "step": 1})
        # the error of the wait ends the block, and the cause is what the caller gets
        try:
            wait_until_flushed(queue)
        finally:
            wait_for(lambda: stop_signal() == STOP)


def test_the_answer_of_on_record_is_asked_of_the_workers(ray_cluster):
    with run_report_queue(lambda item: "stop") as queue:
        stop_signal = StopSignal(queue)
        queue.put.remote({"kind": "train", "step": 1})
        wait_for(lambda: stop_signal() == STOP)


def test_samples_are_recorded_together_and_only_the_newest_of_each_source(ray_cluster):
    taken = []
    with run_report_queue(lambda item: taken.append(item), sample_every_s=3600) as queue:
        for number in range(10):
            queue.sample.remote("node-a", {"system/x": number})
        queue.sample.remote("node-b", {"system/y": 7})
    assert taken == [{"kind": "system", "system/x": 9, "system/y": 7}]


def test_the_queue_keeps_no_more_sources_than_it_may(ray_cluster):
    queue = ReportQueue.remote()
    for number in range(MAX_SOURCES + 3):
        queue.sample.remote(f"node-{number}", {f"x{number}": number})
    samples = ray.get(queue.take_samples.remote())
    assert len(samples) == MAX_SOURCES and "x2" not in samples and "x3" in samples
    assert ray.get(queue.take_samples.remote()) == {}


def test_heartbeats_have_an_age_and_gpus_belong_to_a_node(ray_cluster):
    queue = ReportQueue.remote()
    for rank, step in ((0, 1), (1, 1), (0, 2)):
        beat = Heartbeat(rank=rank, world_size=2, node="a", step=step, phase="data", stalled_s=0.0)
        queue.beat.remote(beat)
    beats = ray.get(queue.beats.remote())
    assert sorted((beat.rank, beat.step) for beat in beats) == [(0, 2), (1, 1)]
    assert all(0 <= beat.age_s < 600 for beat in beats)
    for rank, node in ((0, "a"), (1, "b"), (2, "a"), (1, "a")):
        queue.use_gpu.remote(rank, node, f"GPU-{rank}")
    assert ray.get(queue.gpus.remote("a")) == {0: "GPU-0", 1: "GPU-1", 2: "GPU-2"}
    assert ray.get(queue.gpus.remote("b")) == {}


def test_telemetry_is_dropped_while_the_queue_does_not_answer(ray_cluster):
    @ray.remote(num_cpus=0)
    class Slow:
        def __init__(self):
            self.seen = []

        def sample(self, number):
            if not self.seen:
                time.sleep(1)
            self.seen.append(number)

        def all(self):
            return self.seen

    slow = Slow.remote()
    ray.get(slow.all.remote())
    send = Lossy(slow.sample)
    for number in range(100):
        send(number)
    assert ray.get(slow.all.remote()) == [0]
