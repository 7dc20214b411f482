"""What the processes of tests/test_pipeline_evaluation_probe.py do, and compare."""

import resource
from types import SimpleNamespace

import numpy as np
import sharded_ranks
import step_ranks
import torch
import torch.distributed as dist

from pipeline.evaluation import gathered
from pipeline.evaluation.forward import Forward
from pipeline.evaluation.gathered import Gathered
from pipeline.evaluation.share import EvalShare
from pipeline.evaluation.training_loop import evaluation_settings

# 1.28 million images of ImageNet-1k are 20 times as many
ROWS, WIDTH, BATCH, WORLD = 64_000, 768, 512, 3
CPU, SHARDED = torch.device("cpu"), sharded_ranks.config("fsdp")


def main(rank, folder):
    """A few rows, which are compared, and many, whose memory is measured."""
    step_ranks.join(rank, WORLD, f"{folder}/meet")
    gathered.ROUND_BYTES = 8 << 20
    compared(rank)
    collected(rank, 3 * BATCH, WIDTH)  # the first communication takes memory of its own
    before = peak_bytes()
    collected(rank, ROWS, WIDTH)
    torch.save(peak_bytes() - before, f"{folder}/{rank}.pt")
    sharded_features()
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


def sharded_features():
    """A model that FSDP shards gives features, too: the input of its head."""
    model, settings = sharded_ranks.make("fsdp").model.eval(), evaluation_settings(SHARDED)
    images, seen = torch.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3).byte(), []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    Forward(model, settings)(images)
    model.reshard()
    torch.testing.assert_close(Forward(model, settings, features=True)(images), seen[0])


def peak_bytes():
    """The most memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
