"""Where MLflow is: the server of MLFLOW_TRACKING_URI, or an SQLite file beside the runs.

The cursor, mlflow.json in the folder of a run, knows the run by its ids at each server.
"""

import json
import os
from pathlib import Path

from support.redact import redact

CURSOR = "mlflow.json"
DATABASE = "mlflow.db"  # the embedded server, in the folder of the runs
# MLflow's page shows agents and prompts unless its switch, or the address, says otherwise
TRAINING = "workflowType=machine_learning"


def external_uri() -> str:
    """The server that MLFLOW_TRACKING_URI names; "" if the variable is empty or unset."""
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def tracking_uri(runs_dir: Path) -> str:
    """The server of MLFLOW_TRACKING_URI, or the SQLite file in the folder of the runs."""
    return external_uri() or f"sqlite:///{runs_dir}/{DATABASE}"


def server_key() -> str:
    """The server's name in cursors; the embedded file has none: it moves with its folder."""
    return redact(external_uri()) or "embedded"


def page_of(run_dir: Path) -> str:
    """The address of a run's page at the server, or the command that opens the embedded file."""
    uri = redact(tracking_uri(run_dir.parent))
    if not uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {uri}"
    cursor = run_dir / CURSOR
    servers = json.loads(cursor.read_text())["servers"] if cursor.exists() else {}
    at = servers.get(server_key(), {})
    if not at.get("run_id"):
        return uri
    place = f"experiments/{at['experiment_id']}/runs/{at['run_id']}"
    return f"{uri.rstrip('/')}/#/{place}?{TRAINING}"
