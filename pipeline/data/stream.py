"""The input of one worker: its share of the sequence, decoded by Ray Data ahead of training.

    share -> tasks (a few hundred samples each) -> Ray Data over the cluster, in order -> batches

Each worker runs its own Ray Data pipeline over its own list of byte ranges, so the order does not
depend on how Ray distributes blocks. A long run is cut into segments of one dataset each, because
Ray Data plans all tasks of a dataset at once. The next segment starts before the current one ends.

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

# Ray Data creates a task object for every task of a dataset; so many take well under a second
SEGMENT_TASKS = 512
# tasks left in a segment when the next one is started
SEGMENT_OVERLAP = 8
# blocks that Ray Data fetches ahead of their use
PREFETCH_BLOCKS = 2


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Decoded samples of one worker, addressed by row of its share."""

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
        with ThreadPoolExecutor(1) as thread:
            next_blocks: Future | None = None
            for number, segment in enumerate(segments, start=1):
                blocks = next_blocks.result() if next_blocks else self._start(segment)
                next_blocks = None
                for done, block in enumerate(map(checked, blocks), start=1):
                    ends = len(segment) - done <= SEGMENT_OVERLAP
                    if ends and not next_blocks and number < len(segments):
                        next_blocks = thread.submit(self._start, segments[number])
                    yield block

    def _start(self, tasks: list[tuple[int, int]]) -> Iterator[Block]:
        """Start the dataset of one segment: one block for each task, given by its rows."""
        spans = [
            ReadSpans.joined(
                [self.order.spans(*stretch) for stretch in self.share.stretches(*task)]
            )
            for task in tasks
        ]
        blocks = iter(
            self._dataset(spans).iter_batches(
                batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH_BLOCKS
            )
        )
        # Ray Data does not start before the first block is requested
        return chain([next(blocks)], blocks)

    def _dataset(self, spans: list[ReadSpans]) -> ray.data.Dataset:
        """A dataset with one task and one block for each entry of `spans`, in their order."""
        reader = self.reader

        def read(row: Block) -> Block:
            try:
                return reader(spans[int(row["id"][0])])
            except (OSError, ValueError) as error:  # for `checked`: Ray would hide the message
                return {ERROR: np.array([f"{type(error).__name__}: {error}"])}

        # with one block per row, Ray Data fuses reading and decoding into one task
        dataset = ray.data.range(len(spans), override_num_blocks=len(spans)).map_batches(
            read, batch_size=None, zero_copy_batch=True
        )
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(
            object_store_memory=int(self.buffer_gib * 2**30)
        )
        # one block per task, whatever its size
        dataset.context.target_max_block_size = None
        # during an evaluation nothing is consumed, which is not a stalled pipeline
        dataset.context.execution_no_progress_timeout_s = -1
        return dataset


def checked(block: Block) -> Block:
    """The block; raises the error of its task, if it failed, as an OSError."""
    if ERROR in block:
        raise OSError(str(block[ERROR][0]))
    return block


def quiet() -> None:
    """Silence Ray Data's log lines and progress bars in this process."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def rebatch(blocks: Iterator[Block], size: int) -> Iterator[Block]:
    """Cut a sequence of blocks into batches of `size` rows; the last may be shorter."""
    pieces: list[Block] = []
    rows = 0
    for block in blocks:
        while len(block["position"]):
            head = {name: column[: size - rows] for name, column in block.items()}
            block = {name: column[size - rows :] for name, column in block.items()}
            pieces.append(head)
            rows += len(head["position"])
            if rows == size:
                yield joined(pieces)
                pieces, rows = [], 0
    if pieces:
        yield joined(pieces)


def joined(blocks: list[Block]) -> Block:
    """Concatenate blocks; their labels are padded to the widest."""
    columns = {name: [block[name] for block in blocks] for name in blocks[0]}
    width = max(labels.shape[1] for labels in columns["labels"])
    columns["labels"] = [
        np.pad(labels, ((0, 0), (0, width - labels.shape[1])), constant_values=-1)
        for labels in columns["labels"]
    ]
    return {name: np.concatenate(column) for name, column in columns.items()}


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, prefetched by a thread up to `depth` ahead; errors are raised in place."""
    thread = ThreadPoolExecutor(1)
    try:
        pending = deque(thread.submit(next, items, END) for _ in range(depth))
        while (item := pending.popleft().result()) is not END:
            pending.append(thread.submit(next, items, END))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
