"""Bytes that the nodes of a cluster read over the bytes that they need.

    python benchmarks/amplification.py

Nothing is read: shards of 900 to 1,100 images of uneven size stand for the data, so that each ends
with a short slice. Every step each node reads the slices that its workers' shares touch, whole and
once, and keeps nothing for the next step, which is the worst case. Beside it stands what the same
workers read if each reads for itself.
"""

import argparse
import sys

import numpy as np

from pipeline.data.order import Order, RankShare, Slices

NODE_WORKERS, GLOBAL_BATCH = 8, 4096
# the first epoch, and one that starts in the middle of a slice
EPOCHS = (0, 9)


class Bytes:
    """Sizes of samples and slices of made-up shards."""

    def __init__(self, shards: int, slice_samples: int) -> None:
        """Draw the shards and cut them."""
        random = np.random.default_rng(0)
        lengths = random.integers(900, 1101, shards)
        # log-normal around 30 KB, like photographs
        sizes = [random.lognormal(np.log(30_000), 0.6, n).astype(np.int64) for n in lengths]
        stops = [np.cumsum(size) for size in sizes]
        extents = [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
        self.slices = Slices.cut(extents, slice_samples)
        self.before = np.append(0, np.cumsum(np.concatenate(sizes)))
        self.first = np.cumsum(self.slices.count) - self.slices.count

    def amplification(self, epoch: int, readers: int, reader_workers: int) -> float:
        """Bytes read over bytes needed by readers that each read for some workers."""
        order = Order(counts=self.slices.count, seed=0)
        workers = readers * reader_workers
        shares = [RankShare.of(rank, workers, GLOBAL_BATCH) for rank in range(workers)]
        ranges = [(s[0].low, s[-1].high) for s in np.reshape(shares, (readers, reader_workers))]
        read = needed = 0
        for step in range(*((e * order.samples) // GLOBAL_BATCH for e in (epoch, epoch + 1))):
            for low, high in ranges:
                spans = order.spans(step * GLOBAL_BATCH + low, step * GLOBAL_BATCH + high)
                begin = self.first[spans.slice] + spans.first
                needed += (self.before[begin + spans.count] - self.before[begin]).sum()
                touched = np.unique(spans.slice)
                read += (self.slices.stop[touched] - self.slices.start[touched]).sum()
        return read / needed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--slice-samples", type=int, default=32)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 8, 64])
    args = parser.parse_args()
    data = Bytes(args.shards, args.slice_samples)
    epochs = "".join(f"{f'epoch {epoch + 1}':>10}" for epoch in EPOCHS)
    sys.stdout.write(f"{'images per step of a reader':<32}{'reader':<8}{epochs}\n")
    for nodes in args.nodes:
        for reader, readers in (("node", nodes), ("worker", nodes * NODE_WORKERS)):
            reader_workers = nodes * NODE_WORKERS // readers
            found = [data.amplification(epoch, readers, reader_workers) for epoch in EPOCHS]
            figures = "".join(f"{figure:>10.3f}" for figure in found)
            share = f"{nodes} nodes: {GLOBAL_BATCH / readers:,.0f}"
            sys.stdout.write(f"{share:<32}{reader:<8}{figures}\n")


if __name__ == "__main__":
    main()
