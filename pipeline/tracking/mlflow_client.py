"""MLflow: what its server is told of a run. Nothing else imports mlflow.

    mlflow_sync -> TrackingServer -> an SQLite file, a tracking server, or one behind a token

Every call may be made again after a failure without doubling anything: a run is found by its token,
a number by its step and time, a model by its name in the run, a version by its model. Tokens and
passwords are read from the environment by mlflow itself and appear nowhere.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# before mlflow is imported: a run's address may hold a password, and waiting is the mirror's affair
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import mlflow.pytorch  # noqa: E402
import numpy as np  # noqa: E402
import requests  # noqa: E402
import torch  # noqa: E402
from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.models import Model, ModelSignature  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402
from mlflow.types import Schema, TensorSpec  # noqa: E402

from pipeline.evaluation.model import EvalModel  # noqa: E402
from support.redact import redact  # noqa: E402

log = logging.getLogger(__name__)
# what it has to say of its tables is not about the run
logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)

# what may go wrong with a server, and is tried again
FAILURES = (MlflowException, requests.RequestException, OSError)
# what a server will never take, however often it is asked
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
TOKEN_TAG, MODEL_TAG, PARENT_TAG = "run_token", "model_id", "mlflow.parentRunId"
# one call may carry 1,000 metrics and 100 parameters (MLflow's REST API, log-batch)
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100
# longest value of a parameter and of a tag, and longest digest of a data set
MAX_PARAM, MAX_TAG, MAX_DIGEST = 6000, 5000, 36
# the registry's alias for the model that is best; MLflow itself reads `latest` as the newest
BEST = "best"


class Refused(Exception):
    """The server will not take this, now or later."""


def tracking_uri(runs_dir: Path) -> str:
    """The server of MLFLOW_TRACKING_URI, or the SQLite file in the folder of the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_dir}/mlflow.db"


def page_command(runs_dir: Path) -> str:
    """The command that opens the MLflow page of the runs, or the address of the server."""
    uri = redact(tracking_uri(runs_dir))
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


