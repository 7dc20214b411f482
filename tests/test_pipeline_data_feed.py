"""The feed of a node: the sequence, whoever takes it, and what happens when something fails."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest

from pipeline.data import feed as node_feed
from pipeline.data import stream as stream_module
from pipeline.data.budget import NodeBudget
from pipeline.data.dataset import Dataset
from pipeline.data.feed import Lane, NodeFeed
from pipeline.data.order import RankShare, ReadSpans
from pipeline.data.reader import SampleReader, View
from pipeline.data.stream import Stream, joined
from pipeline.data.tasks import StepRanges
from vit.config import ImageConfig

VIEW = View(images=ImageConfig(), size=16, seed=3)
BATCH = 50


def open_digits(folder) -> Dataset:
    return Dataset.open([str(folder)], "train", slice_samples=7)


def stream_of(dataset: Dataset, ranges, task_samples: int = 64) -> Stream:
    return Stream(
        reader=SampleReader(dataset=dataset, view=VIEW),
        order=dataset.order(11),
        ranges=ranges,
        task_samples=task_samples,
        buffer_gib=0.1,
    )


def feeds(ray, workers: int, ranks: range | None = None) -> list[NodeFeed]:
    """The ends of the workers of one node."""
    ranks = ranks or range(workers)
    budget = NodeBudget(node=ray.get_runtime_context().get_node_id())
    actor = node_feed.start(budget, len(ranks))
    return [NodeFeed(actor=actor, ranks=ranks, rank=rank, world_size=workers) for rank in ranks]


def taken(ends: list[NodeFeed], stream: Stream, first: int, last: int) -> list[list]:
    """All batches of each worker, taken by all of them at the same time."""

    def take(end: NodeFeed) -> list:
        share = RankShare.of(end.rank, end.world_size, BATCH)
        return [
            joined(pieces)
            for pieces in end.batches(stream, StepRanges(share=share, first=first, last=last))
        ]

    with ThreadPoolExecutor(len(ends)) as threads:
        return list(threads.map(take, ends))


def node_ranges(ends: list[NodeFeed], first: int, last: int) -> StepRanges:
    low = RankShare.of(ends[0].rank, ends[0].world_size, BATCH).low
    high = RankShare.of(ends[-1].rank, ends[-1].world_size, BATCH).high
    share = RankShare(global_batch=BATCH, low=low, high=high)
    return StepRanges(share=share, first=first, last=last)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_of_a_node_take_the_global_batches(ray_cluster, digits, workers):
    dataset = open_digits(digits)
    spans = dataset.order(11).spans(27 * BATCH, 31 * BATCH)  # across an epoch's end
    expected = SampleReader(dataset=dataset, view=VIEW)(spans)
    ends = feeds(ray_cluster, workers)
    parts = taken(ends, stream_of(dataset, node_ranges(ends, 27, 31)), 27, 31)
    for step, shares in enumerate(zip(*parts, strict=True)):
        for name in ("position", "labels", "images", "key"):
            batch = np.concatenate([share[name] for share in shares])
            assert np.array_equal(batch, expected[name][step * BATCH : (step + 1) * BATCH])


@pytest.mark.ray
def test_two_nodes_read_every_slice_of_a_batch_once_and_streams_follow_each_other(
    ray_cluster, digits, tmp_path
):
    dataset = open_digits(digits)

    def read(spans: ReadSpans) -> dict[str, np.ndarray]:
        rows = np.concatenate(
            [p + np.arange(n) for p, n in zip(spans.position, spans.count, strict=True)]
        )
        for row, place in zip(spans.slice, spans.position, strict=True):
            (tmp_path / f"{row}-{place // dataset.samples}-{os.urandom(4).hex()}").touch()
        return {"position": rows, "labels": rows[:, None]}

    nodes = [feeds(ray_cluster, 4, ranks) for ranks in (range(2), range(2, 4))]
    for first, last in ((0, 10), (3, 5)):  # an evaluation, say, beside the training
        parts = [
            part
            for ends in nodes
            for part in taken(
                ends,
                replace(stream_of(dataset, node_ranges(ends, first, last)), reader=read),
                first,
                last,
            )
        ]
        found = [np.concatenate([p["position"] for p in step]) for step in zip(*parts, strict=True)]
        assert np.concatenate(found).tolist() == list(range(first * BATCH, last * BATCH))
        reads = [path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()]
        for path in tmp_path.iterdir():
            path.unlink()
        # a slice is read twice only where the two nodes meet inside it, twice a step
        assert len(reads) - len(set(reads)) <= 2 * (last - first)


@pytest.mark.ray
def test_segments_join_without_a_seam(ray_cluster, digits, monkeypatch):
    monkeypatch.setattr(stream_module, "SEGMENT_TASKS", 3)
    monkeypatch.setattr(stream_module, "SEGMENT_OVERLAP", 1)
    dataset = open_digits(digits)
    budget = NodeBudget(node=ray_cluster.get_runtime_context().get_node_id())
    refs = stream_of(dataset, [(5, 100)], task_samples=10).refs(budget)
    blocks = [stream_module.columns(ray_cluster.get(ref)) for ref in refs]
    assert len(blocks) > 6
    assert np.concatenate([b["position"] for b in blocks]).tolist() == list(range(5, 100))


@pytest.mark.ray
def test_a_failing_read_surfaces_in_every_worker(ray_cluster, digits, tmp_path):
    folder = shutil.copytree(digits, tmp_path / "shards")
    dataset = open_digits(folder)
    for tar in folder.glob("train-*.tar"):
        tar.unlink()
    stream = stream_of(dataset, [(0, BATCH)])
    for end in feeds(ray_cluster, 2):
        with pytest.raises(OSError, match=r"train-\d+\.tar"):
            next(end.batches(stream, [(0, BATCH)]))


@pytest.mark.ray
def test_tasks_run_ahead_while_a_step_takes_its_time(ray_cluster, digits, tmp_path):
    def read(spans: ReadSpans) -> dict[str, np.ndarray]:
        (tmp_path / str(spans.position[0])).touch()
        return {"position": spans.position}

    dataset = open_digits(digits)
    stream = replace(stream_of(dataset, [(0, 200)], task_samples=10), reader=read)
    (end,) = feeds(ray_cluster, 1)
    # nobody takes a block; the buffer has room for all
    pieces = end.batches(stream, [(0, 200)])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 14 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) >= 14
    del pieces


@pytest.mark.ray
def test_a_feed_dies_with_the_worker_that_made_it(ray_cluster, digits):
    @ray_cluster.remote(num_cpus=0)
    class Worker:
        def start(self):
            self.end = NodeFeed.alone()
            pid = self.end.actor.__ray_call__.remote(lambda _: os.getpid())
            return os.getpid(), ray_cluster.get(pid)

    worker = Worker.remote()
    own, feed = ray_cluster.get(worker.start.remote())
    assert psutil.pid_exists(feed)
    os.kill(own, signal.SIGKILL)
    psutil.Process(feed).wait(60) if psutil.pid_exists(feed) else None
    assert not psutil.pid_exists(feed)


def test_a_block_waits_until_all_workers_have_taken_it_and_the_lead_is_bounded():
    fetched = []

    def refs():
        for number in range(20):
            fetched.append(number)
            yield number

    lane = Lane(refs(), workers=2)
    fast = [lane.take(0)[0] for _ in range(node_feed.LEAD_BLOCKS)]
    assert fast == list(range(node_feed.LEAD_BLOCKS))
    blocked = threading.Thread(target=lane.take, args=(0,), daemon=True)
    blocked.start()
    blocked.join(0.3)
    assert blocked.is_alive() and len(fetched) == node_feed.LEAD_BLOCKS
    assert lane.take(1) == [0]  # the slow worker frees a place
    blocked.join(10)
    assert not blocked.is_alive()
    slow = [lane.take(1)[0] for _ in range(node_feed.LEAD_BLOCKS)]
    assert slow == list(range(1, node_feed.LEAD_BLOCKS + 1))


def test_a_lane_raises_the_error_of_its_stream_in_every_worker_after_the_last_block():
    def refs():
        yield 1
        raise MemoryError("store")

    lane = Lane(refs(), workers=2)
    for worker in (0, 1):
        assert lane.take(worker) == [1]
        with pytest.raises(MemoryError, match="store"):
            lane.take(worker)
    lane = Lane(iter([7]), workers=1)
    assert [lane.take(0), lane.take(0), lane.take(0)] == [[7], [], []]
