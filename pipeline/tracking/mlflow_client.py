"""Sends records and events of a run to an MLflow server, or to the embedded file.

    mlflow_sync -> TrackingServer -> an SQLite file, a tracking server, or one behind a token

Every call can be repeated after a failure without duplicating anything. Runs are found by their
token, numbers by step and time, models by their name in the run, and versions by their model.
mlflow itself reads tokens and passwords from the environment; they appear nowhere else.
"""

import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# set before mlflow is imported: a run's URL may hold a password, and mlflow_sync does the retries
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # models come in training
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import requests  # noqa: E402
from mlflow import entities  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.models import Model  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

from pipeline.tracking import journal  # noqa: E402
from pipeline.tracking.mlflow_model import Refused, save_model  # noqa: E402
from support.redact import redact  # noqa: E402

log = logging.getLogger(__name__)
# messages about MLflow's tables do not concern the run
logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)

# temporary failures of a server, after which the call is repeated
FAILURES = (MlflowException, requests.RequestException, OSError)
# error codes with which a server rejects a call for good
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
DATABASE = "mlflow.db"  # the embedded server, in the folder of the runs
TOKEN_TAG, MODEL_TAG, PARENT_TAG = "run_token", "model_id", "mlflow.parentRunId"
# items that one call may carry (MLflow's REST API, log-batch)
CALL_LIMITS = {"metrics": 1000, "params": 100, "tags": 100}
# longest value of a parameter and of a tag, and longest digest of a data set
MAX_PARAM, MAX_TAG, MAX_DIGEST = 6000, 5000, 36
# the registry's alias for the best model; MLflow itself reads `latest` as the newest
BEST = "best"


def external_uri() -> str:
    """The server that MLFLOW_TRACKING_URI names; "" if the variable is empty or unset."""
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def tracking_uri(runs_dir: Path) -> str:
    """The server of MLFLOW_TRACKING_URI, or the SQLite file in the folder of the runs."""
    return external_uri() or f"sqlite:///{runs_dir}/{DATABASE}"


def page_command(runs_dir: Path) -> str:
    """The command that opens the MLflow page of the runs, or the address of the server."""
    uri = redact(tracking_uri(runs_dir))
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


