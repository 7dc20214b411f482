"""Weights from MLflow: a registered model, a logged model, or the artifacts of a run.

    models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID/PATH -> a copy in the cache of this machine

Only the file of tensors is read, never a pickle: of a logged model that is the checkpoint that it
carries along with its program.
"""

import atexit
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # before the import

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.checkpoint.published import WEIGHTS
from pipeline.tracking.mlflow_address import DATABASE, external_uri, tracking_uri
from support.files import cache_dir, cached_folder
from support.redact import redact
from vit.weights import MODEL_FILE

# a version or an alias of a registered model, or the id of a logged one
MODEL = re.compile(r"models:/+(?P<name>[^/@]+)(/(?P<version>\d+)|@(?P<alias>.+))?")


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
    try:
        client = MlflowClient(server, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI", server))
        source, facts = located(client, address)

        def fill(aside: Path) -> None:
            folder = str(aside)
            download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=server)
            check(aside, address, server)

        key = "\n".join([server, source, *facts])
        return weights_in(cached_folder(WEIGHTS, key, fill) if facts else own_folder(fill))
    except (MlflowException, OSError) as error:
        reason = redact(str(error)).partition("\n")[0]
        raise FileNotFoundError(
            f"{address} cannot be fetched from {redact(server)} ({reason}); give a model that is "
            f"there, or set MLFLOW_TRACKING_URI to its server"
        ) from error


def weights_in(folder: Path) -> Path | None:
    """The weights in the copy of an artifact: the one folder with MODEL_FILE, or the one file."""
    found = sorted(folder.rglob(MODEL_FILE))
    if len(found) == 1:
        return found[0].parent
    files = [path for path in folder.rglob("*") if path.is_file()]
    return files[0] if len(files) == 1 and not found else None  # runs:/ID/vit.npz


def check(folder: Path, address: str, server: str) -> None:
    """Raise ValueError if what was fetched from an address has no weights, or several."""
    if weights_in(folder):
        return
    found = sorted(folder.rglob(MODEL_FILE))
    files = found or [path for path in folder.rglob("*") if path.is_file()]
    names = ", ".join(str(path.relative_to(folder)) for path in files[:5])
    raise ValueError(
        f"{address} of {redact(server)} has {len(found) or 'no'} {MODEL_FILE} ({names}); give "
        f"what has one, such as models:/NAME/VERSION"
    )


def located(client: MlflowClient, address: str) -> tuple[str, list[str]]:
    """Where the files of a model are, and the facts that tell them from any others.

    MLflow itself would ask the server of its global settings. An alias names a version. Versions
    and logged models never change; the time of its making tells one from a deleted one of the same
    name. Artifacts of a run may be replaced by others: they have no facts.
    """
    model = MODEL.fullmatch(address)
    if not model:
        return address, []
    name, version, alias = model["name"], model["version"], model["alias"]
    if alias:
        version = client.get_model_version_by_alias(name, alias).version
    if not version:
        logged = client.get_logged_model(name)
        return logged.artifact_location, [str(logged.creation_timestamp)]
    created = client.get_model_version(name, version).creation_timestamp
    return client.get_model_version_download_uri(name, version), [name, str(version), str(created)]


def own_folder(fill: Callable[[Path], None]) -> Path:
    """A filled folder in the cache that is removed when this process ends."""
    place = cache_dir() / WEIGHTS
    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=place))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fill(folder)
    return folder
