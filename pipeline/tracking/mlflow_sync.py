"""Sends the record of a run to MLflow, from a thread that nothing waits for.

    metrics, events and system.jsonl -> from the cursor on, in order -> TrackingServer -> cursor

The cursor in mlflow.json advances when the server has answered. A server that is down, slow, full
or faulty is retried until the run ends, and later by `python -m pipeline track sync RUN`. Data
whose answer was lost is sent again without duplicates: see `TrackingServer.send`. Each server has
its own cursor, so a run can be sent to another server later. Of a long backlog of samples of the
machines, only some are sent. What the server refuses for good does not hold up the rest: see
`pipeline.tracking.refusals`.
"""

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from pipeline.tracking import journal
from pipeline.tracking.journal import numbers
from pipeline.tracking.mlflow_address import CURSOR, DATABASE, server_key
from pipeline.tracking.mlflow_client import FAILURES, TrackingServer, milliseconds
from pipeline.tracking.refusals import Refused, RunRefused, brief
from support.files import AlreadyLocked, locked, read_lines, write_json

log = logging.getLogger(__name__)

LOCK = "mlflow.lock"
# facts of an event that are paths in the folder of the run
PATH_FACTS = ("path", "checkpoint")
# facts that tell people which event it is
NAMING = ("checkpoint", "path", "name", "status")
# error codes of a server that answers, and wants somebody else
DENIALS = ("PERMISSION_DENIED", "UNAUTHENTICATED")
# seconds between two looks at the files, and the longest pause between two attempts
PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
# seconds that the end of a run waits for a failing server
PATIENCE_S = 20.0
# a message takes records until it has more numbers than this; MLflow takes 1,000
BATCH_NUMBERS = 800
EMPTY = {
    **{"run_id": None, "experiment_id": None, "experiment": None},
    **{"sent": 0, "sampled": 0, "told": 0, "models": {}},
}


