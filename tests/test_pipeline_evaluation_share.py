"""Evaluations are divided so that every image is evaluated once, whoever feeds whom."""

import subprocess
import sys

import pytest

from pipeline.data.feed import NodeFeed
from pipeline.evaluation.share import EvalShare
from pipeline.evaluation.workers import task_cpus


def of_workers(nodes: list[range], samples: int, batch: int) -> list[tuple[NodeFeed, EvalShare]]:
    world = nodes[-1].stop
    feeds = [
        NodeFeed(actor=None, ranks=ranks, rank=rank, world_size=world)
        for ranks in nodes
        for rank in ranks
    ]
    return [(feed, EvalShare.of_worker(feed, feed.rank, samples, batch)) for feed in feeds]


@pytest.mark.parametrize("nodes", [[range(1)], [range(3)], [range(2), range(2, 3), range(3, 5)]])
@pytest.mark.parametrize(("samples", "batch"), [(360, 7), (35, 7), (36, 7), (3, 7), (100, 10)])
def test_every_image_is_in_one_batch_of_one_worker_and_in_the_feed_of_its_node(
    nodes, samples, batch
):
    workers = of_workers(nodes, samples, batch)
    taken = [n for _, share in workers for span in share.batches for n in range(*span)]
    assert sorted(taken) == list(range(samples))
    # sharded models need as many forward passes on all workers, in batches of at most that size
    lengths = [[stop - start for start, stop in share.batches] for _, share in workers]
    assert len(set(map(len, lengths))) == 1
    assert all(0 <= length <= batch for worker in lengths for length in worker)
    assert sum(map(len, lengths)) < samples / batch + len(workers)
    for feed, share in workers:
        read = [n for span in share.node for n in range(*span)]
        own = [
            n
            for other, theirs in workers
            if other.ranks == feed.ranks
            for span in theirs.batches
            for n in range(*span)
        ]
        assert read == sorted(own)


def test_each_span_starts_a_new_batch():
    share = EvalShare.of_spans([(0, 10), (20, 24)], 4)
    assert share.node == [(0, 10), (20, 24)]
    assert share.batches == [(0, 4), (4, 8), (8, 10), (20, 24)]


def test_tasks_leave_half_of_the_cpus_of_every_node_that_they_may_run_on():
    assert task_cpus([{"CPU": 96, "GPU": 8}] * 2, 16) == 1
    # eight tasks on the node with the fewest CPUs for each GPU; the others have no GPU
    assert task_cpus([{"CPU": 96, "GPU": 8}, {"CPU": 8, "GPU": 8}, {"CPU": 2}], 16) == 0.5
    # all tasks may run on one node; a head without CPUs takes none
    assert task_cpus([{"CPU": 4}, {"CPU": 16}, {"CPU": 0}], 4) == 0.5
    assert task_cpus([{"CPU": 16}], 2) == 1


def test_a_process_that_predicts_starts_its_feed_before_it_imports_pytorch():
    program = "import sys, pipeline.evaluation.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
