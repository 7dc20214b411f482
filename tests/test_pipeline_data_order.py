"""The order of samples: one sequence of whole slices, shared exactly, found from one integer."""

import hashlib
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline_data_epoch import lengths, places, positions, slices_of

from pipeline.data.epoch import ReadSpans
from pipeline.data.order import Mixture, Order, RankShare, Slices, share_bounds


def ids(slices: Slices, spans: ReadSpans) -> list[tuple[int, int]]:
    """(shard, sample in it) behind every position of the spans."""
    found = []
    for row, first, count in zip(spans.slice, spans.first, spans.count, strict=True):
        begin = slices.start[row] // 10 + first
        found += [(int(slices.shard[row]), int(begin + i)) for i in range(count)]
    return found


@given(lengths, st.integers(1, 30), st.integers(0, 2**63), st.integers(0, 3))
def test_each_epoch_has_each_sample_once(lengths, samples, seed, epoch):
    slices = slices_of(lengths, samples)
    order = Order(counts=slices.count, seed=seed)
    start = epoch * order.samples
    found = ids(slices, order.spans(start, start + order.samples))
    assert sorted(found) == [(s, i) for s, length in enumerate(lengths) for i in range(length)]


@given(lengths, st.integers(1, 9), st.data())
def test_any_stretch_is_cut_from_the_one_sequence(lengths, samples, data):
    slices = slices_of(lengths, samples)
    order = Order(counts=slices.count, seed=7)
    whole = ids(slices, order.spans(0, 3 * order.samples))
    start = data.draw(st.integers(0, 3 * order.samples))
    stop = data.draw(st.integers(start, 3 * order.samples))
    spans = order.spans(start, stop)
    assert ids(slices, spans) == whole[start:stop]
    assert positions(spans) == list(range(start, stop))


