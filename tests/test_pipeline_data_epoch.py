"""An epoch: a permutation of full slices and bundles of short ones, which nothing shifts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.epoch import ReadSpans, permutation
from pipeline.data.order import Order, Slices

lengths = st.lists(st.integers(0, 23), min_size=1, max_size=9).filter(any)


def slices_of(lengths: list[int], samples: int) -> Slices:
    """Slices of shards with the given numbers of samples, each ten bytes long."""
    starts = [10 * np.arange(length) for length in lengths]
    return Slices.cut([(start, start + 10) for start in starts], samples)


def places(spans: ReadSpans) -> list[tuple[int, int]]:
    """(slice, sample in it) at every position of the spans."""
    columns = zip(spans.slice.tolist(), spans.first.tolist(), spans.count.tolist(), strict=True)
    return [(row, first + i) for row, first, count in columns for i in range(count)]


def positions(spans: ReadSpans) -> list[int]:
    spans = zip(spans.position, spans.count, strict=True)
    return [int(start) + i for start, count in spans for i in range(count)]


@given(lengths, st.integers(1, 30), st.integers(0, 2**63), st.integers(0, 9))
def test_the_sequence_is_the_one_worked_out_in_plain_python(lengths, samples, seed, epoch):
    order = Order(counts=slices_of(lengths, samples).count, seed=seed)
    spans = order.spans(epoch * order.samples, (epoch + 1) * order.samples)
    assert places(spans) == sequence(order.counts.tolist(), seed, epoch)
    assert positions(spans) == list(range(epoch * order.samples, (epoch + 1) * order.samples))


def sequence(counts: list[int], seed: int, epoch: int) -> list[tuple[int, int]]:
    """(slice, sample in it) at every position of an epoch, one by one."""
    unit, start = max(counts), epoch * sum(counts)
    full = [row for row, count in enumerate(counts) if count == unit]
    short = [row for row, count in enumerate(counts) if count < unit]
    short = [short[i] for i in expected(len(short), seed ^ 0x2545F4914F6CDD1D, epoch)]
    head = -start % unit
    if head > sum(counts[row] for row in short):
        short.append(full.pop(words(1, seed ^ 0x9FB21C651E98DF25, epoch)[0] % len(full)))
    loose = [(row, i) for row in short for i in range(counts[row])]
    begun, loose = loose[:head], loose[head:]
    bundles = [loose[i : i + unit] for i in range(0, len(loose) - unit + 1, unit)]
    units = [[(row, i) for i in range(unit)] for row in full] + bundles
    body = [sample for i in expected(len(units), seed, epoch) for sample in units[i]]
    return begun + body + loose[len(bundles) * unit :]


def expected(num: int, seed: int, epoch: int) -> list[int]:
    drawn = words(num, seed, epoch)
    return sorted(range(num), key=lambda i: drawn[i])


def words(num: int, seed: int, epoch: int) -> list[int]:
    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    stream = mix(mix(seed) ^ (mix(epoch) * 0xD1342543DE82EF95 % 2**64))
    return [mix((stream + i) % 2**64) for i in range(num)]


@given(lengths, st.integers(1, 30), st.integers(0, 6))
def test_full_slices_start_at_multiples_of_their_length_in_every_epoch(lengths, samples, epoch):
    order = Order(counts=slices_of(lengths, samples).count, seed=3)
    unit = order.counts.max()
    spans = order.spans(epoch * order.samples, (epoch + 1) * order.samples)
    aligned = spans.slice[(spans.position % unit == 0) & (spans.count == unit)]
    split = np.setdiff1d(np.flatnonzero(order.counts == unit), aligned)
    begun = -epoch * order.samples % unit
    # one is cut where the short slices cannot complete the unit that the epoch before began
    assert len(split) == (begun > order.counts[order.counts < unit].sum())


def test_short_slices_are_bundled_and_lie_everywhere_in_an_epoch():
    order = Order(counts=np.array([8, 8, 4] * 1000), seed=1)
    for epoch in range(2):
        spans = order.spans(epoch * order.samples, (epoch + 1) * order.samples)
        short = np.repeat(order.counts[spans.slice] == 4, spans.count).reshape(-1, 8)
        assert (short.all(axis=1) | ~short.any(axis=1)).all()  # a unit is of one kind
        tenths = short.all(axis=1).reshape(10, -1).sum(axis=1)
        assert tenths.sum() == 500 and tenths.min() > 25 and tenths.max() < 75


def test_short_slices_meet_others_in_every_epoch():
    order = Order(counts=np.array([8, 8, 4] * 100), seed=1)
    spans = [order.spans(e * order.samples, (e + 1) * order.samples) for e in range(2)]
    met = [set(pairwise(s.slice[order.counts[s.slice] == 4].tolist())) for s in spans]
    assert len(met[0] & met[1]) < 10  # of 99 neighbours


@pytest.mark.parametrize(("seeds", "epochs"), [((3, 3), (0, 1)), ((3, 4), (1, 1))])
def test_no_two_epochs_and_no_two_seeds_have_the_same_order(seeds, epochs):
    found = []
    for seed, epoch in zip(seeds, epochs, strict=True):
        order = Order(counts=slices_of([100] * 10, 8).count, seed=seed)
        found.append(places(order.spans(epoch * order.samples, (epoch + 1) * order.samples)))
    assert sum(a == b for a, b in zip(*found, strict=True)) < 100
    assert sorted(found[0]) == sorted(found[1])


def test_order_depends_on_seed_and_epoch_alone():
    assert np.array_equal(permutation(1000, 3, 5), permutation(1000, 3, 5))
    for other in ((4, 5), (3, 6), (5, 3)):
        same = permutation(1000, 3, 5) == permutation(1000, *other)
        assert same.sum() < 20  # one fixed point is expected of two random permutations


def test_order_is_the_same_in_every_version():
    # worked out once in plain Python integers, following SplitMix64
    assert permutation(8, 0, 0).tolist() == expected(8, 0, 0)
    assert permutation(8, 2**63, 41).tolist() == expected(8, 2**63, 41)


def test_first_places_are_spread_evenly_over_epochs():
    first = np.array([permutation(10, 1, epoch)[0] for epoch in range(5000)])
    counts = np.bincount(first, minlength=10)
    # chi-squared with 9 degrees of freedom: 27.9 is its 99.9th percentile
    assert ((counts - 500) ** 2 / 500).sum() < 27.9
