"""Sends records and events of a run to an MLflow server, or to the embedded file.

    Sender -> TrackingServer -> an SQLite file, a tracking server, or one behind a token

Every call can be repeated after a failure without duplicating anything. Runs are found by their
token, numbers by step and time, models by their name in the run, and versions by their model. What
the server refuses for good is set aside: see `pipeline.tracking.refusals`. mlflow itself reads
tokens and passwords from the environment; they appear nowhere else.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

# set before mlflow is imported: a run's URL may hold a password, and mlflow_sync does the retries
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # models come in training
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import requests  # noqa: E402
from mlflow.entities import LifecycleStage, Metric, Param, RunTag, ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

from pipeline.tracking import mlflow_models  # noqa: E402
from pipeline.tracking.journal import numbers  # noqa: E402
from pipeline.tracking.mlflow_address import (  # noqa: E402
    external_uri,
    server_key,
    tracking_uri,
)
from pipeline.tracking.mlflow_data import MAX_DIGEST, dataset_inputs  # noqa: E402
from pipeline.tracking.refusals import Refusals, Refused, RunRefused, brief  # noqa: E402
from support.redact import redact  # noqa: E402

# messages about MLflow's tables do not concern the run
logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)

# failures after which the call is repeated: of a server, of a store, or until somebody acts
FAILURES = (MlflowException, requests.RequestException, OSError, RunRefused)
# errors, not of a library, that an event will cause again: a fact is missing or has another form
FAULTS = (KeyError, ValueError, TypeError, AttributeError, AssertionError)
# error codes with which a server rejects a call for good
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
MISSING = "RESOURCE_DOES_NOT_EXIST"
# the same of a server's answers to files; others may pass, or somebody gives the permission
REFUSED_STATUS = (400, 405, 411, 413, 414, 415, 422, 431, 501)
TOKEN_TAG, PARENT_TAG = "run_token", "mlflow.parentRunId"
# says to pages that ask that this is training, not prompts; that of MLflow 3.17 has a switch
KIND = {"mlflow.experimentKind": "custom_model_development"}
# items that one call may carry (MLflow's REST API, log-batch)
CALL_LIMITS = {"metrics": 1000, "params": 100, "tags": 100}
# longest value of a parameter and of a tag, and longest name of a run in MLflow's tables
MAX_PARAM, MAX_TAG, MAX_NAME = 6000, 5000, 250


class TrackingServer:
    """One MLflow server, or the embedded SQLite file."""

    def __init__(self, runs_dir: Path, run_dir: Path) -> None:
        """Use the server of the runs; the embedded file keeps artifacts next to itself.

        What the server refuses of a run is set aside in the run's folder, `run_dir`.
        """
        self._runs_dir, self._uri = runs_dir, tracking_uri(runs_dir)
        self.address, self.embedded = redact(self._uri), not external_uri()
        self.refusals = Refusals(run_dir, server_key())

    @property
    def _client(self) -> MlflowClient:
        return MlflowClient(self._uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI"))

    def open_run(self, start: Mapping, token: str, parent_id: str | None) -> dict[str, object]:
        """Find the run of the token, or create it; returns its ids, and whether it is new.

        RunRefused if the server does not take it.
        """
        try:
            return self._open_run(start, token, parent_id)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            raise RunRefused(f"it does not open the run: {brief(error)}") from error

    def _open_run(self, start: Mapping, token: str, parent_id: str | None) -> dict[str, object]:
        client, experiment = self._client, start["experiment"]
        number = self._experiment_id(experiment)
        query = f"tags.{TOKEN_TAG} = '{token}'"
        # a deleted one too: it can be restored, and must not be there twice
        runs = client.search_runs([number], query, run_view_type=ViewType.ALL)
        tags = {TOKEN_TAG: token} | ({PARENT_TAG: parent_id} if parent_id else {})
        run = (runs or [None])[0] or client.create_run(
            number,
            start_time=milliseconds(start),
            tags=tags | start.get("origin", {}),
            run_name=start["name"][:MAX_NAME],
        )
        ids = {"run_id": run.info.run_id, "experiment_id": number}
        return {**ids, "experiment": experiment, "new": not runs}

    def _experiment_id(self, name: str) -> str:
        client = self._client
        if experiment := client.get_experiment_by_name(name):
            self._check_experiment(experiment.experiment_id)
            return experiment.experiment_id
        folder = (self._runs_dir / "mlartifacts").as_uri() if self.embedded else None
        return client.create_experiment(name, artifact_location=folder, tags=KIND)

    def _check_experiment(self, number: str) -> None:
        experiment = self._client.get_experiment(number)
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise RunRefused(
                f"the experiment {experiment.name!r} is deleted; restore it (mlflow experiments "
                f"restore --experiment-id {number}), or start the run again with another "
                f"--experiment"
            )

    def is_deleted(self, run_id: str) -> bool:
        """Whether a run is deleted, and so takes nothing; it can be restored."""
        return self._client.get_run(run_id).info.lifecycle_stage == LifecycleStage.DELETED

    def _check_run(self, run_id: str) -> None:
        """RunRefused if the run is deleted; MlflowException if the server does not know it."""
        if self.is_deleted(run_id):
            self._check_experiment(self._client.get_run(run_id).info.experiment_id)
            raise RunRefused(
                f"the run is deleted; restore it on MLflow's page (Runs, State: Deleted) or by "
                f"mlflow runs restore --run-id {run_id}"
            )

    def _is_refused(self, run_id: str, error: MlflowException) -> bool:
        """Whether the server rejects this call for good, and would take others of the run."""
        if error.error_code not in (*REFUSALS, MISSING):
            return False
        self._check_run(run_id)
        return True

    def _log(self, run_id: str, kind: str, items: Sequence[Metric | Param | RunTag]) -> None:
        """Send metrics, params or tags, no more in one call than MLflow takes."""
        size = CALL_LIMITS[kind]
        for first in range(0, len(items), size):
            self._log_part(run_id, kind, items[first : first + size])

    def _log_part(self, run_id: str, kind: str, items: Sequence[Metric | Param | RunTag]) -> None:
        """Send items in one call; those that are refused are found by halves and set aside."""
        try:
            self._client.log_batch(run_id, **{kind: items})
        except MlflowException as error:
            if not self._is_refused(run_id, error):
                raise
            if len(items) == 1:
                return self._set_aside(kind.removesuffix("s"), items[0], error)
            half = len(items) // 2
            self._log_part(run_id, kind, items[:half])
            self._log_part(run_id, kind, items[half:])

    def _set_aside(self, what: str, item: Metric | Param | RunTag, error: MlflowException) -> None:
        facts = {"value": item.value}
        if isinstance(item, Metric):
            facts |= {"step": item.step, "time": item.timestamp / 1000}
        self.refusals.add(what, item.key, error, **facts)

    def send(self, run_id: str, records: Sequence[Mapping], *, sure: bool) -> None:
        """Send records of numbers.

        Unless it is `sure` that the server lacks them, the server's points are fetched first: an
        answer may have been lost, or this process may be new.
        """
        metrics = [
            Metric(name, value, milliseconds(record), record["step"])
            for record in records
            for name, value in numbers(record).items()
        ]
        self._log(run_id, "metrics", metrics if sure else self._missing(run_id, metrics))

    def knows(self, run_id: str) -> bool:
        """Whether the server has a run of this id."""
        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == MISSING:
                return False
            raise
        return True

    def points(self, run_id: str, name: str) -> set[tuple[int, int]]:
        """Step and time in ms of the points of a metric that the server has."""
        history = self._client.get_metric_history(run_id, name)
        return {(point.step, point.timestamp) for point in history}

    def _missing(self, run_id: str, metrics: Sequence[Metric]) -> list[Metric]:
        """The points that the server does not have."""
        names = {metric.key for metric in metrics} - self.refusals.metrics
        stored = {name: self.points(run_id, name) for name in names}
        return [m for m in metrics if (m.step, m.timestamp) not in stored.get(m.key, ())]

    def apply(self, at: Mapping, event: Mapping) -> dict[str, object]:
        """Send an event; returns the changes of the cursor.

        Raises Refused if the server rejects it for good, or if it cannot be understood or made,
        now and later. The events and their facts; those in brackets may be missing:

            start       name, experiment, settings, parent, number, step, origin
            tags        tags
            dataset     name, digest, source, context, samples
            artifact    path, folder, version
            model       checkpoint, step, [name, weights, again]
            evaluation  checkpoint, step, metrics, dataset, digest, [at, again]
            register    checkpoint, step, name, metric, value, digest, [competes, again]
            prune       checkpoint, step, weights, [again]
            status      status, number

        `weights` is the digest of a checkpoint, `digest` that of the images; `at` the time of the
        record with the same numbers; `again` and `version` make an event a new one.
        """
        handler = getattr(self, f"_{event['event']}", None)
        if not handler:
            raise Refused("this version does not know such events; use that which recorded the run")
        try:
            return handler(at, event) or {}
        except MlflowException as error:
            if not self._is_refused(at["run_id"], error):
                raise
            raise Refused(brief(error)) from error
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in REFUSED_STATUS:
                raise
            raise Refused(brief(error)) from error
        except (*FAILURES, Refused):
            raise
        except Exception as error:
            if type(error) in FAULTS:
                raise Refused(f"{type(error).__name__}: {error}") from error
            # the stores of artifacts have libraries, and these have errors of their own
            raise OSError(f"{event['event']}: {type(error).__name__}: {error}") from error

    def _start(self, at: Mapping, event: Mapping) -> None:
        """Settings become parameters, once: MLflow changes none; the recorder tags what differs."""
        run = self._client.get_run(at["run_id"])
        params = [
            Param(name, redact(str(value))[:MAX_PARAM])
            for name, value in event["settings"].items()
            if name not in run.data.params
        ]
        self._log(at["run_id"], "params", params)
        self._client.update_run(at["run_id"], status="RUNNING")
        self._client.set_tag(at["run_id"], "starts", event["number"])

    def _status(self, at: Mapping, event: Mapping) -> None:
        self._client.set_terminated(at["run_id"], event["status"], milliseconds(event))

    def _tags(self, at: Mapping, event: Mapping) -> None:
        tags = [RunTag(k, redact(str(v))[:MAX_TAG]) for k, v in event["tags"].items()]
        self._log(at["run_id"], "tags", tags)

    def _dataset(self, at: Mapping, event: Mapping) -> None:
        self._client.log_inputs(at["run_id"], dataset_inputs(event))

    def _artifact(self, at: Mapping, event: Mapping) -> None:
        path = Path(event["path"])
        if not path.exists():
            raise Refused(f"{path} no longer exists")
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(at["run_id"], str(path), event["folder"] or None)

    def _model(self, at: Mapping, event: Mapping) -> dict[str, object]:
        return mlflow_models.log_model(self._client, at, event)

    def _prune(self, at: Mapping, event: Mapping) -> dict[str, object]:
        return mlflow_models.prune_model(self._client, self._uri, at, event)

    def _register(self, at: Mapping, event: Mapping) -> None:
        mlflow_models.register_model(self._client, at, event)

    def _evaluation(self, at: Mapping, event: Mapping) -> None:
        """Metrics of the run, and of the model of the checkpoint if there is one.

        With the time of a record that has the same numbers, MLflow has one point of the two.
        """
        about = {
            "model_id": at["models"].get(Path(event["checkpoint"]).name),
            "run_id": at["run_id"],
            "dataset_name": event["dataset"],
            "dataset_digest": event["digest"][:MAX_DIGEST],
        }
        time = milliseconds({"time": event.get("at", event["time"])})
        metrics = [Metric(k, v, time, event["step"], **about) for k, v in event["metrics"].items()]
        self._log(at["run_id"], "metrics", metrics)


def milliseconds(line: Mapping) -> int:
    """Time of a line of the journal in MLflow's unit."""
    return int(line["time"] * 1000)