def test_the_sequence_never_changes():
    # a run that resumes would repeat some samples and miss others
    counts = [slices_of(lengths, 8).count for lengths in ([97, 103, 100, 5, 88], [48, 27])]
    orders = tuple(Order(counts=count, seed=11) for count in counts)
    mixed = Mixture(orders=orders, rows=(0, len(counts[0])), weights=(3, 1), run=8, seed=11)
    for sequence, digest in (
        (orders[0], "d16a7f9b8d97a53bd73130a5f6a9b74cd0fb9c0a4f02331207a7ae7bf7330fae"),
        (mixed, "860be0fc37e8a293a8b8a60b71a2f1bab410893301593ba673bd160934a72e15"),
    ):
        found = np.array(places(sequence.spans(0, 12_000)), "<i8")
        assert hashlib.sha256(found.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("nodes", [1, 4, 16])
@pytest.mark.parametrize("epoch", [0, 9])
def test_nodes_read_little_more_than_they_need_in_every_epoch(nodes, epoch):
    lengths = np.random.default_rng(0).integers(90, 111, 200).tolist()
    order = Order(counts=slices_of(lengths, 8).count, seed=5)
    batch, step_of = 256, [e * order.samples // 256 for e in (epoch, epoch + 1)]
    read = 0
    for step in range(*step_of):
        for node in range(nodes):
            first, last = (RankShare.of(r, 8 * nodes, batch) for r in (8 * node, 8 * node + 7))
            spans = order.spans(step * batch + first.low, step * batch + last.high)
            read += order.counts[np.unique(spans.slice)].sum()
    assert read / (batch * (step_of[1] - step_of[0])) < 1.05


@given(st.integers(1, 40), st.integers(1, 12))
def test_shares_are_disjoint_and_their_union_is_the_global_batch(batch, workers):
    bounds = [share_bounds(rank, workers, batch) for rank in range(workers)]
    assert [bounds[0][0], bounds[-1][1]] == [0, batch]
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert all(low % 2 == 0 for low, high in bounds if low < high)
    sizes = [high - low for low, high in bounds]
    assert max(sizes) - min(sizes) <= 2
    if all(sizes):
        shares = [RankShare.of(rank, workers, batch) for rank in range(workers)]
        rows = [p for share in shares for p in range(share.low, share.high)]
        assert rows == list(range(batch))


@given(lengths, st.integers(1, 12), st.integers(1, 30), st.integers(0, 20))
def test_any_number_of_workers_has_the_same_global_batches(lengths, workers, pairs, step):
    order = Order(counts=slices_of(lengths, 5).count, seed=7)
    batch = 2 * (pairs + workers)
    shares = [RankShare.of(rank, workers, batch) for rank in range(workers)]
    spans = [order.spans(step * batch + share.low, step * batch + share.high) for share in shares]
    assert places(ReadSpans.joined(spans)) == places(order.spans(step * batch, (step + 1) * batch))


def test_every_worker_has_a_share_wherever_there_are_as_many_pairs():
    sizes = [RankShare.of(rank, 12, 4096).size for rank in range(12)]
    assert sum(sizes) == 4096 and set(sizes) == {340, 342}
    assert [RankShare.of(rank, 3, 5).size for rank in range(3)] == [2, 2, 1]


def test_a_worker_without_samples_is_refused():
    # 500 pairs: each of 12 workers among the 512 would wait for samples that never come
    bounds = [share_bounds(rank, 512, 1000) for rank in range(512)]
    refused = [rank for rank, (low, high) in enumerate(bounds) if low == high]
    assert len(refused) == 12
    with pytest.raises(ValueError, match="of 512 has no samples of a global batch of 1000.* 500"):
        RankShare.of(refused[0], 512, 1000)


def test_without_seed_the_order_is_that_of_the_shards():
    slices = slices_of([5, 3], 2)
    spans = Order(counts=slices.count, seed=None).spans(0, 8)
    assert ids(slices, spans) == [(0, i) for i in range(5)] + [(1, i) for i in range(3)]


def test_slice_bytes_span_their_samples():
    slices = slices_of([5, 1], 2)
    assert slices.count.tolist() == [2, 2, 1, 1]
    assert slices.start.tolist() == [0, 20, 40, 0]
    assert slices.stop.tolist() == [20, 40, 50, 10]


@pytest.mark.parametrize("lengths", [[1], [0, 1, 0], [2]])
def test_smallest_sets_work(lengths):
    slices = slices_of(lengths, 32)
    order = Order(counts=slices.count, seed=0)
    assert len(ids(slices, order.spans(0, 10))) == 10  # many epochs in one batch


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        slices_of([0], 4)
    with pytest.raises(ValueError, match="slice length"):
        slices_of([3], 0)
    with pytest.raises(ValueError, match=r"\[5, 2\)"):
        Order(counts=np.array([3]), seed=0).spans(5, 2)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match="rank"):
            RankShare.of(rank, 2, 8)


def test_plan_of_42_million_samples_stays_below_50_mb():
    tracemalloc.start()
    # 42,000 shards of 1,000 samples in slices of 32: the last of each has 8
    count = np.tile(np.array([32] * 31 + [8], np.int32), 42_000)
    shard = np.repeat(np.arange(42_000, dtype=np.int32), 32)
    start = np.zeros(len(count), np.int64)
    slices = Slices(shard=shard, count=count, start=start, stop=start + 1)
    order = Order(counts=slices.count, seed=0)
    order.spans(10 * order.samples - 4096, 10 * order.samples + 4096)
    assert tracemalloc.get_traced_memory()[0] < 50e6
    tracemalloc.stop()


@settings(max_examples=20)
@given(st.integers(0, 10**15))
def test_any_position_is_reached_directly(position):
    order = Order(counts=np.array([4, 7, 1]), seed=9)
    assert order.spans(position, position + 1).position.tolist() == [position]


def mixture(weights: tuple[float, ...], run: int) -> Mixture:
    """A mixture of one order of 5 and 3, and one of 4 samples, in slices of two."""
    orders = tuple(Order(counts=slices_of(n, 2).count, seed=2) for n in ([5, 3], [4]))
    return Mixture(orders=orders, rows=(0, 5), weights=weights, run=run, seed=2)


@given(st.integers(0, 20_000), st.integers(0, 60), st.integers(1, 5))
def test_any_stretch_of_a_mixture_is_cut_from_the_one_sequence(start, length, run):
    mixed = mixture((1, 2), run)
    spans = mixed.spans(start, start + length)
    assert positions(spans) == list(range(start, start + length))
    one_by_one = [mixed.spans(p, p + 1) for p in range(start, start + length)]
    places = [(int(p.slice[0]), int(p.first[0])) for p in one_by_one]
    found = [
        (int(row), int(first) + i)
        for row, first, count in zip(spans.slice, spans.first, spans.count, strict=True)
        for i in range(count)
    ]
    assert found == places


def test_each_run_of_a_mixture_is_one_unit_of_a_subset():
    counts = [slices_of(lengths, 8).count for lengths in ([97, 103, 60], [45, 51])]
    orders = tuple(Order(counts=count, seed=2) for count in counts)
    rows = (0, len(counts[0]))
    mixed = Mixture(orders=orders, rows=rows, weights=(2, 1), run=8, seed=2)
    units = {0: 0, 1: 0}
    for run in range(2048):
        spans = mixed.spans(8 * run, 8 * run + 8)
        (subset,) = set((spans.slice >= rows[1]).astype(int).tolist())
        first = 8 * units[subset]
        unit = orders[subset].spans(first, first + 8)
        assert places(spans) == [(row + rows[subset], i) for row, i in places(unit)]
        full = spans.count == 8
        assert full.all() or not full.any()
        units[subset] += 1
    assert units == {0: 2 * 683, 1: 2 * 341}  # over 40 epochs of each


def test_weights_of_a_mixture_hold_in_every_period():
    mixed = mixture((0.7, 0.3), run=1)
    assert mixed.counts == (717, 307)  # 716.8 and 307.2 of 1,024
    for period in range(3):
        spans = mixed.spans(period * 1024, (period + 1) * 1024)
        assert spans.count[spans.slice < 5].sum() == 717


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, 1e-6)])
def test_weights_that_cannot_be_kept_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        mixture(weights, run=1)
