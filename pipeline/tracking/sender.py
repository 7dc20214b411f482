"""The part of a run's record that one server does not have, and the cursor that follows it.

    metrics, events and system.jsonl -> from the cursor on, in order -> TrackingServer -> cursor

The cursor in mlflow.json advances when the server has answered. Data whose answer was lost is sent
again without duplicates: see `TrackingServer.send`. Each server has its own cursor, so a run can be
sent to another server later. Of a long backlog of samples of the machines, only some are sent. What
the server refuses for good does not hold up the rest: see `pipeline.tracking.refusals`.
"""

import json
import logging
import uuid
from collections.abc import Iterable
from pathlib import Path

from pipeline.checkpoint.checkpoints import Checkpoints, has_weights
from pipeline.tracking import journal
from pipeline.tracking.journal import numbers
from pipeline.tracking.mlflow_address import CURSOR, DATABASE, server_key
from pipeline.tracking.mlflow_client import FAILURES, TrackingServer, milliseconds
from pipeline.tracking.refusals import Refused, RunRefused, brief
from support.files import read_lines, write_json

log = logging.getLogger(__name__)

# facts of an event that are paths in the folder of the run
PATH_FACTS = ("path", "checkpoint")
# facts that tell people which event it is
NAMING = ("checkpoint", "path", "name", "status")
# a message takes records until it has more numbers than this; MLflow takes 1,000
BATCH_NUMBERS = 800
EMPTY = {
    **{"run_id": None, "experiment_id": None, "experiment": None},
    **{"sent": 0, "sampled": 0, "told": 0, "models": {}},
}


class Sender:
    """Sends the rest of a run's record to one server, and keeps the cursor."""

    def __init__(self, run_dir: Path, models: Checkpoints | None = None) -> None:
        """Open the folder of a run; FileNotFoundError if it has no record.

        Of a run in a store, `models` fetches checkpoints that become models and are not on this
        machine: another one may have recorded them.
        """
        self._dir, self._models = run_dir, models if models and models.uri else None
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
        self._send_numbers()  # first: an event may have to wait for a store
        for event, end in read_lines(self._dir / journal.EVENTS, self._cursor["told"]):
            self._send_event(event, end)
            self._send_numbers()  # a curve waits for the upload of one model, not of all

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

    def _send_numbers(self) -> None:
        """Send the records and samples that are new."""
        self._send_lines("sent", journal.read_records(self._dir, self._cursor["sent"]))
        self._send_lines("sampled", journal.read_samples(self._dir, self._cursor["sampled"]))

    def _send_lines(self, position: str, lines: Iterable[tuple[dict, int]]) -> None:
        """Send records in batches; a position of the cursor follows them."""
        records, count = [], 0
        for record, end in lines:
            records.append(record)
            count += len(record)
            if count > BATCH_NUMBERS:
                self._send_batch(position, records, end)
                records, count = [], 0
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
            changes = self._server.apply(self._cursor, self._fetched({**event, **paths}))
        except Refused as error:  # for good; the events after it must not wait
            if not self._is_pruned(event, end):
                self._set_aside(event, error)
        self._advance({**changes, "told": end})

    def _fetched(self, event: dict) -> dict:
        """The event of a model, with a copy of its checkpoint if that is in a store alone.

        Raises OSError as long as the store has it and does not give it, and Refused if it is
        damaged there. An event whose checkpoint is nowhere is unchanged.
        """
        if event["event"] != "model" or not self._models:
            return event
        path, weights = Path(event.get("checkpoint", "")), event.get("weights")
        if path.name in self._cursor["models"] or has_weights(path, weights):
            return event
        try:
            for checkpoint in self._models.all():
                if checkpoint.path.name == path.name and weights in (None, checkpoint.digest):
                    copy = self._models.fetch_weights(checkpoint)
                    return {**event, "checkpoint": str(copy.path)}
        except ValueError as error:
            raise Refused(brief(error)) from error
        return event

    def _is_pruned(self, event: dict, end: int) -> bool:
        """Whether an event is about a model that goes later: it may be gone before it was sent."""
        if event["event"] not in ("model", "register"):
            return False
        name = Path(event.get("checkpoint", "")).name
        later = (line for line, _ in read_lines(self._dir / journal.EVENTS, end))
        prunes = (each for each in later if each["event"] == "prune")
        return any(Path(each.get("checkpoint", "")).name == name for each in prunes)

    def _set_aside(self, event: dict, error: Refused) -> None:
        names = (event[fact] for fact in NAMING if event.get(fact))
        about = {"step": event.get("step"), "time": event["time"], "value": event.get("value")}
        self._server.refusals.add(event["event"], str(next(names, "")), error, **about)

    def _advance(self, changes: dict[str, object]) -> None:
        """Change the cursor, in memory and on disk."""
        self._cursor = {**self._cursor, **changes}
        self._cursors["servers"][self._key] = self._cursor
        write_json(self._path, self._cursors)
