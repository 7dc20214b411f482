"""The queue between the workers and the driver, an actor on the driver's node.

    control    records and messages, numbered 1, 2, 3, ...: workers -> queue -> `record`, in order
               requests ("resize", "stop"): driver -> queue -> StopSignal of rank 0
    telemetry  samples and heartbeats: workers -> queue, which keeps only the newest of each source

Control is never lost: `wait_until_flushed` returns when the driver has confirmed the number of the
last record, whatever arrives later. Telemetry may be lost, and control never waits for it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import ray
from ray.actor import ActorHandle, ActorMethod
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# seconds between two looks of the driver into the queue
PAUSE_S = 0.2
# sources of which the queue keeps a sample
MAX_SOURCES = 4096
# calls of `wait` that the queue holds at a time; further ones are held back until these return
WAITING = 8
# what the driver may ask of the workers; the strongest comes last
NONE, RESIZE, STOP = range(3)
REQUESTS = {"resize": RESIZE, "stop": STOP}


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Where a worker is, as its watchdog says."""

    rank: int
    world_size: int
    node: str
    step: int
    phase: str
    stalled_s: float
    """Seconds without progress when it was sent."""
    age_s: float = 0.0
    """Seconds since it arrived in the queue."""


@ray.remote(num_cpus=0, concurrency_groups={"waiting": WAITING})
class ReportQueue:
    """Holds what the workers report until the driver takes it; `wait` has threads of its own."""

    def __init__(self) -> None:
        self._records: list[dict] = []
        # numbers of records: the last one put, awaited by a worker, and confirmed by the driver
        self._last = self._awaited = self._confirmed = 0
        self._change = threading.Condition()
        self._abandoned = False
        self._requests: set[int] = set()
        self._samples: dict[str, dict] = {}
        self._beats: dict[int, tuple[float, Heartbeat]] = {}
        self._gpus: dict[int, tuple[str, str]] = {}

    # --- control ---

    def put(self, record: dict) -> None:
        """Add a record; it gets the next number."""
        self._records.append(record)
        self._last += 1

    def say(self, text: str) -> None:
        """Add a line for the driver's console."""
        self.put({"kind": "message", "text": text})

    def take(self) -> tuple[list[dict], int, bool]:
        """All records since the last call, the last number, and whether a worker waits for it."""
        records, self._records = self._records, []
        return records, self._last, self._awaited > self._confirmed

    def confirm(self, number: int) -> None:
        """State that all records up to this number are kept."""
        with self._change:
            self._confirmed = number
            self._change.notify_all()

    def last(self) -> int:
        """Number of the last record, whose confirmation the caller is going to wait for."""
        self._awaited = self._last
        return self._last

    @ray.method(concurrency_group="waiting")
    def wait(self, number: int) -> None:
        """Return when this number is confirmed; RuntimeError if the driver keeps no records."""
        with self._change:
            self._change.wait_for(lambda: self._abandoned or self._confirmed >= number)
            if self._confirmed < number:
                raise RuntimeError("the driver no longer saves records; it reports why itself")

    def abandon(self) -> None:
        """State that the driver no longer takes records, and ask the workers to stop."""
        with self._change:
            self._abandoned = True
            self._change.notify_all()
        self.ask("stop")

    def ask(self, request: str) -> None:
        """Ask the workers to end: after a checkpoint ("stop"), or after the next scheduled one."""
        self._requests.add(REQUESTS[request])

    def begin(self) -> None:
        """Begin an attempt: forget the workers of the one before, and that it was to end."""
        self._requests.discard(RESIZE)
        self._samples, self._beats, self._gpus = {}, {}, {}

    def requested(self) -> int:
        """The strongest request: NONE, RESIZE or STOP."""
        return max(self._requests, default=NONE)

    # --- telemetry ---

    def sample(self, source: str, values: dict[str, float]) -> None:
        """Keep the newest values of a source."""
        self._samples.pop(source, None)
        self._samples[source] = values
        if len(self._samples) > MAX_SOURCES:
            del self._samples[next(iter(self._samples))]

    def take_samples(self) -> dict[str, float]:
        """The newest values since the last call, of all sources together."""
        samples, self._samples = self._samples, {}
        return {name: value for values in samples.values() for name, value in values.items()}

    def beat(self, beat: Heartbeat) -> None:
        """Keep the newest heartbeat of a rank."""
        self._beats[beat.rank] = (time.monotonic(), beat)

    def beats(self) -> list[Heartbeat]:
        """The newest heartbeat of each rank, with its age."""
        now = time.monotonic()
        return [replace(b, age_s=now - at) for at, b in self._beats.values()]

    def use_gpu(self, rank: int, node: str, uuid: str) -> None:
        """State that a rank uses the GPU of this UUID on a node."""
        self._gpus[rank] = (node, uuid)

    def gpus(self, node: str) -> dict[int, str]:
        """UUID of the GPU of each rank that is on a node."""
        return {rank: uuid for rank, (its_node, uuid) in self._gpus.items() if its_node == node}


