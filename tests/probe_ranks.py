"""What the processes of tests/test_pipeline_evaluation_probe.py do, and compare."""

import resource
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import sharded_ranks
import step_ranks
import torch
import torch.distributed as dist

from pipeline.evaluation import gathered, probe
from pipeline.evaluation.forward import Forward
from pipeline.evaluation.gathered import Gathered
from pipeline.evaluation.share import EvalShare
from pipeline.evaluation.training_loop import evaluation_settings
from pipeline.evaluation.unreadable import FAULT
from vit.model import ViT

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
    features_of_nothing(rank)
    waited_for(rank)
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
    few = collected(rank, 5, 3)  # the other ranks have no row, and learn the width of the labels
    assert (few is None) if rank else few[:, 0].tolist() == [0, 1, 2, 3, 4]
    labels = [] if rank else [np.full((5, 2), -1), np.full((1, 4), 3)]
    assert probe.agreed(probe.summary(labels), CPU) == [4, 1]


class Unreadable:
    """A reader of features that can read none of the images."""

    def __init__(self, dataset, settings):
        self.settings = settings

    def predictions(self, model, feed, share):
        for start, stop in share.batches:
            if count := stop - start:
                features = np.zeros((count, model.config.width), np.float32)
                faults = np.array(["cut"] * count)
                yield {"features": features, "labels": np.zeros((count, 1), int), FAULT: faults}


def features_of_nothing(rank):
    """All ranks fail at once, also those without an image, which would wait for rank 0."""
    feed = SimpleNamespace(ranks=range(rank, rank + 1), rank=rank, world_size=WORLD)
    given = SHARDED, SimpleNamespace(samples=5), feed, int, str
    with (
        mock.patch.object(probe, "FeatureReader", Unreadable),
        pytest.raises(ValueError, match="none of the 5 images of a probe can be read"),
    ):
        probe.features(ViT(SHARDED.model), *given)


def waited_for(rank):
    """While rank 0 fits, the others tick with it."""
    config = SHARDED.replace({"probe.shots": (1, 2), "probe.neighbours": 2})
    train, ticks = SimpleNamespace(samples=6, classes=("a", "b")), []
    rows, labels = torch.eye(6), torch.tensor([[0], [1]] * 3)
    found = None if rank else probe.Features(rows=rows, labels=labels)
    with mock.patch.object(probe, "features", lambda *_: found):
        one = probe.Probe(name="x", train=train, eval=train)
        probe.probe_share(ViT(config.model), config, [one], None, lambda: ticks.append(1), str)
    assert len(ticks) == 2 * config.probe.seeds + 1


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
