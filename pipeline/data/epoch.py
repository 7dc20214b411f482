"""One epoch of the sequence: a permutation of units, and what to read for its positions.

    counts of the slices, seed, number -> units (full slices and bundles) -> spans to read

Pure functions of their arguments: no Ray, no torch, no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from support.splitmix import GOLDEN, scramble

# keys of the draws that are independent of the permutation of an epoch's units
LOOSE, HEAD = 0x2545F4914F6CDD1D, 0x9FB21C651E98DF25


@dataclass(frozen=True, kw_only=True)
class ReadSpans:
    """What to read for a range of positions: `count` samples of each slice, from `first` on."""

    slice: np.ndarray
    """(P,) int64: row in the slice table."""
    first: np.ndarray
    """(P,) int64: samples of the slice to skip."""
    count: np.ndarray
    """(P,) int64: samples to take."""
    position: np.ndarray
    """(P,) int64: position in the sequence of the first sample taken."""

    @classmethod
    def joined(cls, pieces: Sequence["ReadSpans"]) -> "ReadSpans":
        """Concatenate the spans of several ranges."""
        empty = np.empty(0, np.int64)
        names = cls.__dataclass_fields__
        return cls(
            **{n: np.concatenate([empty, *(getattr(piece, n) for piece in pieces)]) for n in names}
        )

    def sorted(self) -> "ReadSpans":
        """The spans in order of position."""
        order = np.argsort(self.position)
        return type(self)(
            **{name: getattr(self, name)[order] for name in type(self).__dataclass_fields__}
        )


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of a sequence: units of `unit` samples, of which the outer two may be cut short.

    A unit is a full slice, or a bundle: the next samples of the loose slices, which are those that
    are shorter than a unit. Bundle j is the loose samples [j*unit - cut, (j+1)*unit - cut), where
    `cut` is what the epoch before takes of the unit that both share.
    """

    start: int
    """Position of the first sample."""
    unit: int
    """Samples of a unit; units start at its multiples."""
    units: np.ndarray
    """(U,) int32: row of the slice, or ~j for bundle j."""
    loose: np.ndarray
    """(L,) int32: rows of the loose slices, in the order in which the bundles use them."""
    edges: np.ndarray
    """(L + 1,) int64: loose samples before each loose slice, and all of them."""

    @classmethod
    def drawn(cls, counts: np.ndarray, unit: int, seed: int | None, number: int) -> "Epoch":
        """Draw an epoch: the order of its loose slices, then that of its full slices and bundles.

        The first bundle completes the unit that the epoch before began, and what is left at the end
        begins one that the next epoch completes. All others lie anywhere among the full slices.

        Args:
            counts: (S,) samples of each slice, at most `unit`; one of them at least has so many.
            unit: Samples of a unit.
            seed: Seed of the permutations; None keeps the order of the slices.
            number: Number of the epoch, from 0.
        """
        start = number * int(counts.sum(dtype=np.int64))
        cut = start % unit
        full, loose = (
            np.flatnonzero(chosen).astype(np.int32) for chosen in (counts == unit, counts != unit)
        )
        if seed is not None:
            loose = loose[permutation(len(loose), seed ^ LOOSE, number)]
            # a full slice is cut too, where the loose ones do not complete the first unit
            if cut and cut + counts[loose].sum() < unit:
                place = int(words(1, seed ^ HEAD, number)[0] % len(full))
                full, loose = np.delete(full, place), np.append(loose, full[place])
        edges = np.append(0, np.cumsum(counts[loose], dtype=np.int64))
        whole, rest = divmod(cut + int(edges[-1]), unit)
        head, tail = int(cut > 0), int(rest > 0)
        units = np.append(full, ~np.arange(head, whole, dtype=np.int32))
        if seed is not None:
            units = units[permutation(len(units), seed, number)]
        ends = np.full(head, ~0, np.int32), np.full(tail, ~whole, np.int32)
        units = np.concatenate([ends[0], units, ends[1]])
        return cls(start=start, unit=unit, units=units, loose=loose, edges=edges)

    def spans(self, start: int, stop: int) -> ReadSpans:
        """Spans of positions [start, stop), which lie in this epoch."""
        before, cut = divmod(self.start, self.unit)
        first, last = start // self.unit, -(-stop // self.unit)
        units = self.units[first - before : last - before].astype(np.int64)
        begin = np.arange(first, last) * self.unit
        low, high = np.maximum(begin, start), np.minimum(begin + self.unit, stop)
        full = units >= 0
        slices = ReadSpans(
            slice=units[full],
            first=(low - begin)[full],
            count=(high - low)[full],
            position=low[full],
        )
        if full.all():
            return slices
        # from positions to places among the loose samples
        shift = (~units * self.unit - cut - begin)[~full]
        bundles = self._bundles(low[~full] + shift, high[~full] + shift, shift)
        return ReadSpans.joined([slices, bundles]).sorted()

    def _bundles(self, low: np.ndarray, high: np.ndarray, shift: np.ndarray) -> ReadSpans:
        """Spans of ranges [low, high) of the loose samples, at the positions low - shift."""
        first = np.searchsorted(self.edges, low, side="right") - 1
        num = np.searchsorted(self.edges, high, side="left") - first
        owner = np.repeat(np.arange(len(num)), num)
        # the slices of each range, counted up from its first
        place = np.arange(len(owner)) + (first - np.cumsum(num) + num)[owner]
        begin = np.maximum(self.edges[place], low[owner])
        return ReadSpans(
            slice=self.loose[place].astype(np.int64),
            first=begin - self.edges[place],
            count=np.minimum(self.edges[place + 1], high[owner]) - begin,
            position=begin - shift[owner],
        )


def permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num) that depends on (seed, epoch) alone: (num,) int32 or int64.

    It sorts by a hash of every number. NumPy's own permutations may change with its version.
    """
    # no two of the words are equal, so any way of sorting gives the same
    return np.argsort(words(num, seed, epoch)).astype(np.int32 if num < 2**31 else np.int64)


def words(num: int, seed: int, epoch: int) -> np.ndarray:
    """Random words that depend on (seed, epoch) alone, all different: (num,) uint64."""
    key = splitmix64(np.array([seed, epoch], np.uint64))
    stream = splitmix64(key[:1] ^ (key[1:] * np.uint64(0xD1342543DE82EF95)))
    return splitmix64(stream + np.arange(num, dtype=np.uint64))


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output of SplitMix64 after each state x: uint64 -> uint64."""
    return scramble(x + np.uint64(GOLDEN))
