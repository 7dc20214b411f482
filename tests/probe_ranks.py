"""What the processes of tests/test_pipeline_evaluation_probe.py do: bring rows to rank 0."""

import resource
from types import SimpleNamespace

import numpy as np
import step_ranks
import torch
import torch.distributed as dist

from pipeline.evaluation import gathered
from pipeline.evaluation.gathered import Gathered
from pipeline.evaluation.share import EvalShare

# 1.28 million images of ImageNet-1k are 20 times as many
ROWS, WIDTH, BATCH, WORLD = 64_000, 768, 512, 3
CPU = torch.device("cpu")


def main(rank, folder):
    """A few rows, which are compared, and many, whose memory is measured."""
    step_ranks.join(rank, WORLD, f"{folder}/meet")
    gathered.ROUND_BYTES = 8 << 20
    compared(rank)
    collected(rank, 3 * BATCH, WIDTH)  # the first communication takes memory of its own
    before = peak_bytes()
    collected(rank, ROWS, WIDTH)
    torch.save(peak_bytes() - before, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def collected(rank, rows, width):
    """Rows of which each says its position."""
    feed = SimpleNamespace(ranks=range(rank, rank + 1), rank=rank, world_size=WORLD)
    shares = [EvalShare.of_worker(feed, other, rows, BATCH) for other in range(WORLD)]
    found = Gathered([share.positions for share in shares], rank, width=width, dtype=torch.float32)
    for start, stop in shares[rank].batches:
        if start < stop:
            found.add(torch.arange(start, stop)[:, None].expand(-1, width).float())
    return found.whole(CPU)


def compared(rank):
    """The last batches of the ranks are a full one, a part of one, and none."""
    rows = collected(rank, 4 * WORLD * BATCH + BATCH + 7, 3)
    if rank:
        assert rows is None
    else:
        expected = np.arange(len(rows))[:, None].repeat(3, axis=1)
        np.testing.assert_array_equal(rows.numpy(), expected)


def peak_bytes():
    """The most memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
