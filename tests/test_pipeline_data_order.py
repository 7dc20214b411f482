"""The order of samples: a permutation per epoch in whole slices, found from one integer."""

import hashlib
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.epoch import ReadSpans, permutation
from pipeline.data.order import Mixture, Order, RankShare, Slices, share_bounds

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


def places(spans: ReadSpans) -> list[tuple[int, int]]:
    """(slice, sample in it) at every position of the spans."""
    columns = zip(spans.slice.tolist(), spans.first.tolist(), spans.count.tolist(), strict=True)
    return [(row, first + i) for row, first, count in columns for i in range(count)]


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


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_shares_are_disjoint_and_their_union_is_the_global_batch(batch, workers, step):
    bounds = [share_bounds(rank, workers, batch) for rank in range(workers)]
    assert [bounds[0][0], bounds[-1][1]] == [0, batch]
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert all(low % 2 == 0 for low, high in bounds if low < high)
    sizes = [high - low for low, high in bounds]
    assert max(sizes) - min(sizes) <= 2
    if all(sizes):
        shares = [RankShare.of(rank, workers, batch) for rank in range(workers)]
        stretches = [s.stretches(step * s.size, (step + 1) * s.size) for s in shares]
        rows = [p for share in stretches for start, stop in share for p in range(start, stop)]
        assert rows == list(range(step * batch, (step + 1) * batch))


@given(lengths, st.integers(1, 12), st.integers(1, 30), st.integers(0, 20))
def test_any_number_of_workers_has_the_same_global_batches(lengths, workers, pairs, step):
    order = Order(counts=slices_of(lengths, 5).count, seed=7)
    batch = 2 * (pairs + workers)
    shares = [RankShare.of(rank, workers, batch) for rank in range(workers)]
    spans = [
        order.spans(*stretch)
        for share in shares
        for stretch in share.stretches(step * share.size, (step + 1) * share.size)
    ]
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