class TrackingServer:
    """One MLflow server, or the embedded SQLite file."""

    def __init__(self, runs_dir: Path) -> None:
        """Use the server of the runs; the embedded file keeps artifacts next to itself."""
        self._runs_dir, self._uri = runs_dir, tracking_uri(runs_dir)
        self.address, self.embedded = redact(self._uri), not external_uri()

    @property
    def _client(self) -> MlflowClient:
        return MlflowClient(self._uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI"))

    def open_run(self, start: Mapping, token: str, parent_id: str | None) -> dict[str, object]:
        """Find the run of the token, or create it; returns its ids, and whether it is new."""
        client, number = self._client, self._experiment_id(start["experiment"])
        runs = client.search_runs([number], f"tags.{TOKEN_TAG} = '{token}'")
        tags = {TOKEN_TAG: token} | ({PARENT_TAG: parent_id} if parent_id else {})
        run = (runs or [None])[0] or client.create_run(
            number, start_time=milliseconds(start), tags=tags, run_name=start["name"]
        )
        params = [Param(k, redact(str(v))[:MAX_PARAM]) for k, v in start["settings"].items()]
        self._log(run.info.run_id, "params", params)
        return {"run_id": run.info.run_id, "experiment_id": number, "new": not runs}

    def _experiment_id(self, name: str) -> str:
        client = self._client
        if experiment := client.get_experiment_by_name(name):
            return experiment.experiment_id
        folder = (self._runs_dir / "mlartifacts").as_uri() if self.embedded else None
        return client.create_experiment(name, artifact_location=folder)

    def _log(self, run_id: str, kind: str, items: Sequence[Metric | Param | RunTag]) -> None:
        """Send metrics, params or tags, no more in one call than MLflow takes."""
        size = CALL_LIMITS[kind]
        for first in range(0, len(items), size):
            self._client.log_batch(run_id, **{kind: items[first : first + size]})

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
        metrics = metrics if sure else self._missing(run_id, metrics)
        for first in range(0, len(metrics), CALL_LIMITS["metrics"]):
            self._log_metrics(run_id, metrics[first : first + CALL_LIMITS["metrics"]])

    def _log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Send points in one call; those that are refused are left out, with a warning."""
        try:
            self._client.log_batch(run_id, metrics)
        except MlflowException as error:
            # a deleted run refuses everything, until it is restored
            if error.error_code not in REFUSALS or self._is_deleted(run_id):
                raise
            if len(metrics) == 1:
                log.warning("MLflow does not take %s: %s", metrics[0], redact(str(error)))
                return
            half = len(metrics) // 2
            self._log_metrics(run_id, metrics[:half])
            self._log_metrics(run_id, metrics[half:])

    def _is_deleted(self, run_id: str) -> bool:
        return self._client.get_run(run_id).info.lifecycle_stage == "deleted"

    def knows(self, run_id: str) -> bool:
        """Whether the server has a run of this id."""
        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def points(self, run_id: str, name: str) -> set[tuple[int, int]]:
        """Step and time in ms of the points of a metric that the server has."""
        history = self._client.get_metric_history(run_id, name)
        return {(point.step, point.timestamp) for point in history}

    def _missing(self, run_id: str, metrics: Sequence[Metric]) -> list[Metric]:
        """The points that the server does not have."""
        stored = {name: self.points(run_id, name) for name in {m.key for m in metrics}}
        return [m for m in metrics if (m.step, m.timestamp) not in stored[m.key]]

    def apply(self, at: Mapping, event: Mapping) -> dict[str, object]:
        """Send an event; returns the changes of the cursor. Refused if it is rejected for good.

        start: name, experiment, settings, number; tags: tags; dataset: name, digest, source,
        context, samples; artifact: path, folder; model: checkpoint, step; evaluation: checkpoint,
        step, metrics, dataset, digest; register: checkpoint, name, metric, value; status: status.
        """
        try:
            return getattr(self, f"_{event['event']}")(at, event) or {}
        except MlflowException as error:
            if error.error_code in REFUSALS:
                raise Refused(redact(str(error))) from error
            raise

    def _start(self, at: Mapping, event: Mapping) -> None:
        self._client.update_run(at["run_id"], status="RUNNING")
        self._client.set_tag(at["run_id"], "starts", event["number"])

    def _status(self, at: Mapping, event: Mapping) -> None:
        self._client.set_terminated(at["run_id"], event["status"], milliseconds(event))

    def _tags(self, at: Mapping, event: Mapping) -> None:
        tags = [RunTag(k, redact(str(v))[:MAX_TAG]) for k, v in event["tags"].items()]
        self._log(at["run_id"], "tags", tags)

    def _dataset(self, at: Mapping, event: Mapping) -> None:
        data = entities.Dataset(
            name=event["name"],
            digest=event["digest"][:MAX_DIGEST],
            source_type="shards",
            source=json.dumps({"uri": event["source"]}),
            profile=json.dumps({"samples": event["samples"], "manifest_sha256": event["digest"]}),
        )
        tag = entities.InputTag("mlflow.data.context", event["context"])
        self._client.log_inputs(at["run_id"], [entities.DatasetInput(data, [tag])])

    def _artifact(self, at: Mapping, event: Mapping) -> None:
        path = Path(event["path"])
        if not path.exists():
            raise Refused(f"{path} no longer exists")
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(at["run_id"], str(path), event["folder"] or None)

    def _model(self, at: Mapping, event: Mapping) -> dict[str, object]:
        path, client = Path(event["checkpoint"]), self._client
        if path.name in at["models"]:
            return {}
        query = f"source_run_id = '{at['run_id']}' AND name = '{path.name}'"
        models = client.search_logged_models([at["experiment_id"]], query)
        if not path.is_dir() and not models:
            raise Refused(f"checkpoint {path} no longer exists")
        model = (models or [None])[0] or client.create_logged_model(
            at["experiment_id"],
            name=path.name,
            source_run_id=at["run_id"],
            tags={"checkpoint": str(path)},
            params={"step": str(event["step"])},
            model_type="ViT",
        )
        if str(model.status) != "READY":
            with tempfile.TemporaryDirectory() as folder:
                flavor = Model(run_id=at["run_id"], model_id=model.model_id)
                save_model(path, Path(folder) / "model", flavor)
                client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
            client.finalize_logged_model(model.model_id, "READY")
        outputs = client.get_run(at["run_id"]).outputs.model_outputs
        if model.model_id not in {output.model_id for output in outputs}:
            output = entities.LoggedModelOutput(model.model_id, event["step"])
            client.log_outputs(at["run_id"], [output])
        return {"models": {**at["models"], path.name: model.model_id}}

    def _evaluation(self, at: Mapping, event: Mapping) -> None:
        about = {
            "model_id": logged_model_id(at, event),
            "run_id": at["run_id"],
            "dataset_name": event["dataset"],
            "dataset_digest": event["digest"][:MAX_DIGEST],
        }
        time, step = milliseconds(event), event["step"]
        metrics = [Metric(k, v, time, step, **about) for k, v in event["metrics"].items()]
        self._log(at["run_id"], "metrics", metrics)

    def _register(self, at: Mapping, event: Mapping) -> None:
        """Register the model as a version, and alias it `best` if it is, by the same metric."""
        client, name, metric = self._client, event["name"], event["metric"]
        model = client.get_logged_model(logged_model_id(at, event))
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        # the server's answers do not name the model of a version, so a tag does
        version = next((v for v in versions if v.tags.get(MODEL_TAG) == model.model_id), None)
        version = version or client.create_model_version(
            name,
            model.artifact_location,
            run_id=at["run_id"],
            model_id=model.model_id,
            tags={metric: str(event["value"]), MODEL_TAG: model.model_id},
        )
        best = [v for v in versions if BEST in client.get_model_version(name, v.version).aliases]
        if event["value"] == -math.inf:  # it does not compete, even if there is no other
            return
        if not best or event["value"] > float(best[0].tags.get(metric, "inf")):
            client.set_registered_model_alias(name, BEST, version.version)
        elif metric not in best[0].tags:
            found = ", ".join(sorted(best[0].tags.keys() - {MODEL_TAG})) or "nothing"
            log.warning(
                "version %s of %s has %s, and %r is version %s by %s: the alias stays",
                *(version.version, name, metric, BEST, best[0].version, found),
            )


def logged_model_id(at: Mapping, event: Mapping) -> str:
    """MLflow's id of the model of an event's checkpoint; Refused if it was not sent."""
    checkpoint = event["checkpoint"]
    if Path(checkpoint).name not in at["models"]:
        raise Refused(f"{checkpoint} is not a model of this run")
    return at["models"][Path(checkpoint).name]


def numbers(record: Mapping) -> dict[str, float]:
    """The numbers of a record, which MLflow gets, by name."""
    return {
        name: value
        for name, value in record.items()
        if name not in journal.PLACE and isinstance(value, int | float)
    }


def milliseconds(line: Mapping) -> int:
    """Time of a line of the journal in MLflow's unit."""
    return int(line["time"] * 1000)
