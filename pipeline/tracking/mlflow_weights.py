"""Weights from MLflow: a registered model, a logged model, or the artifacts of a run.

    models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID/PATH -> a copy in the cache of this machine

Only the file of tensors is read, never a pickle: of a logged model that is the checkpoint that it
carries along with its program.
"""

import functools
import hashlib
import os
import re
import shutil
from pathlib import Path

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # before the import

import mlflow.artifacts
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.tracking.mlflow_client import DATABASE, external_uri, tracking_uri
from support.files import cache_dir, written
from support.redact import redact
from vit.weights import MODEL_FILE

# a version or an alias of a registered model, or the id of a logged one
MODEL = re.compile(r"models:/+(?P<name>[^/@]+)(/(?P<version>\d+)|@(?P<alias>.+))?")
WEIGHTS = "weights"


@functools.cache  # settings and job ask one after the other
def fetched_weights(address: str, runs_dir: Path) -> Path:
    """The folder with the weights at an address of the server of the runs; a file if it names one.

    Raises FileNotFoundError if the server has nothing there, and ValueError if that has no weights.
    """
    server = tracking_uri(runs_dir)
    if not external_uri() and not (runs_dir / DATABASE).is_file():
        raise FileNotFoundError(
            f"{address}: {runs_dir} has no {DATABASE}; give --runs-dir, or set MLFLOW_TRACKING_URI"
        )
    digest = hashlib.sha256(f"{server}\n{address}".encode()).hexdigest()
    target = cache_dir() / WEIGHTS / digest[:32]
    target.parent.mkdir(parents=True, exist_ok=True)
    with written(target) as aside:
        aside.mkdir()
        copy(address, server, aside)
    found = sorted(target.rglob(MODEL_FILE))
    if len(found) == 1:
        return found[0].parent
    files = [path for path in target.rglob("*") if path.is_file()]
    if len(files) == 1 and not found:  # runs:/ID/vit.npz
        return files[0]
    names = ", ".join(str(path.relative_to(target)) for path in (found or files)[:5])
    shutil.rmtree(target)
    raise ValueError(
        f"{address} of {redact(server)} has {len(found) or 'no'} {MODEL_FILE} ({names}); give the "
        f"path of one, such as runs:/ID/checkpoint"
    )


def copy(address: str, server: str, folder: Path) -> None:
    """Copy what is at an address into a folder; FileNotFoundError if the server has nothing."""
    client = MlflowClient(server, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI", server))
    try:
        mlflow.artifacts.download_artifacts(
            artifact_uri=located(client, address), dst_path=str(folder), tracking_uri=server
        )
    except (MlflowException, OSError) as error:
        reason = redact(str(error)).partition("\n")[0]
        raise FileNotFoundError(
            f"{address} cannot be fetched from {redact(server)} ({reason}); give a model that is "
            f"there, or set MLFLOW_TRACKING_URI to its server"
        ) from error


def located(client: MlflowClient, address: str) -> str:
    """Where the files of a model are; MLflow itself would ask the server of its global settings."""
    model = MODEL.fullmatch(address)
    if not model:
        return address
    name, version, alias = model["name"], model["version"], model["alias"]
    if alias:
        version = client.get_model_version_by_alias(name, alias).version
    if not version:
        return client.get_logged_model(name).artifact_location
    return client.get_model_version_download_uri(name, version)
