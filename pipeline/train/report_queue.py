"""The queue between the driver and its workers: records go up, the stop request goes down."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# seconds between two looks at the queue
PAUSE_S = 0.2


@ray.remote(num_cpus=0)
class ReportQueue:
    """Holds what the workers have recorded until the driver takes it."""

    def __init__(self) -> None:
        self._records: list[dict] = []
        self._handed = False
        self._abandoned = False
        self._stopping = False

    def put(self, record: dict) -> None:
        """Leave a record."""
        self._records.append(record)

    def say(self, text: str) -> None:
        """Leave a line for the console of the driver."""
        self._records.append({"kind": "message", "text": text})

    def take(self) -> list[dict]:
        """All records since the last time, in order; those of the last time have been kept."""
        taken, self._records = self._records, []
        self._handed = bool(taken)
        return taken

    def flushed(self) -> bool:
        """Whether the driver has kept everything that was left here; it must be able to."""
        if self._abandoned:
            raise RuntimeError("the driver keeps no records any more; it tells the reason itself")
        return not self._records and not self._handed

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and end."""
        self._stopping = True

    def abandon(self) -> None:
        """Say that nobody takes records any more, and ask the workers to end."""
        self._abandoned = self._stopping = True

    def stopping(self) -> bool:
        """Whether the workers were asked to end."""
        return self._stopping


class StopSignal:
    """A worker's view of the stop request, renewed without ever waiting for an answer."""

    def __init__(self, queue: ActorHandle) -> None:
        self._queue = queue
        self._asked = queue.stopping.remote()

    def __bool__(self) -> bool:
        """The last answer that has arrived."""
        ready, _ = ray.wait([self._asked], timeout=0)
        if ready and not ray.get(self._asked):
            self._asked = self._queue.stopping.remote()
            return False
        return bool(ready)


def wait_until_flushed(queue: ActorHandle) -> None:
    """Wait until the driver has kept what this process left at the queue before."""
    while not ray.get(queue.flushed.remote()):
        time.sleep(PAUSE_S)


@contextlib.contextmanager
def run_report_queue(record: Callable[[dict], bool]) -> Iterator[ActorHandle]:
    """A queue; its records are handed to `record` in a thread, all of them by the end.

    The workers are asked to stop when `record` returns True, and when it raises: what it raised is
    raised again when the block is left.
    """
    # on the driver's own node: another one may go while the run goes on
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue, closing = ReportQueue.options(scheduling_strategy=here).remote(), threading.Event()
    raised: list[Exception] = []

    def hand_over() -> None:
        for item in ray.get(queue.take.remote()):
            if record(item):
                queue.stop.remote()

    def attend() -> None:
        try:
            while not closing.wait(PAUSE_S):
                hand_over()
        except Exception as error:  # noqa: BLE001 - raised again in the driver's own thread
            raised.append(error)
            queue.abandon.remote()

    thread = threading.Thread(target=attend, name="queue")
    thread.start()
    try:
        yield queue
    finally:
        closing.set()
        thread.join()
        if not raised:
            hand_over()
        ray.kill(queue)
    if raised:
        raise raised[0]
