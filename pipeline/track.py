"""The record of a run: one line on the console, the same in metrics.jsonl, the same in MLflow.

    workers -> record (a dictionary with kind and step) -> Recorder in the driver
        -> console   -> metrics.jsonl (on disk before anything else)   -> Mirror (a thread) ->
        MLflow

The driver is the only writer, so workers that are restarted cannot write twice. The mirror reads
the file from where the server last gave an answer and tries again until it does, so a server that
is slow or down never holds up a training step and loses nothing.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import requests
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)
# what it has to say of its tables is not about the run
logging.getLogger("mlflow").setLevel(logging.ERROR)

Record = Mapping[str, str | int | float]

RECORDS = "metrics.jsonl"
CURSOR = "mlflow.json"
TOKEN_TAG = "run_token"
PARENT_TAG = "mlflow.parentRunId"
# one call may carry 1,000 metrics and 100 parameters (MLflow's REST API, log-batch)
MAX_METRICS, MAX_PARAMS = 1000, 100
# seconds between two looks at the file, and the longest pause between two tries
PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
# seconds that the end of a run waits for a server that does not answer
PATIENCE_S = 20.0


def tracking_uri(runs_dir: Path) -> str:
    """The server of MLFLOW_TRACKING_URI, or the SQLite file in the folder of the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_dir}/mlflow.db"


def page_command(runs_dir: Path) -> str:
    """The command that opens the MLflow page of the runs."""
    return f"mlflow ui --backend-store-uri {tracking_uri(runs_dir)}"


def read_records(path: Path, start: int = 0) -> Iterator[tuple[dict, int]]:
    """Complete records from byte `start` of a file on, each with the byte after it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield json.loads(line), start


class Recorder:
    """Writes the records of one run; opened again in the folder of a run, it continues it."""

    def __init__(
        self,
        run_dir: Path,
        *,
        name: str,
        experiment: str,
        settings: Mapping[str, object],
        parent: Path | None = None,
    ) -> None:
        """Continue or begin the record in `run_dir`; nested in the run recorded in `parent`."""
        self._path = run_dir / RECORDS
        self._last: dict[str, int] = {}
        end = 0
        for record, end in read_records(self._path):  # noqa: B007
            self._last[record["kind"]] = record["step"]
        self._file = self._path.open("ab")
        self._file.truncate(end)  # a line that a killed driver left half-written
        self._mirror = Mirror(
            run_dir, name=name, experiment=experiment, settings=settings, parent=parent
        )

    def add(self, record: Record) -> bool:
        """Keep a record; False if its step was recorded before a restart."""
        if record["step"] <= self._last.get(record["kind"], -1):
            return False
        self._last[record["kind"]] = record["step"]
        self._file.write(json.dumps({**record, "time": time.time()}).encode() + b"\n")
        self._file.flush()
        return True

    def finish(
        self,
        status: str,
        artifacts: Mapping[Path, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End the record as FINISHED, FAILED or KILLED, with files for folders in MLflow."""
        self._file.close()
        self._mirror.finish(status, artifacts or {}, tags or {})


class Mirror:
    """Sends the records of a folder to MLflow, each once and in order, from a thread."""

    def __init__(
        self,
        run_dir: Path,
        *,
        name: str,
        experiment: str,
        settings: Mapping[str, object],
        parent: Path | None = None,
    ) -> None:
        """Start to send; the run is found again by a token that lies in the folder."""
        self._dir, self._name, self._experiment = run_dir, name, experiment
        self._settings, self._parent = settings, parent
        self._runs_dir = (parent or run_dir).parent
        self._uri = tracking_uri(self._runs_dir)
        self._cursor_path = run_dir / CURSOR
        if not self._cursor_path.exists():
            self._keep({"token": uuid.uuid4().hex, "run_id": None, "sent": 0})
        self._cursor = json.loads(self._cursor_path.read_text())
        self._open = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def finish(self, status: str, artifacts: Mapping[Path, str], tags: Mapping[str, str]) -> None:
        """Send what is left, then artifacts, tags and status; not for longer than a while."""
        self._closing.set()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive() or not self._cursor["run_id"]:
            log.warning(
                "MLflow at %s does not answer; the record is in %s and is sent when the run is "
                "started again",
                self._uri,
                self._dir / RECORDS,
            )
            return
        client = MlflowClient(self._uri)
        for path, folder in artifacts.items():
            client.log_artifact(self._cursor["run_id"], str(path), folder)
        for tag, value in tags.items():
            client.set_tag(self._cursor["run_id"], tag, value)
        client.set_terminated(self._cursor["run_id"], status)

    def _work(self) -> None:
        pause = PAUSE_S
        while True:
            closing = self._closing.is_set()
            try:
                client = MlflowClient(self._uri)
                if not self._open:
                    self._begin(client)
                while self._send(client):
                    pass
                pause = PAUSE_S
                if closing:
                    return
            except (MlflowException, requests.RequestException, OSError) as error:
                pause = min(2 * pause, MAX_PAUSE_S)
                log.warning("MLflow at %s: %s; trying again in %.0f s", self._uri, error, pause)
            if self._closing.wait(pause):
                time.sleep(PAUSE_S)

    def _begin(self, client: MlflowClient) -> None:
        """Find the run of the token, or create it with its parameters; say that it runs."""
        if not self._cursor["run_id"]:
            number = self._experiment_id(client)
            token = self._cursor["token"]
            tags = {TOKEN_TAG: token, **self._nesting()}
            found = client.search_runs([number], f"tags.{TOKEN_TAG} = '{token}'")
            run = (found or [None])[0] or client.create_run(number, tags=tags, run_name=self._name)
            params = [Param(name, str(value)) for name, value in self._settings.items()]
            for first in range(0, len(params), MAX_PARAMS):
                client.log_batch(run.info.run_id, params=params[first : first + MAX_PARAMS])
            self._keep({**self._cursor, "run_id": run.info.run_id})
        client.update_run(self._cursor["run_id"], status="RUNNING")
        self._open = True

    def _nesting(self) -> dict[str, str]:
        """The tag that nests the run; an OSError as long as MLflow does not know the parent."""
        if not self._parent:
            return {}
        path = self._parent / CURSOR
        parent_id = json.loads(path.read_text())["run_id"]
        if not parent_id:
            raise OSError(f"the parent run of {path} is not at the server yet")
        return {PARENT_TAG: parent_id}

    def _experiment_id(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment:
            return experiment.experiment_id
        embedded = "MLFLOW_TRACKING_URI" not in os.environ
        folder = (self._runs_dir / "mlartifacts").as_uri() if embedded else None
        return client.create_experiment(self._experiment, artifact_location=folder)

    def _send(self, client: MlflowClient) -> bool:
        """Send a batch of the records after the cursor, and move it; False if there were none."""
        metrics, sent = [], self._cursor["sent"]
        for record, end in read_records(self._dir / RECORDS, sent):
            # sent a second time after a crash, a metric is equal to the last digit and no new point
            metrics += [
                Metric(name, value, int(record["time"] * 1000), record["step"])
                for name, value in record.items()
                if name not in ("kind", "step", "time")
            ]
            sent = end
            if len(metrics) > MAX_METRICS - 100:
                break
        if metrics:
            client.log_batch(self._cursor["run_id"], metrics=metrics)
            self._keep({**self._cursor, "sent": sent})
        return bool(metrics)

    def _keep(self, cursor: dict[str, object]) -> None:
        aside = self._cursor_path.with_suffix(".tmp")
        aside.write_text(json.dumps(cursor))
        aside.rename(self._cursor_path)
        self._cursor = cursor
