"""Tasks of a node: all positions in order, every slice whole, and read once."""

from itertools import islice, repeat

import numpy as np
import pytest

from pipeline.data.order import Order, RankShare
from pipeline.data.tasks import StepRanges, read_tasks, task_sizes

# shards of nine full slices and a short one, which the order cuts and bundles
COUNTS = np.array(20 * [*9 * [8], 3])


def positions(task) -> list[int]:
    """Every position of a task, one by one."""
    return [p + i for p, n in zip(task.position, task.count, strict=True) for i in range(n)]


@pytest.mark.parametrize("ranges", [[(0, 700)], [(s, s + 50) for s in range(30, 1230, 50)]])
def test_tasks_are_the_ranges_in_order_and_read_every_full_slice_once(ranges):
    order = Order(counts=COUNTS, seed=3)
    tasks = list(read_tasks(order, ranges, repeat(40)))
    assert [p for task in tasks for p in positions(task)] == list(
        range(ranges[0][0], ranges[-1][1])
    )
    for task in tasks[:-1]:  # whole slices: at least 40 samples, and less than a slice more
        assert 40 <= task.count.sum() < 40 + COUNTS.max()
    for task in tasks:
        whole = order.spans(*(positions(task)[0], positions(task)[-1] + 1))
        assert positions(whole) == positions(task)
    # a full slice is in one task: what is read again belongs to another epoch
    reads = [
        (s, p // order.samples)
        for task in tasks
        for s, p in zip(task.slice, task.position, strict=True)
        if COUNTS[s] == 8
    ]
    assert len(reads) == len(set(reads))


def test_a_share_of_every_step_is_cut_only_at_slices():
    counts = np.full(300, 4)
    order = Order(counts=counts, seed=3)
    share = RankShare(global_batch=24, low=8, high=16)
    ranges = StepRanges(share=share, first=2, last=32)
    tasks = list(read_tasks(order, ranges, repeat(20)))
    assert [p for task in tasks for p in positions(task)] == [
        24 * step + place for step in range(2, 32) for place in range(8, 16)
    ]
    assert all((task.count == 4).all() and not task.first.any() for task in tasks)
    assert sum(stop - start for start, stop in ranges) == 240


def test_ranges_end_with_the_sequence():
    share = RankShare(global_batch=10, low=4, high=8)
    assert list(StepRanges(share=share, first=0, last=3, end=26)) == [(4, 8), (14, 18), (24, 26)]
    assert list(StepRanges(share=share, first=2, last=4, end=22)) == [(22, 22), (22, 22)]
    assert list(read_tasks(Order(counts=COUNTS, seed=None), [(22, 22)], repeat(5))) == []


def test_the_first_tasks_are_small_and_as_many_as_cores():
    sizes = list(islice(task_sizes(300, 3), 12))
    assert sizes == [64, 64, 64, 128, 128, 128, 256, 256, 256, 300, 300, 300]
    assert list(islice(task_sizes(10, 3), 2)) == [10, 10]
