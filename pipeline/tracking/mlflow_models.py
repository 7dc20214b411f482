"""The models of a run in MLflow: logged from its checkpoints, registered, and deleted again.

    event "model"     checkpoint -> logged model RUN-step-N      (`pipeline.tracking.mlflow_model`)
    event "register"  logged model -> version of a registered model, perhaps its alias "best"
    event "prune"     the checkpoint is gone -> so are the model and its files, unless registered

Every function can be repeated. The cursor `at` knows the model of a checkpoint by its folder's
name; a model itself has the digest of its checkpoint, because a step may be trained again.
"""

import hashlib
import logging
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import entities
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from pipeline.checkpoint.local import META
from pipeline.tracking.mlflow_model import save_model
from pipeline.tracking.refusals import Refused

log = logging.getLogger(__name__)

MODEL_TAG, DIGEST_TAG, DATA_TAG = "model_id", "checkpoint_digest", "data_digest"
# the registry's alias for the best model; MLflow itself reads `latest` as the newest
BEST = "best"
# characters that the name of a logged model must not have
BAD_CHARACTERS = re.compile(r"[/:.%\"']")


def log_model(client: MlflowClient, at: Mapping, event: Mapping) -> dict[str, object]:
    """Log a checkpoint as a model of the run; returns the cursor's models with it."""
    path = Path(event["checkpoint"])
    if path.name in at["models"]:
        return {}
    model = found_model(client, at, event)
    is_whole = model and str(model.status) == "READY"
    if not is_whole and not is_there(path, event.get("digest")):
        if model:  # the run deleted the checkpoint while it was read
            client.delete_logged_model(model.model_id)
        raise Refused(f"checkpoint {path} no longer exists")
    model = model or client.create_logged_model(
        at["experiment_id"],
        name=name_of(event),
        source_run_id=at["run_id"],
        tags={"checkpoint": str(path), DIGEST_TAG: event.get("digest", "")},
        params={"step": str(event["step"])},
        model_type="ViT",
    )
    if not is_whole:
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


def found_model(client: MlflowClient, at: Mapping, event: Mapping) -> entities.LoggedModel | None:
    """The model of an event, if the server has it."""
    query = f"source_run_id = '{at['run_id']}' AND name = '{name_of(event)}'"
    models = client.search_logged_models([at["experiment_id"]], query)
    digest = event.get("digest", "")
    return next((model for model in models if model.tags.get(DIGEST_TAG, "") == digest), None)


def name_of(event: Mapping) -> str:
    """Name of the model of an event; the events of former versions have none."""
    return BAD_CHARACTERS.sub("-", event.get("name") or Path(event["checkpoint"]).name)


def is_there(checkpoint: Path, digest: str | None) -> bool:
    """Whether the folder has the checkpoint, and not another one of the same step."""
    meta = checkpoint / META
    if not digest or not meta.is_file():
        return checkpoint.is_dir()
    return hashlib.sha256(meta.read_bytes()).hexdigest() == digest


def prune_model(
    client: MlflowClient, tracking_uri: str, at: Mapping, event: Mapping
) -> dict[str, object]:
    """Delete the model of a checkpoint and its files; a registered version keeps its model."""
    name = Path(event["checkpoint"]).name
    if name not in at["models"]:  # it was never sent
        return {}
    number = at["models"][name]
    left = {"models": {key: value for key, value in at["models"].items() if key != name}}
    query = f"run_id = '{at['run_id']}'"
    versions = [v for v in client.search_model_versions(query) if is_of(v, number)]
    if versions:
        log.info("%s stays in MLflow: it is %s", name, registered(versions[0]))
        return left
    try:
        model = client.get_logged_model(number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it is deleted already
            raise
        return left
    # the files first: of a deleted model the server does not say where they are
    get_artifact_repository(model.artifact_location, tracking_uri).delete_artifacts()
    client.delete_logged_model(number)
    return left


def is_of(version: ModelVersion, model_id: str) -> bool:
    """Whether a version is of a logged model: its source is the id, or a folder of that name."""
    return version.tags.get(MODEL_TAG) == model_id or model_id in re.split("[/:]", version.source)


def registered(version: ModelVersion) -> str:
    """A version as people know it."""
    return f"version {version.version} of {version.name}"


def register_model(client: MlflowClient, at: Mapping, event: Mapping) -> None:
    """Register the model as a version, and alias it `best` if it is.

    Versions compare by the same metric on the same data.
    """
    name, metric, digest = event["name"], event["metric"], event.get("digest", "")
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
        tags={metric: str(event["value"]), MODEL_TAG: model.model_id, DATA_TAG: digest},
    )
    best = [v for v in versions if BEST in client.get_model_version(name, v.version).aliases]
    if event["value"] == -math.inf:  # it does not compete, even if there is no other
        return
    if not best:
        client.set_registered_model_alias(name, BEST, version.version)
    elif reason := incomparable(best[0], metric, digest):
        log.warning(
            "%s has %s, and %r is version %s %s: the alias stays; move it on MLflow's page",
            *(registered(version), metric, BEST, best[0].version, reason),
        )
    elif event["value"] > float(best[0].tags[metric]):
        client.set_registered_model_alias(name, BEST, version.version)


def incomparable(best: ModelVersion, metric: str, digest: str) -> str:
    """Why a figure does not compare with that of the best version; "" if it does."""
    if metric not in best.tags:
        found = best.tags.keys() - {MODEL_TAG, DATA_TAG}
        return f"by {', '.join(sorted(found)) or 'nothing'}"
    other = best.tags.get(DATA_TAG, "")
    if other != digest:
        return f"on other images (digest {other[:8] or 'unknown'}, not {digest[:8] or 'unknown'})"
    return ""


def logged_model_id(at: Mapping, event: Mapping) -> str:
    """MLflow's id of the model of an event's checkpoint; Refused if it was not sent."""
    checkpoint = event["checkpoint"]
    if Path(checkpoint).name not in at["models"]:
        raise Refused(f"{checkpoint} is not a model of this run")
    return at["models"][Path(checkpoint).name]
