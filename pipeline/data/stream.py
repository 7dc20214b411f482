"""The samples of a node in order, decoded by Ray Data ahead of their use.

    ranges of positions -> tasks (`task_samples`, fewer at first) -> Ray Data, in order -> blocks

A stream has its own list of byte ranges, so the order does not depend on how Ray distributes its
tasks. A long run is cut into segments of one dataset each, because Ray Data plans all tasks of a
dataset at once. The next segment starts before the current one ends.

Shapes: n rows of a block, C views of each, S the image size, M labels per sample (padded with -1).
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import ray
import ray.data
from ray.data import ExecutionResources
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.data.block import BlockAccessor

from pipeline.data.budget import NodeBudget
from pipeline.data.order import Mixture, Order, ReadSpans
from pipeline.data.reader import SampleReader
from pipeline.data.tasks import Range, read_tasks, task_sizes

Block = dict[str, np.ndarray]
T = TypeVar("T")
END = object()
ERROR = "error"

# Ray Data creates a task object for every task of a dataset; so many take well under a second
SEGMENT_TASKS = 512
# at least so many tasks are left in a segment when the next one is started
SEGMENT_OVERLAP = 8


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Decoded samples of one node; it is sent to the process that runs the tasks."""

    reader: SampleReader
    order: Order | Mixture
    ranges: Iterable[Range]
    """Positions to read, ascending; each is read once."""
    task_samples: int
    buffer_gib: float
    """Memory in the object store for decoded samples that not all workers have taken."""

    def refs(self, budget: NodeBudget) -> Iterator[ray.ObjectRef]:
        """References to the blocks with all rows of the ranges, in order."""
        cpus = int(budget.resources(ray.nodes()).cpu)
        tasks = read_tasks(self.order, self.ranges, task_sizes(self.task_samples, cpus))
        segments = iter(lambda: list(islice(tasks, SEGMENT_TASKS)), [])
        # when a segment has no more tasks than CPUs, some of them would have nothing to do
        overlap = max(SEGMENT_OVERLAP, min(cpus, SEGMENT_TASKS // 2))
        with ThreadPoolExecutor(1) as thread:
            upcoming: Future | None = thread.submit(self._start, segments, budget)
            while started := upcoming.result():
                left, refs = started
                upcoming = None
                for ref in refs:
                    left -= 1
                    if upcoming is None and left <= overlap:
                        upcoming = thread.submit(self._start, segments, budget)
                    yield ref

    def _start(
        self, segments: Iterator[list[ReadSpans]], budget: NodeBudget
    ) -> tuple[int, Iterator[ray.ObjectRef]] | None:
        """Start the next segment: its number of tasks, and one block for each of them."""
        spans = next(segments, None)
        if spans is None:
            return None
        bundles = iter(self._dataset(spans, budget).iter_internal_ref_bundles())
        refs = (entry.ref for bundle in bundles for entry in bundle.blocks)
        # Ray Data does not start before the first block is requested
        return len(spans), chain([next(refs)], refs)

    def _dataset(self, spans: list[ReadSpans], budget: NodeBudget) -> ray.data.Dataset:
        """A dataset with one task and one block for each entry of `spans`, in their order."""
        reader = self.reader

        def read(row: Block) -> Block:
            try:
                return reader(spans[int(row["id"][0])])
            except (OSError, ValueError) as error:  # for `columns`: Ray would hide the message
                return {ERROR: np.array([f"{type(error).__name__}: {error}"])}

        # with one block per row and equal arguments, Ray Data fuses reading and decoding into one
        # task; `ray.data.range` takes no arguments for its tasks
        numbers = RangeDatasource(n=len(spans), block_format="arrow", column_name="id")
        dataset = ray.data.read_datasource(
            numbers, override_num_blocks=len(spans), ray_remote_args=budget.placement
        ).map_batches(read, batch_size=None, zero_copy_batch=True, **budget.placement)
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


def columns(block: object) -> Block:
    """The columns of a block of Ray Data, without a copy; OSError if its task has failed."""
    found = BlockAccessor.for_block(block).to_numpy()
    if ERROR in found:
        raise OSError(str(found[ERROR][0]))
    return found


def quiet() -> None:
    """Silence Ray Data's log lines and progress bars in this process."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def batches(blocks: Iterator[Block], ranges: Iterable[Range]) -> Iterator[list[Block]]:
    """The rows of each range, in order, as pieces of the blocks that hold them; nothing is copied.

    The blocks may hold other positions in between, those of other workers.
    """
    block: Block | None = None
    for start, stop in ranges:
        pieces = []
        while start < stop:
            while block is None or block["position"][-1] < start:
                if (block := next(blocks, None)) is None:
                    raise RuntimeError(f"the stream ended before position {start}")
            low, high = np.searchsorted(block["position"], [start, stop])
            if block["position"][low] != start:
                raise RuntimeError(f"the stream has left out position {start}")
            pieces.append({name: column[low:high] for name, column in block.items()})
            start = int(block["position"][high - 1]) + 1
        yield pieces


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
    """The same items, prefetched by a thread up to `depth` ahead; errors are raised in place.

    The thread starts at once, not with the first item that is asked for.
    """
    thread = ThreadPoolExecutor(1)
    pending = deque(thread.submit(next, items, END) for _ in range(depth))

    def taken() -> Iterator[T]:
        try:
            while (item := pending.popleft().result()) is not END:
                pending.append(thread.submit(next, items, END))
                yield item
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    return taken()
