"""Sends the record of a run to MLflow, from a thread that nothing waits for.

    metrics.jsonl, events.jsonl -> from the cursor on, in order -> track.TrackingServer -> cursor

The cursor in mlflow.json moves when the server has answered. A server that is down, slow, full or
faulty is tried again until the run ends, and later by `python -m pipeline track sync RUN`. What
reached the server without its answer reaching us is sent again, and is no second point there: see
`TrackingServer.send`. Each server has a cursor, so a run can be sent to another one afterwards.
"""

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.tracking import journal
from pipeline.tracking.mlflow_client import FAILURES, Refused, TrackingServer, tracking_uri
from support.files import AlreadyLocked, locked, read_lines, write_json
from support.redact import redact

log = logging.getLogger(__name__)

CURSOR, LOCK = "mlflow.json", "mlflow.lock"
EMBEDDED = "embedded"
# facts of an event that are places in the folder of the run
PLACES = ("path", "checkpoint")
# seconds between two looks at the files, and the longest pause between two tries
PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
# seconds that the end of a run waits for a server that fails
PATIENCE_S = 20.0
# records of one message; MLflow takes 1,000 numbers
BATCH_NUMBERS = 900
EMPTY = {"run_id": None, "experiment_id": None, "sent": 0, "told": 0, "models": {}}


class Sender:
    """Sends what is left of a run's record to one server, and remembers how far it came."""

    def __init__(self, run_dir: Path) -> None:
        """For a folder with a record; without one it is a FileNotFoundError."""
        self._dir = run_dir
        start = next((e for e in journal.read_events(run_dir) if e["event"] == "start"), None)
        if not start:
            raise FileNotFoundError(
                f"{run_dir} has no record of a run ({journal.EVENTS}); give the folder of a run"
            )
        self._parent = Path(start["parent"]) if start["parent"] else None
        runs_dir = (self._parent or run_dir).parent
        self._start, uri = start, tracking_uri(runs_dir)
        self.address = redact(uri)
        self._server = TrackingServer(uri, runs_dir)
        # the folder of the runs may move, and the file in it moves along
        self._key = EMBEDDED if self._server.embedded else self.address
        self._path = run_dir / CURSOR
        known = json.loads(self._path.read_text()) if self._path.exists() else None
        self._all = known or {"token": uuid.uuid4().hex, "servers": {}}
        self._at = {**EMPTY, **self._all["servers"].get(self._key, {})}
        self._sure = False
        self._keep({})

    def send(self) -> None:
        """Send all that is on disk now; what goes wrong is one of `track.FAILURES`."""
        if not self._at["run_id"]:
            found = self._server.open_run(self._start, self._all["token"], self._parent_id())
            self._sure = found.pop("new")
            self._keep(found)
        while self._send_numbers():
            pass
        while self._tell_event():
            pass

    def left(self) -> tuple[int, int]:
        """Records and events that have not been sent."""
        paths = ((journal.RECORDS, "sent"), (journal.EVENTS, "told"))
        return tuple(
            sum(1 for _ in read_lines(self._dir / name, self._at[cursor])) for name, cursor in paths
        )

    def _parent_id(self) -> str | None:
        if not self._parent:
            return None
        cursor = json.loads((self._parent / CURSOR).read_text())
        run_id = cursor["servers"].get(self._key, {}).get("run_id")
        if not run_id:
            raise OSError(f"the parent run of {self._parent} is not at the server yet")
        return run_id

    def _send_numbers(self) -> bool:
        records, numbers, sent = [], 0, self._at["sent"]
        for record, end in read_lines(self._dir / journal.RECORDS, sent):
            records.append(record)
            numbers, sent = numbers + len(record), end
            if numbers > BATCH_NUMBERS - 100:
                break
        if not records:
            return False
        sure, self._sure = self._sure, False
        self._server.send(self._at["run_id"], records, sure=sure)
        self._keep({"sent": sent})
        self._sure = True
        return True

    def _tell_event(self) -> bool:
        for event, told in read_lines(self._dir / journal.EVENTS, self._at["told"]):
            try:
                found = self._server.tell(self._at, self._located(event))
            except Refused as error:  # it would be refused for ever, and what follows is waiting
                log.warning("MLflow does not take %s of the record: %s", event["event"], error)
                found = {}
            self._keep({**found, "told": told})
            return True
        return False

    def _located(self, event: dict) -> dict:
        """The event with absolute places."""
        places = {name: str(self._dir / event[name]) for name in PLACES if name in event}
        return {**event, **places}

    def _keep(self, changes: dict[str, object]) -> None:
        self._at = {**self._at, **changes}
        self._all["servers"][self._key] = self._at
        write_json(self._path, self._all)


class MlflowSync:
    """A thread that keeps sending while the run goes on."""

    def __init__(self, run_dir: Path) -> None:
        """Start to send."""
        self._dir = run_dir
        self._closing = threading.Event()
        self._failing_since: float | None = None
        self._said = ""
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Send what is left; a server that fails is waited for only a while."""
        self._closing.set()
        closed = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.1)
            since = self._failing_since
            if since is not None and time.monotonic() - max(since, closed) > PATIENCE_S:
                self._given_up = True
                log.warning(
                    "MLflow does not answer; the record is on disk, and this sends it later: "
                    "python -m pipeline track sync %s",
                    self._dir,
                )
                return

    def _work(self) -> None:
        while not self._given_up:
            try:
                with exclusive(self._dir):
                    return self._keep_sending(Sender(self._dir))
            except (
                AlreadyLocked,
                *FAILURES,
            ) as error:  # a `track sync` that will end, a full disk
                self._fail(error)
                time.sleep(PAUSE_S)

    def _keep_sending(self, sender: Sender) -> None:
        pause = PAUSE_S
        while not self._given_up:
            closing = self._closing.is_set()
            try:
                sender.send()
                pause, self._failing_since, self._said = PAUSE_S, None, ""
                if closing:
                    return
            except FAILURES as error:
                pause = min(2 * pause, MAX_PAUSE_S)
                self._fail(error, sender.address)
            # at the end it is tried more often: somebody is waiting
            if self._closing.wait(pause):
                time.sleep(PAUSE_S)

    def _fail(self, error: BaseException, address: str = "this machine") -> None:
        """Note a failure; one line for each kind, not for each try."""
        self._failing_since = self._failing_since or time.monotonic()
        if self._said != type(error).__name__:
            self._said = type(error).__name__
            log.warning(
                "MLflow at %s: %s; the run goes on, its record waits", address, brief(error)
            )


def brief(error: BaseException) -> str:
    """The first line of an error, without secrets."""
    return (redact(str(error)).splitlines() or [type(error).__name__])[0][:300]


def sync(run_dir: Path) -> int:
    """Send what is left of a run's record; 0 if all of it is at the server then, otherwise 1."""
    with exclusive(run_dir):
        sender = Sender(run_dir)
        before = sender.left()
        try:
            sender.send()
        except FAILURES as error:
            log.error(
                "MLflow at %s: %s; %d records and %d events are left, nothing is lost",
                *(sender.address, brief(error), *sender.left()),
            )
            return 1
    log.info("sent %d records and %d events to %s", *before, sender.address)
    return 0


@contextlib.contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Be the only process that sends this record; AlreadyLocked if another one does."""
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir} is not there; give the folder of a run")
    message = f"another process sends the record of {run_dir} already; wait until it ends"
    with locked(run_dir / LOCK, message):
        yield