class Sender:
    """Sends the rest of a run's record to one server, and keeps the cursor."""

    def __init__(self, run_dir: Path) -> None:
        """Open the folder of a run; FileNotFoundError if it has no record."""
        self._dir = run_dir
        starts = [event for event in journal.read_events(run_dir) if event["event"] == "start"]
        if not starts:
            raise FileNotFoundError(
                f"{run_dir} has no record of a run ({journal.EVENTS}); give the folder of a run"
            )
        # a resumed run may be meant for another experiment
        self._start = starts[0] | {"experiment": starts[-1]["experiment"]}
        self._parent = Path(starts[0]["parent"]) if starts[0]["parent"] else None
        runs_dir = (self._parent or run_dir).parent
        self._server = TrackingServer(runs_dir, run_dir)
        self.address, self._key = self._server.address, server_key()
        self._path = run_dir / CURSOR
        stored = json.loads(self._path.read_text()) if self._path.exists() else None
        self._cursors = stored or {"token": uuid.uuid4().hex, "servers": {}}
        self._cursor = {**EMPTY, **self._cursors["servers"].get(self._key, {})}
        if self._server.embedded and not (runs_dir / DATABASE).exists():
            self._cursor = dict(EMPTY)  # it was on another machine, and is made anew
        samples = run_dir / journal.SAMPLES
        if not samples.exists() or samples.stat().st_size < self._cursor["sampled"]:
            self._cursor["sampled"] = 0  # that file stays on the machine where it was written
        # whether the server is sure to lack the records after the cursor
        self._sure = False
        self._compared = self._server.embedded and not self._is_moved()
        self._advance({})

    def send(self) -> None:
        """Send everything that is on disk now; raises one of `mlflow_client.FAILURES`."""
        try:
            if not self._compared:
                self._rewind()
                self._compared = True
            self._send()
        except (OSError, RunRefused):  # of a store of files, or of the run: the server is there
            raise
        except FAILURES:
            self._compared = False  # it may have lost something when it comes back
            raise

    def _send(self) -> None:
        if not self._cursor["run_id"]:
            run = self._server.open_run(self._start, self._cursors["token"], self._parent_id())
            self._sure = run.pop("new")
            self._advance(run)
        # numbers first: an event may have to wait for a store
        self._send_numbers("sent", journal.read_records(self._dir, self._cursor["sent"]))
        self._send_numbers("sampled", journal.read_samples(self._dir, self._cursor["sampled"]))
        for event, end in read_lines(self._dir / journal.EVENTS, self._cursor["told"]):
            self._send_event(event, end)

    def _is_moved(self) -> bool:
        """Whether the run has been started again for another experiment: MLflow moves no runs."""
        return self._cursor["experiment"] not in (None, self._start["experiment"])

    def _rewind(self) -> None:
        """Take the cursor back if the server has lost what it had: it may be of a backup."""
        run_id = self._cursor["run_id"]
        if not run_id:
            return
        if not self._server.knows(run_id):
            log.warning("MLflow at %s has lost this run; it is sent again", self.address)
            return self._advance(dict(EMPTY))
        if self._is_moved() and self._server.is_deleted(run_id):
            text = "the run is deleted in MLflow; it is sent to the experiment %r as a new one"
            log.warning(text, self._start["experiment"])
            return self._advance(dict(EMPTY))
        refused = self._server.refusals.metrics
        sent = [
            (record, end, names[0])
            for record, end in journal.read_records(self._dir)
            if end <= self._cursor["sent"] and (names := sorted(numbers(record).keys() - refused))
        ]
        if not sent:
            return
        name = sent[-1][2]
        points = self._server.points(run_id, name)
        kept = [end for record, end, _ in sent if (record["step"], milliseconds(record)) in points]
        if kept[-1:] != [sent[-1][1]]:
            log.warning("MLflow at %s has lost the newest records; sending again", self.address)
            self._advance({"sent": max(kept, default=0), "told": 0, "models": {}})

    def left(self) -> tuple[int, int]:
        """Records and events that have not been sent."""
        records = journal.read_records(self._dir, self._cursor["sent"])
        samples = journal.read_samples(self._dir, self._cursor["sampled"])
        events = read_lines(self._dir / journal.EVENTS, self._cursor["told"])
        return len(records) + len(samples), sum(1 for _ in events)

    def _parent_id(self) -> str | None:
        if not self._parent:
            return None
        cursors = json.loads((self._parent / CURSOR).read_text())
        run_id = cursors["servers"].get(self._key, {}).get("run_id")
        if not run_id:
            raise OSError(f"the parent run of {self._parent} is not at the server yet")
        return run_id

    def _send_numbers(self, position: str, lines: Iterable[tuple[dict, int]]) -> None:
        """Send records in batches; a position of the cursor follows them."""
        records, numbers = [], 0
        for record, end in lines:
            records.append(record)
            numbers += len(record)
            if numbers > BATCH_NUMBERS:
                self._send_batch(position, records, end)
                records, numbers = [], 0
        if records:
            self._send_batch(position, records, end)

    def _send_batch(self, position: str, records: list[dict], end: int) -> None:
        # a sample that is sent twice harms nothing, and there are too many to look for them
        checked, sure = position == "sent", self._sure
        self._sure = sure and not checked
        self._server.send(self._cursor["run_id"], records, sure=sure or not checked)
        self._advance({position: end})
        self._sure = sure or checked

    def _send_event(self, event: dict, end: int) -> None:
        """Send an event, with absolute paths; `end` is the byte after its line."""
        paths = {name: str(self._dir / event[name]) for name in PATH_FACTS if name in event}
        changes = {}
        try:
            changes = self._server.apply(self._cursor, {**event, **paths})
        except Refused as error:  # for good; the events after it must not wait
            if not self._is_pruned(event):
                self._set_aside(event, error)
        self._advance({**changes, "told": end})

    def _is_pruned(self, event: dict) -> bool:
        """Whether an event is about a model that was to go before it could be sent."""
        if event["event"] not in ("model", "register"):
            return False
        name = Path(event["checkpoint"]).name
        pruned = (e for e in journal.read_events(self._dir) if e["event"] == "prune")
        return any(Path(event["checkpoint"]).name == name for event in pruned)

    def _set_aside(self, event: dict, error: Refused) -> None:
        names = (event[fact] for fact in NAMING if event.get(fact))
        about = {"step": event.get("step"), "time": event["time"], "value": event.get("value")}
        self._server.refusals.add(event["event"], str(next(names, "")), error, **about)

    def _advance(self, changes: dict[str, object]) -> None:
        """Change the cursor, in memory and on disk."""
        self._cursor = {**self._cursor, **changes}
        self._cursors["servers"][self._key] = self._cursor
        write_json(self._path, self._cursors)


