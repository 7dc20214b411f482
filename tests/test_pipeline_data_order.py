"""The order of samples: a permutation per epoch, shared exactly, found from one integer."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Mixture, Order, RankShare, ReadSpans, Slices, permutation

lengths = st.lists(st.integers(0, 23), min_size=1, max_size=9).filter(any)


def slices_of(lengths: list[int], samples: int) -> Slices:
    """Slices of shards with the given numbers of samples, each ten bytes long."""
    starts = [10 * np.arange(length) for length in lengths]
    return Slices.cut([(start, start + 10) for start in starts], samples)


def ids(slices: Slices, spans: ReadSpans) -> list[tuple[int, int]]:
    """(shard, sample in it) behind every position of the spans."""
    found = []
    for row, first, count in zip(spans.slice, spans.first, spans.count, strict=True):
        begin = slices.start[row] // 10 + first
        found += [(int(slices.shard[row]), int(begin + i)) for i in range(count)]
    return found


def positions(spans: ReadSpans) -> list[int]:
    spans = zip(spans.position, spans.count, strict=True)
    return [int(start) + i for start, count in spans for i in range(count)]


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


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_shares_are_disjoint_and_their_union_is_the_global_batch(batch, workers, step):
    shares = [RankShare.of(rank, workers, batch) for rank in range(workers)]
    rows = [
        position
        for share in shares
        for start, stop in share.stretches(step * share.size, (step + 1) * share.size)
        for position in range(start, stop)
    ]
    assert rows == list(range(step * batch, (step + 1) * batch))
    assert all(share.low % 2 == 0 for share in shares if share.size)
    assert max(s.size for s in shares) - min(s.size for s in shares) <= 2


@given(st.integers(2, 40), st.data())
def test_rows_of_a_share_are_its_part_of_every_step_in_turn(batch, data):
    workers = data.draw(st.integers(1, batch // 2))
    share = RankShare.of(data.draw(st.integers(0, workers - 1)), workers, batch)
    rows = [step * batch + share.low + i for step in range(4) for i in range(share.size)]
    first = data.draw(st.integers(0, len(rows)))
    last = data.draw(st.integers(first, len(rows)))
    stretches = share.stretches(first, last)
    assert [p for start, stop in stretches for p in range(start, stop)] == rows[first:last]


def test_order_depends_on_seed_and_epoch_alone():
    assert np.array_equal(permutation(1000, 3, 5), permutation(1000, 3, 5))
    for other in ((4, 5), (3, 6), (5, 3)):
        same = permutation(1000, 3, 5) == permutation(1000, *other)
        assert same.sum() < 20  # one fixed point is expected of two random permutations


def test_order_is_the_same_in_every_version():
    # worked out once in plain Python integers, following SplitMix64
    assert permutation(8, 0, 0).tolist() == expected(8, 0, 0)
    assert permutation(8, 2**63, 41).tolist() == expected(8, 2**63, 41)


def expected(num: int, seed: int, epoch: int) -> list[int]:
    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    stream = mix(mix(seed) ^ (mix(epoch) * 0xD1342543DE82EF95 % 2**64))
    return sorted(range(num), key=lambda i: mix((stream + i) % 2**64))


def test_first_places_are_spread_evenly_over_epochs():
    first = np.array([permutation(10, 1, epoch)[0] for epoch in range(5000)])
    counts = np.bincount(first, minlength=10)
    # chi-squared with 9 degrees of freedom: 27.9 is its 99.9th percentile
    assert ((counts - 500) ** 2 / 500).sum() < 27.9


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
    with pytest.raises(ValueError, match="rank"):
        RankShare.of(2, 2, 8)


def test_plan_of_fourteen_million_samples_stays_below_100_mb():
    # 1,400 shards of 10,000 samples in slices of 32
    tracemalloc.start()
    rows = 1400 * 313
    order = Order(counts=np.full(rows, 32, np.int32), seed=0)
    order.spans(10 * order.samples - 4096, 10 * order.samples + 4096)
    assert tracemalloc.get_traced_memory()[1] < 100e6
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
