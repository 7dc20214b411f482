"""The desk hands records over in order, and takes the wish to stop back."""

import threading

import pytest
import ray

from pipeline.train.report_queue import Desk, Wish, staffed, wait_until_settled

pytestmark = pytest.mark.ray


def test_records_arrive_in_order_and_none_is_left_behind(ray_cluster):
    taken = []
    with staffed(lambda item: taken.append(item)) as desk:
        for step in range(50):
            desk.put.remote({"kind": "train", "step": step})
    assert [item["step"] for item in taken] == list(range(50))


def test_settled_means_that_the_driver_has_kept_the_records(ray_cluster):
    kept, gate = [], threading.Event()

    def keep(item: dict) -> bool:
        gate.wait()
        kept.append(item["step"])
        return False

    with staffed(keep) as desk:
        desk.put.remote({"kind": "train", "step": 1})
        assert not ray.get(desk.settled.remote())
        assert kept == []
        gate.set()
        wait_until_settled(desk)
        assert kept == [1]


def test_the_wish_to_stop_is_seen_and_stays(ray_cluster):
    desk = Desk.remote()
    wish = Wish(desk)
    assert not any(bool(wish) for _ in range(20))
    ray.get(desk.stop.remote())
    while not wish:
        pass
    assert all(bool(wish) for _ in range(20))


def test_what_the_driver_raises_over_a_record_stops_the_workers_and_surfaces(ray_cluster):
    def refuse(item: dict) -> bool:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), staffed(refuse) as desk:
        wish = Wish(desk)
        desk.put.remote({"kind": "train", "step": 1})
        while not wish:
            pass
