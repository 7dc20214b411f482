"""One pipeline for all workers of a node.

    stream -> Feed (an actor on the node: Ray Data) -> references to blocks -> each worker its rows

The feed hands every worker of its node the same blocks, in order. They lie in the node's object
store, where the workers read them in place; a block goes when all of them have taken it. The feed
belongs to the worker that made it, and dies with it.
"""

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.data import budget as node_budget
from pipeline.data.budget import NodeBudget
from pipeline.data.stream import Block, Stream, batches, columns, quiet
from pipeline.data.tasks import Range

# blocks that the fastest worker may be ahead of the slowest; Ray Data's buffer holds what follows
LEAD_BLOCKS = 4
# calls of one worker that wait at the same time: the next block of training, and of an evaluation
CALLS = 4


class Lane:
    """The blocks of one stream between Ray Data and the workers of the node."""

    def __init__(self, refs: Iterator[ray.ObjectRef], workers: int) -> None:
        """Start to fetch references; each of `workers` workers takes all of them."""
        self._waiting: deque[ray.ObjectRef] = deque()  # not yet taken by all
        self._gone = 0  # taken by all
        self._taken = [0] * workers
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._fetch, args=(refs,), daemon=True).start()

    def _fetch(self, refs: Iterator[ray.ObjectRef]) -> None:
        try:
            for ref in refs:
                with self._changed:
                    self._waiting.append(ref)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._waiting) < LEAD_BLOCKS)
                del ref  # or this thread would keep the block in memory
        except BaseException as error:  # noqa: BLE001 (it is raised in the workers)
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, worker: int) -> list[ray.ObjectRef]:
        """The next block of a worker in a list, which is empty at the end; waits for it."""
        with self._changed:
            place = self._taken[worker]
            self._changed.wait_for(lambda: place < self._gone + len(self._waiting) or self._ended)
            if place == self._gone + len(self._waiting):
                if self._error:
                    raise self._error
                return []
            found = [self._waiting[place - self._gone]]
            self._taken[worker] += 1
            while self._gone < min(self._taken):
                self._waiting.popleft()
                self._gone += 1
            self._changed.notify_all()
            return found


class Feed:
    """The actor: runs the streams of a node, which are numbered in the order of their start."""

    def __init__(self, budget: NodeBudget, workers: int) -> None:
        """Feed `workers` workers within the budget."""
        quiet()
        node_budget.use(budget)
        self._budget, self._workers = budget, workers
        self._lanes: dict[int, Lane] = {}
        self._opened = threading.Condition()

    def open(self, number: int, stream: Stream) -> None:
        """Start a stream."""
        with self._opened:
            self._lanes[number] = Lane(stream.refs(self._budget), self._workers)
            self._opened.notify_all()

    def take(self, number: int, worker: int) -> list[ray.ObjectRef]:
        """The next block of a stream for a worker, in a list that is empty at the end."""
        with self._opened:
            self._opened.wait_for(lambda: number in self._lanes)
        return self._lanes[number].take(worker)


@dataclass(frozen=True, kw_only=True)
class NodeFeed:
    """A worker's end of the feed of its node."""

    actor: ActorHandle
    ranks: range
    """Ranks of the workers of the node."""
    rank: int
    world_size: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def alone(cls) -> "NodeFeed":
        """A feed for this process only, on its node."""
        budget = NodeBudget(node=ray.get_runtime_context().get_node_id())
        return cls(actor=start(budget, 1), ranks=range(1), rank=0, world_size=1)

    def batches(self, stream: Stream, ranges: Iterable[Range]) -> Iterator[list[Block]]:
        """Start a stream for the node; the rows of each of this worker's ranges, in pieces.

        All workers of the node call it in the same order, with their own ranges; the stream is that
        of the first. Raises OSError with the words of the task that failed.
        """
        number, opened = next(self._numbers), None
        if self.rank == self.ranks[0]:
            opened = self.actor.open.remote(number, stream)
        return batches(self._blocks(number, opened), ranges)

    def _blocks(self, number: int, opened: ray.ObjectRef | None) -> Iterator[Block]:
        if opened is not None:
            ray.get(opened)
        pending = self._take(number)
        while refs := ray.get(pending):
            pending = self._take(number)
            yield columns(ray.get(refs[0]))

    def _take(self, number: int) -> ray.ObjectRef:
        return self.actor.take.remote(number, self.rank - self.ranks[0])


def start(budget: NodeBudget, workers: int) -> ActorHandle:
    """Start the feed of a node; it lives until this process ends or drops the handle.

    Raises ValueError if the budget leaves it nothing, because its tasks would wait forever.
    """
    cpus = int(budget.resources(ray.nodes()).cpu)
    actor = ray.remote(Feed).options(
        num_cpus=0,
        max_concurrency=1 + CALLS * workers,
        scheduling_strategy=NodeAffinitySchedulingStrategy(budget.node, soft=False),
    )
    handle = actor.remote(budget, workers)
    for _ in range(cpus):
        warm_up.options(**budget.placement).remote()
    return handle


@ray.remote
def warm_up() -> None:
    """Nothing, in a process that will decode: it starts and imports while the feed does so."""