class StopSignal:
    """The requests of the driver as a worker sees them; looking never waits for an answer."""

    def __init__(self, queue: ActorHandle) -> None:
        self._queue = queue
        self._reply = queue.requested.remote()
        self._request = NONE

    def __call__(self) -> int:
        """The strongest request in the answers that have arrived: NONE, RESIZE or STOP."""
        ready, _ = ray.wait([self._reply], timeout=0)
        if ready:
            self._request = max(self._request, ray.get(self._reply))
            self._reply = self._queue.requested.remote()
        return self._request


class Lossy:
    """Calls a method of the queue, unless the previous call has not been answered yet."""

    def __init__(self, method: ActorMethod) -> None:
        self._method = method
        self._reply: ray.ObjectRef | None = None

    def __call__(self, *arguments: object) -> None:
        """Send, or drop, so that calls do not pile up at a queue that does not answer."""
        if not self._reply or ray.wait([self._reply], timeout=0)[0]:
            self._reply = self._method.remote(*arguments)


def wait_until_flushed(queue: ActorHandle) -> None:
    """Wait until the driver has kept the records that this process has put into the queue.

    RuntimeError if the driver can no longer keep them.
    """
    number = ray.get(queue.last.remote())  # the calls of a process arrive in order
    ray.get(queue.wait.remote(number))


@contextlib.contextmanager
def run_report_queue(
    record: Callable[[dict], str | None],
    flush: Callable[[], None] | None = None,
    *,
    sample_every_s: float = 10.0,
) -> Iterator[ActorHandle]:
    """A queue whose records are all passed to `record`, in a thread, before the block ends.

    `record` may return a request for the workers ("resize" or "stop"). `flush` moves what was
    recorded to its final place; it is called when a worker waits for its records to be kept, and at
    the end. The samples of all sources are recorded together, as kind "system", every
    `sample_every_s` seconds.

    If `record` or `flush` raises, the workers are asked to stop, their waits raise, and the
    exception is raised again at the end of the block.
    """
    # on the driver's own node, because another node may disappear during the run
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue, closing = ReportQueue.options(scheduling_strategy=here).remote(), threading.Event()
    errors: list[Exception] = []

    def drain(*, final: bool = False) -> None:
        records, number, awaited = ray.get(queue.take.remote())
        for item in records:
            if request := record(item):
                queue.ask.remote(request)
        if awaited or final:
            if flush:
                flush()
            ray.get(queue.confirm.remote(number))

    def drain_samples() -> None:
        if samples := ray.get(queue.take_samples.remote()):
            record({"kind": "system", **samples})

    def work() -> None:
        due = time.monotonic() + sample_every_s
        try:
            while not closing.wait(PAUSE_S):
                drain()
                if time.monotonic() > due:
                    drain_samples()
                    due = time.monotonic() + sample_every_s
            drain_samples()
            drain(final=True)
        except Exception as error:  # noqa: BLE001 - raised again in the driver's own thread
            errors.append(error)
            queue.abandon.remote()

    thread = threading.Thread(target=work, name="queue")
    thread.start()
    try:
        yield queue
    except Exception as error:
        closing.set()
        thread.join()
        if errors:  # the workers failed because of it
            raise errors[0] from error
        raise
    finally:
        closing.set()
        thread.join()
        ray.kill(queue)
    if errors:
        raise errors[0]
