"""Ray Data in front of one worker: its share of the sequence, decoded ahead of the training step.

    share -> tasks (a few hundred samples each) -> Ray Data over the cluster, in order -> batches

Each worker runs its own pipeline over its own list of byte ranges, so the order is right by
construction: nothing rests on how Ray hands out blocks. A long run is cut into segments, each one
dataset, because Ray Data plans all tasks of a dataset at once; the next segment starts before the
present one ends.

Shapes: b samples of a batch, C views of each, S the image size, M labels per sample (padded with
-1).
"""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import ray.data
from ray.data import ExecutionResources

from pipeline.data.order import Mixture, Order, RankShare, ReadSpans
from pipeline.data.reader import SampleReader

Block = dict[str, np.ndarray]
T = TypeVar("T")
END = object()
ERROR = "error"

# Ray Data keeps a task object for every task of a dataset; this many cost it well under a second
SEGMENT_TASKS = 512
# tasks left in a segment when the next one is started
SEGMENT_OVERLAP = 8
# blocks that Ray Data hands over ahead of their use
PREFETCH_BLOCKS = 2


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Decoded samples of one worker, by row of its share."""

    reader: SampleReader
    order: Order | Mixture
    share: RankShare
    task_samples: int
    buffer_gib: float

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        """Rows [first, last) of the share, in order, in blocks of at most task_samples."""
        tasks = [
            (row, min(row + self.task_samples, last))
            for row in range(first, last, self.task_samples)
        ]
        segments = [tasks[i : i + SEGMENT_TASKS] for i in range(0, len(tasks), SEGMENT_TASKS)]
        with ThreadPoolExecutor(1) as beside:
            upcoming: Future | None = None
            for number, segment in enumerate(segments):
                blocks = upcoming.result() if upcoming else self._start(segment)
                upcoming = None
                for done, block in enumerate(map(checked, blocks), start=1):
                    if len(segment) - done <= SEGMENT_OVERLAP and not upcoming:
                        if number + 1 < len(segments):
                            upcoming = beside.submit(self._start, segments[number + 1])
                    yield block

    def _start(self, tasks: list[tuple[int, int]]) -> Iterator[Block]:
        """Begin to execute one dataset: a task a row, each block a task's samples."""
        spans = [self._pieces(first, last) for first, last in tasks]
        blocks = iter(
            self._dataset(spans).iter_batches(
                batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH_BLOCKS
            )
        )
        # Ray Data begins with the first block that is asked for
        return chain([next(blocks)], blocks)

    def _dataset(self, spans: list[ReadSpans]) -> ray.data.Dataset:
        """A dataset of one block, and one task, for each entry of `spans`, in their order."""
        reader = self.reader

        def read(row: Block) -> Block:
            try:
                return reader(spans[int(row["id"][0])])
            except (OSError, ValueError) as error:  # for `checked`: Ray would bury its words
                return {ERROR: np.array([f"{type(error).__name__}: {error}"])}

        # with as many blocks as rows, reading and decoding fuse into one task
        dataset = ray.data.range(len(spans), override_num_blocks=len(spans)).map_batches(
            read, batch_size=None, zero_copy_batch=True
        )
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(
            object_store_memory=int(self.buffer_gib * 2**30)
        )
        # a block is what one task decoded, whatever its size
        dataset.context.target_max_block_size = None
        # an evaluation between two batches is not a stalled pipeline
        dataset.context.execution_no_progress_timeout_s = -1
        return dataset

    def _pieces(self, first: int, last: int) -> ReadSpans:
        stretches = self.share.stretches(first, last)
        return ReadSpans.joined([self.order.spans(start, stop) for start, stop in stretches])


def checked(block: Block) -> Block:
    """A block, unless its task failed: that is raised here, with its own words, as an OSError."""
    if ERROR in block:
        raise OSError(str(block[ERROR][0]))
    return block


def quiet() -> None:
    """Keep Ray Data's own lines and bars off the console of this process."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def rebatch(blocks: Iterator[Block], size: int) -> Iterator[Block]:
    """Cut a sequence of blocks into batches of `size` rows; the last may be shorter."""
    waiting: list[Block] = []
    rows = 0
    for block in blocks:
        while len(block["position"]):
            head = {name: column[: size - rows] for name, column in block.items()}
            block = {name: column[size - rows :] for name, column in block.items()}
            waiting.append(head)
            rows += len(head["position"])
            if rows == size:
                yield joined(waiting)
                waiting, rows = [], 0
    if waiting:
        yield joined(waiting)


def joined(blocks: list[Block]) -> Block:
    """One batch of several blocks; their labels are padded to the widest."""
    width = max(block["labels"].shape[1] for block in blocks)
    batch = {
        name: np.concatenate([block[name] for block in blocks])
        for name in blocks[0]
        if name != "labels"
    }
    batch["labels"] = np.concatenate(
        [
            np.pad(labels, ((0, 0), (0, width - labels.shape[1])), constant_values=-1)
            for labels in (block["labels"] for block in blocks)
        ]
    )
    return batch


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, up to `depth` of them made ahead in a thread; errors surface in place."""
    thread = ThreadPoolExecutor(1)
    try:
        pending = deque(thread.submit(next, items, END) for _ in range(depth))
        while (item := pending.popleft().result()) is not END:
            pending.append(thread.submit(next, items, END))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
