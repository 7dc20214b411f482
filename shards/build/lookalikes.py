"""Images that look alike: perceptual hashes that differ in a few bits.

lookalikes = Lookalikes(hashes, distance=4);  lookalikes.nearest(others) -> positions, bits
"""

import itertools

import numpy as np
import pyarrow as pa

NONE = np.uint64(2**64 - 1)


class Lookalikes:
    """Perceptual hashes, in which the nearest ones of many images are found.

    Hashes that differ in d bits agree in at least one of d + 1 bands of bits. For each band there
    is a copy of the hashes, turned so that the band comes first, and sorted.
    """

    def __init__(self, hashes: pa.ChunkedArray, distance: int) -> None:
        """Take hashes, null for an image without one, and the bits in which they may differ."""
        phashes = hashes.fill_null(0).to_numpy()
        self._distance = np.uint8(distance)
        self._bands = []
        present = np.flatnonzero(phashes).astype(np.int32)
        edges = np.linspace(0, 64, distance + 2).astype(int).tolist()
        for low, high in itertools.pairwise(edges):
            turned = _turned(phashes[present], high)
            order = np.argsort(turned)
            rest = np.uint64((1 << 64 - (high - low)) - 1)
            self._bands.append((high, rest, turned[order], present[order]))

    def nearest(self, hashes: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """For each of N hashes the position of the nearest one, or -1, and in how many bits."""
        phashes = hashes.fill_null(0).to_numpy()
        best = np.full(len(phashes), NONE)
        for high, rest, known, places in self._bands:
            turned = _turned(phashes, high)
            order = np.argsort(turned)  # neighbours are then looked up in the cache
            order = order[phashes[order] != 0]
            first = np.searchsorted(known, turned[order] & ~rest)
            count = np.searchsorted(known, turned[order] | rest, "right") - first
            # Each row is compared with the first hash of its band, then all that have a second one
            # with that, and so on: the memory does not grow with the number of pairs.
            longest = np.argsort(-count, kind="stable")
            order, first, count = order[longest], first[longest], -count[longest]
            wanted = turned[order]
            for step in range(-count[0] if len(count) else 0):
                left = np.searchsorted(count, -step)
                at = first[:left] + step
                bits = np.bitwise_count(wanted[:left] ^ known[at])
                hits = np.flatnonzero(bits <= self._distance)
                found = bits[hits].astype(np.uint64) << np.uint64(32)
                np.minimum.at(best, order[hits], found | places[at[hits]].astype(np.uint64))
        places = np.where(best == NONE, np.int64(-1), (best & np.uint64(2**32 - 1)).view(np.int64))
        return places, best >> np.uint64(32)


def _turned(phashes: np.ndarray, high: int) -> np.ndarray:
    """The hashes with the bits below `high` moved to the front."""
    return (phashes >> np.uint64(high)) | (phashes << np.uint64(64 - high))
