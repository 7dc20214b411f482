"""What the order of samples costs each node of a large cluster: memory and seconds.

    python benchmarks/scale.py

Nothing is read: the slice tables of 21 million images in 2,100 shards stand for the data, and the
feeds of a few of the 64 nodes (of 8 workers each) do all the bookkeeping that the stream asks of
them for one segment of tasks. Then images are doubled at equal slices, slices at equal images, and
images in small shards, each of which ends with a short slice.

plan_s: seconds to draw an epoch and find the first batch; segment_s: to find the tasks of a
segment; kept_mb: arrays of the table and the epoch; peak_mb: the most that drawing the epoch takes
for a moment besides the table; table_mb and tasks_mb: what is sent to the tasks.
"""

import argparse
import pickle
import statistics
import sys
import time
import tracemalloc
from itertools import islice, repeat

import numpy as np

from pipeline.data.epoch import ReadSpans
from pipeline.data.order import Order, RankShare, Slices
from pipeline.data.stream import SEGMENT_TASKS
from pipeline.data.tasks import StepRanges, read_tasks

NODES, GLOBAL_BATCH, TASK_SAMPLES = 64, 16_384, 1024


def table(images: int, shard_samples: int, slice_samples: int) -> Slices:
    """Slices of shards of so many images of 30 KB."""
    edges = np.arange(shard_samples + 1, dtype=np.int64) * 30_000
    return Slices.cut([(edges[:-1], edges[1:])] * (images // shard_samples), slice_samples)


def arrays_mb(*owners: object) -> float:
    """MB of the arrays that are fields of some objects."""
    arrays = [a for owner in owners for a in vars(owner).values() if isinstance(a, np.ndarray)]
    return sum(array.nbytes for array in arrays) / 1e6


def segment(order: Order, share: RankShare) -> list[ReadSpans]:
    """Spans of the tasks of one segment of a node's stream, as the stream makes them."""
    ranges = StepRanges(share=share, first=0, last=10**6)
    return list(islice(read_tasks(order, ranges, repeat(TASK_SAMPLES)), SEGMENT_TASKS))


def measure(slices: Slices, nodes: int) -> dict[str, float]:
    """Medians over nodes: seconds to plan an epoch and a segment, MB of plan and of tasks."""
    plan_s, segment_s, peak_mb = [], [], []
    for node in range(0, NODES, NODES // nodes):
        share = RankShare.of(node, NODES, GLOBAL_BATCH)
        tracemalloc.start()
        order = Order(counts=slices.count, seed=node)
        begin = time.perf_counter()
        order.spans(share.low, share.high)
        planned = time.perf_counter()
        spans = segment(order, share)
        segment_s.append(time.perf_counter() - planned)
        plan_s.append(planned - begin)
        peak_mb.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    return {
        "slices": len(slices.count),
        "plan_s": statistics.median(plan_s),
        "segment_s": statistics.median(segment_s),
        "kept_mb": arrays_mb(slices, order.epoch(0)),
        "peak_mb": statistics.median(peak_mb),
        "table_mb": len(pickle.dumps(slices)) / 1e6,
        "tasks_mb": len(pickle.dumps(spans)) / 1e6,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8, help="nodes that are measured")
    nodes = parser.parse_args().nodes
    cases = {  # images, images of a shard, images of a slice
        "21 M images, slices of 32": (21_000_000, 10_000, 32),
        "42 M images, slices of 64": (42_000_000, 10_000, 64),
        "21 M images, slices of 16": (21_000_000, 10_000, 16),
        "42 M images, 42,000 shards": (42_000_000, 1000, 32),
    }
    names = ("slices", "plan_s", "segment_s", "kept_mb", "peak_mb", "table_mb", "tasks_mb")
    sys.stdout.write(f"{'':<28}" + "".join(f"{name:>12}" for name in names) + "\n")
    for case, sizes in cases.items():
        found = measure(table(*sizes), nodes)
        figures = "".join(f"{found[name]:>12,.{2 * (name != 'slices')}f}" for name in names)
        sys.stdout.write(f"{case:<28}{figures}\n")


if __name__ == "__main__":
    main()