class TrackingServer:
    """One MLflow server."""

    def __init__(self, uri: str, runs_dir: Path) -> None:
        """At a URI; artifacts of the embedded SQLite file go to a folder of the runs."""
        self._uri, self._runs_dir = uri, runs_dir
        self.embedded = "MLFLOW_TRACKING_URI" not in os.environ

    @property
    def _client(self) -> MlflowClient:
        return MlflowClient(self._uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI"))

    def open_run(self, start: Mapping, token: str, parent_id: str | None) -> dict[str, object]:
        """Find the run of the token, or create it with parameters; its ids, and if it is new."""
        client, number = self._client, self._experiment_id(start["experiment"])
        found = client.search_runs([number], f"tags.{TOKEN_TAG} = '{token}'")
        tags = {TOKEN_TAG: token} | ({PARENT_TAG: parent_id} if parent_id else {})
        run = (found or [None])[0] or client.create_run(
            number, start_time=milliseconds(start), tags=tags, run_name=start["name"]
        )
        params = [
            Param(name, redact(str(value))[:MAX_PARAM]) for name, value in start["settings"].items()
        ]
        for some in chunks(params, MAX_PARAMS):
            client.log_batch(run.info.run_id, params=some)
        return {"run_id": run.info.run_id, "experiment_id": number, "new": not found}

    def _experiment_id(self, name: str) -> str:
        client = self._client
        experiment = client.get_experiment_by_name(name)
        if experiment:
            return experiment.experiment_id
        folder = (self._runs_dir / "mlartifacts").as_uri() if self.embedded else None
        return client.create_experiment(name, artifact_location=folder)

    def send(self, run_id: str, records: Sequence[Mapping], *, sure: bool) -> None:
        """Send records of numbers.

        If it is not sure that the server has not got them already, because an answer was lost or
        this process is new, it is asked for its points first.
        """
        metrics = [
            Metric(name, value, milliseconds(record), record["step"])
            for record in records
            for name, value in record.items()
            if name not in ("kind", "step", "time") and isinstance(value, int | float)
        ]
        if not sure:
            metrics = self._unknown(run_id, metrics)
        for some in chunks(metrics, MAX_METRICS):
            self._client.log_batch(run_id, metrics=some)

    def _unknown(self, run_id: str, metrics: Sequence[Metric]) -> list[Metric]:
        """The points that the server does not have."""
        known = {
            (name, point.step, point.timestamp)
            for name in {metric.key for metric in metrics}
            for point in self._client.get_metric_history(run_id, name)
        }
        return [m for m in metrics if (m.key, m.step, m.timestamp) not in known]

    def tell(self, at: Mapping, event: Mapping) -> dict[str, object]:
        """Tell the server of an event; what changes of the cursor. Not told for ever is `Refused`.

        start: name, experiment, settings, number; tags: tags; dataset: name, digest, source,
        context, samples; artifact: path, folder; model: checkpoint, step, metrics; evaluation:
        checkpoint, step, metrics, dataset, digest; register: checkpoint, name, metric, value;
        status: status.
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
        for some in chunks(tags, MAX_TAGS):
            self._client.log_batch(at["run_id"], tags=some)

    def _dataset(self, at: Mapping, event: Mapping) -> None:
        data = Dataset(
            name=event["name"],
            digest=event["digest"][:MAX_DIGEST],
            source_type="shards",
            source=json.dumps({"uri": event["source"]}),
            profile=json.dumps({"samples": event["samples"], "manifest_sha256": event["digest"]}),
        )
        tag = InputTag("mlflow.data.context", event["context"])
        self._client.log_inputs(at["run_id"], [DatasetInput(data, [tag])])

    def _artifact(self, at: Mapping, event: Mapping) -> None:
        path = Path(event["path"])
        if not path.exists():
            raise Refused(f"{path} is not there any more")
        if path.is_dir():
            self._client.log_artifacts(at["run_id"], str(path), event["folder"] or None)
        else:
            self._client.log_artifact(at["run_id"], str(path), event["folder"] or None)

    def _model(self, at: Mapping, event: Mapping) -> dict[str, object]:
        path, client = Path(event["checkpoint"]), self._client
        if path.name in at["models"]:
            return {}
        if not path.is_dir():
            raise Refused(f"checkpoint {path} is not there any more")
        query = f"source_run_id = '{at['run_id']}' AND name = '{path.name}'"
        found = client.search_logged_models([at["experiment_id"]], query)
        model = (found or [None])[0] or client.create_logged_model(
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
            client.log_outputs(at["run_id"], [LoggedModelOutput(model.model_id, event["step"])])
        return {"models": {**at["models"], path.name: model.model_id}}

    def _evaluation(self, at: Mapping, event: Mapping) -> None:
        model_id = at["models"].get(Path(event["checkpoint"]).name)
        if not model_id:
            raise Refused(f"{event['checkpoint']} is not a model of this run")
        about = {"dataset_name": event["dataset"], "dataset_digest": event["digest"][:MAX_DIGEST]}
        metrics = [
            Metric(
                *(name, value, milliseconds(event), event["step"]),
                **(about | {"model_id": model_id, "run_id": at["run_id"]}),
            )
            for name, value in event["metrics"].items()
        ]
        for some in chunks(metrics, MAX_METRICS):
            self._client.log_batch(at["run_id"], metrics=some)

    def _register(self, at: Mapping, event: Mapping) -> None:
        """A version of the model in the registry; it becomes `best` if none is better."""
        client, name = self._client, event["name"]
        model_id = at["models"].get(Path(event["checkpoint"]).name)
        if not model_id:
            raise Refused(f"{event['checkpoint']} is not a model of this run")
        model = client.get_logged_model(model_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        metric = event["metric"]
        # the server's answers do not name the model of a version, so a tag does
        version = next((v for v in versions if v.tags.get(MODEL_TAG) == model_id), None)
        version = version or client.create_model_version(
            name,
            model.artifact_location,
            run_id=at["run_id"],
            model_id=model_id,
            tags={metric: str(event["value"]), MODEL_TAG: model_id},
        )
        best = [v for v in versions if BEST in client.get_model_version(name, v.version).aliases]
        if not best or event["value"] > float(best[0].tags.get(metric, "-inf")):
            client.set_registered_model_alias(name, BEST, version.version)


def save_model(checkpoint: Path, folder: Path, flavor: Model) -> None:
    """Write a checkpoint as a folder that `mlflow.pytorch.load_model` opens, or be `Refused`.

    The model is written as the graph that it computes (torch.export, .pt2), for any batch size:
    tensors and JSON. MLflow's other form is a pickle, which is a program that runs when it is
    loaded, and needs this code to be there; MLflow itself refuses to load those by default.
    """
    eval_model = EvalModel.open(checkpoint)
    side, classes = eval_model.model.image_size, eval_model.model.num_classes
    kind = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, 3, side, side), "images")]),
        outputs=Schema([TensorSpec(kind, (-1, classes), "logits")]),
    )
    prepared = {"mean": list(eval_model.images.mean), "std": list(eval_model.images.std)}
    flavor.metadata = {"normalise": prepared, "step": eval_model.step}
    try:
        mlflow.pytorch.save_model(
            eval_model.load(eval_model.model),
            str(folder),
            mlflow_model=flavor,
            signature=signature,
            # two images: a batch of one would be fixed at one
            input_example=torch.zeros(2, 3, side, side),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise Refused(f"{checkpoint} cannot be written as a graph: {error}") from error


def milliseconds(line: Mapping) -> int:
    """Time of a line of the record, as MLflow counts it."""
    return int(line["time"] * 1000)


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """The items, at most `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