class MlflowSync:
    """A thread that keeps sending during the run."""

    def __init__(self, run_dir: Path) -> None:
        """Start sending."""
        self._dir = run_dir
        self._closing = threading.Event()
        self._failing_since: float | None = None
        self._failure = self._reported = ""
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Send what is left; waits for a failing server for PATIENCE_S at most."""
        self._closing.set()
        closed = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.1)
            since = self._failing_since
            if since is not None and time.monotonic() - max(since, closed) > PATIENCE_S:
                self._given_up = True
                log.warning(
                    "MLflow %s; the record is on disk; to send it later, run "
                    "python -m pipeline track sync %s",
                    *(self._failure, self._dir),
                )
                return

    def _work(self) -> None:
        while not self._given_up:
            try:
                with sending_lock(self._dir):
                    return self._keep_sending(Sender(self._dir))
            except (AlreadyLocked, *FAILURES) as error:  # a `track sync` that will end, a full disk
                self._fail(error)
                time.sleep(PAUSE_S)

    def _keep_sending(self, sender: Sender) -> None:
        pause = PAUSE_S
        while not self._given_up:
            closing = self._closing.is_set()
            try:
                sender.send()
                pause, self._failing_since, self._reported = PAUSE_S, None, ""
                if closing:
                    return
            except FAILURES as error:
                pause = min(2 * pause, MAX_PAUSE_S)
                self._fail(error, sender.address)
            # the end of the run waits for this, so it retries more often
            if self._closing.wait(pause):
                time.sleep(PAUSE_S)

    def _fail(self, error: BaseException, address: str = "this machine") -> None:
        """Note a failure; logs one line per kind of failure, not per attempt."""
        self._failing_since = self._failing_since or time.monotonic()
        self._failure = described(error, address)
        if self._reported != type(error).__name__:
            self._reported = type(error).__name__
            text = "MLflow %s; the run continues, its record will be sent later"
            log.warning(text, self._failure)


def described(error: BaseException, address: str) -> str:
    """What is wrong with MLflow at an address, in words that follow its name."""
    is_refusal = isinstance(error, RunRefused) or getattr(error, "error_code", "") in DENIALS
    return f"at {address} {'refuses the record' if is_refusal else 'fails'}: {brief(error)}"


def sync(run_dir: Path) -> int:
    """Send the rest of a run's record; 0 if the server then has all of it, otherwise 1."""
    with sending_lock(run_dir):
        sender = Sender(run_dir)
        before = sender.left()
        try:
            sender.send()
        except FAILURES as error:
            log.error(
                "MLflow %s; %d records and %d events are left, nothing is lost",
                *(described(error, sender.address), *sender.left()),
            )
            return 1
    log.info("sent %d records and %d events to %s", *before, sender.address)
    return 0


def sending_lock(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Lock to be the only process that sends this record; AlreadyLocked if another one does."""
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir} is not there; give the folder of a run")
    message = f"another process sends the record of {run_dir} already; wait until it ends"
    return locked(run_dir / LOCK, message)
