"""Seconds until the first batch of a run, and of an evaluation in it.

    python -m benchmarks.first_batch [--rounds 3] [--cores 2]

A worker (an actor of Ray whose imports are done, as when Ray Train calls the training loop) starts
the feed of its node and takes a batch of 256 photographs (500 x 375): the first batch of a run. It
then takes one from a second stream of the same feed, as an evaluation does: that of an evaluation.
Each round starts Ray anew. `bare` is one batch read, decoded and cropped on one core.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import ray

from benchmarks.stream import KINDS, shards_of
from pipeline.data.dataset import Dataset
from pipeline.data.feed import NodeFeed
from pipeline.data.reader import SampleReader, View
from pipeline.data.stream import Stream
from pipeline.settings.config import DataConfig
from vit.config import ImageConfig

SIZE, BATCH, IMAGES = 224, 256, 2048
DATA = DataConfig(dir="")


@ray.remote(num_cpus=0)
class Worker:
    """A training worker that is up."""

    def first_batches(self, reader: SampleReader) -> tuple[float, float, float]:
        """Seconds to the first batch of a run, of an evaluation, and of the bare loop."""
        ranges = [(first, first + BATCH) for first in range(0, IMAGES, BATCH)]
        stream = Stream(
            reader=reader,
            order=reader.dataset.order(0),
            ranges=ranges,
            task_samples=DATA.task_samples,
            buffer_gib=DATA.buffer_gib,
        )
        begun = time.perf_counter()
        feed = NodeFeed.alone()
        training = feed.batches(stream, ranges)
        next(training)
        run_s = time.perf_counter() - begun
        for _ in training:  # its buffer is full while a run evaluates
            pass
        begun = time.perf_counter()
        next(feed.batches(stream, ranges))
        evaluation_s = time.perf_counter() - begun
        begun = time.perf_counter()
        reader(reader.dataset.order(0).spans(0, BATCH))
        return run_s, evaluation_s, time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = shards_of(KINDS["photographs"](IMAGES), Path(folder))
        dataset = Dataset.open([str(shards)], "train", slice_samples=32)
        reader = SampleReader(dataset=dataset, view=View(images=ImageConfig(), size=SIZE))
        rounds = []
        for _ in range(options.rounds):
            local = {"address": "local", "num_cpus": options.cores}
            ray.init(**local, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            worker = Worker.remote()
            ray.get(worker.__ray_ready__.remote())
            rounds.append(ray.get(worker.first_batches.remote(reader)))
            ray.shutdown()
    for name, seconds in zip(("run", "evaluation", "bare"), zip(*rounds, strict=True), strict=True):
        each = ", ".join(f"{s:.1f}" for s in seconds)
        sys.stdout.write(f"{name:<12}{statistics.median(seconds):>6.1f} s   ({each})\n")


if __name__ == "__main__":
    main()
