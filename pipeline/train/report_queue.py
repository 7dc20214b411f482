"""The queue between the workers and the driver: records go one way, the stop request the other."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# seconds between two polls of the queue
PAUSE_S = 0.2


@ray.remote(num_cpus=0)
class ReportQueue:
    """Holds the records of the workers until the driver takes them."""

    def __init__(self) -> None:
        self._records: list[dict] = []
        self._in_transit = False
        self._abandoned = False
        self._stopping = False

    def put(self, record: dict) -> None:
        """Add a record."""
        self._records.append(record)

    def say(self, text: str) -> None:
        """Add a line for the driver's console."""
        self.put({"kind": "message", "text": text})

    def take(self) -> list[dict]:
        """All records since the last call, in order; confirms that those of that call are saved."""
        records, self._records = self._records, []
        self._in_transit = bool(records)
        return records

    def flushed(self) -> bool:
        """Whether the driver has saved all records; RuntimeError if it no longer saves any."""
        if self._abandoned:
            raise RuntimeError("the driver no longer saves records; it reports the reason itself")
        return not self._records and not self._in_transit

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and stop."""
        self._stopping = True

    def abandon(self) -> None:
        """State that the driver no longer takes records, and ask the workers to stop."""
        self._abandoned = self._stopping = True

    def stopping(self) -> bool:
        """Whether the workers were asked to stop."""
        return self._stopping


class StopSignal:
    """The stop request as a worker sees it; checking it never waits for an answer."""

    def __init__(self, queue: ActorHandle) -> None:
        self._queue = queue
        self._reply = queue.stopping.remote()

    def __bool__(self) -> bool:
        """Whether the last answer that has arrived is a request to stop."""
        ready, _ = ray.wait([self._reply], timeout=0)
        if ready and not ray.get(self._reply):
            self._reply = self._queue.stopping.remote()
            return False
        return bool(ready)


def wait_until_flushed(queue: ActorHandle) -> None:
    """Wait until the driver has saved the records that this process has put into the queue."""
    while not ray.get(queue.flushed.remote()):
        time.sleep(PAUSE_S)


@contextlib.contextmanager
def run_report_queue(record: Callable[[dict], bool]) -> Iterator[ActorHandle]:
    """A queue whose records are all passed to `record`, in a thread, before the block ends.

    The workers are asked to stop if `record` returns True or raises. Its exception is raised again
    at the end of the block.
    """
    # on the driver's own node, because another node may disappear during the run
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue, closing = ReportQueue.options(scheduling_strategy=here).remote(), threading.Event()
    errors: list[Exception] = []

    def drain() -> None:
        for item in ray.get(queue.take.remote()):
            if record(item):
                queue.stop.remote()

    def poll() -> None:
        try:
            while not closing.wait(PAUSE_S):
                drain()
        except Exception as error:  # noqa: BLE001 - raised again in the driver's own thread
            errors.append(error)
            queue.abandon.remote()

    thread = threading.Thread(target=poll, name="queue")
    thread.start()
    try:
        yield queue
    finally:
        closing.set()
        thread.join()
        if not errors:
            drain()
        ray.kill(queue)
    if errors:
        raise errors[0]
