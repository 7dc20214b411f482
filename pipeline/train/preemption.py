"""Notice that a node goes away, in time for a checkpoint of the step at hand.

    metadata server of the cloud -> thread of the node's first worker -> its vote in the next step
    Ray: somebody drains the node ->                                      -> all ranks checkpoint

A node that its cloud takes away is drained too, so that Ray places nothing new on it, but only when
its worker has ended: tasks that read for it are new as well.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import ray
import ray.train
from ray.actor import ActorHandle
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from ray.exceptions import RayError

from pipeline.train.metadata_server import FAILURES, MetadataServer, Notice, find_server
from shards.build.ray_map import this_node
from support.threads import beside

log = logging.getLogger(__name__)

# looks for a metadata server, which may be busy; seconds between two of them, and between two
# questions whether somebody drains the node
PROBES, DRAINS_EVERY_S = 3, 2.0


class Watch:
    """Watches one node from a thread."""

    def __init__(self, node: str, tell: Callable[[str], None]) -> None:
        """Watch the node of this id; `tell` says on the driver's console that it goes away."""
        self._node, self._tell = node, tell
        self._leaves = threading.Event()
        self._server: MetadataServer | None = None
        self.notice: Notice | None = None
        """What the cloud has said; None if somebody else drains the node."""

    def leaves(self) -> bool:
        """Whether the node goes away."""
        return self._leaves.is_set()

    def run(self, closing: threading.Event) -> None:
        """Watch until the node goes away, or `closing` is set."""
        probes, due_s = PROBES, 0.0
        while not self.leaves():
            if not self._server and probes:
                self._server, probes = find_server(), probes - 1
            if self._server and time.monotonic() >= due_s:
                due_s = time.monotonic() + self._server.every_s
                self._look()
            if not self.leaves() and self._drained():
                self._announce("Ray drains it")
            pause_s = min(DRAINS_EVERY_S, self._server.every_s if self._server else DRAINS_EVERY_S)
            if closing.wait(pause_s):
                return

    def _look(self) -> None:
        """Ask the cloud."""
        try:
            self.notice = self._server.notice()
        except FAILURES as error:
            log.debug("the metadata server is asked again later: %r", error)
            return
        if self.notice:
            left_s = max(0.0, self.notice.deadline_s - time.time())
            self._announce(f"{self.notice.text}, in {left_s:.0f} s")

    def _drained(self) -> bool:
        """Ask Ray."""
        try:
            return self._node in draining()
        except RayError as error:
            log.debug("Ray is asked again later: %r", error)
            return False

    def _announce(self, reason: str) -> None:
        self._leaves.set()  # first: what follows takes time
        self._tell(f"node {this_node()} goes away ({reason}): a checkpoint is written")


@contextlib.contextmanager
def watching_node(queue: ActorHandle) -> Iterator[Callable[[], bool]]:
    """In a Ray Train worker: whether its node goes away, watched during the block.

    The first worker of a node watches; to the others no node ever goes away.
    """
    if ray.train.get_context().get_local_rank():
        yield lambda: False
        return
    watch = Watch(ray.get_runtime_context().get_node_id(), queue.say.remote)
    try:
        with beside(watch.run, "preemption"):
            yield watch.leaves
    finally:
        if watch.notice:
            drain(watch.notice)


def draining() -> set[str]:
    """Ids of the nodes on which Ray places nothing new, because they go away."""
    return set(ray._private.state.state.get_draining_nodes())


def drain(notice: Notice) -> None:
    """Tell Ray to place nothing new on this node, as `ray drain-node` does."""
    context = ray.get_runtime_context()
    gcs = ray._raylet.GcsClient(address=context.gcs_address)
    reason = (DRAIN_NODE_REASON_PREEMPTION, notice.text, int(1000 * notice.deadline_s))
    try:
        gcs.drain_node(context.get_node_id(), *reason)
    except RayError as error:  # the node goes away in any case
        log.warning("Ray was not told that this node goes away: %s", error)
