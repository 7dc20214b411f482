"""The MLflow server of a cluster, as a job on its head: found, or started."""

import logging
import shlex
import time
from pathlib import Path

from pipeline.launch.head import MLFLOW
from pipeline.launch.jobs import Jobs
from pipeline.launch.mlflow_server import READY
from shards.dataset import store
from support.code import copied
from support.redact import redact

log = logging.getLogger(__name__)

# what the job is known by, and the address at which jobs of the head find the server
COMMAND, ADDRESS = "mlflow server", f"http://127.0.0.1:{MLFLOW}"
FOLDER = "mlflow"
# seconds in which the server must be ready: its predecessor's lease may have to expire first
START_S, POLL_S = 300.0, 1.0


def running(jobs: Jobs) -> str | None:
    """Id of the job that is the cluster's MLflow server; None if there is none."""
    for job in jobs.listed():
        if job.metadata.get("command") == COMMAND and not job.status.is_terminal():
            return job.submission_id
    return None


def data_folder(runs_dir: str) -> str:
    """Where the server's data is: beside the runs."""
    return store.join(runs_dir, FOLDER)


def ensure(jobs: Jobs, runs_dir: str | None) -> bool:
    """See to it that the cluster has a server, with its data beside the runs; whether it has one.

    None is started without a `runs_dir`. Raises RuntimeError with the last line of its output if it
    does not become ready.
    """
    name = running(jobs)
    if not name and not runs_dir:
        return False
    name = name or start(jobs, runs_dir)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        output, details = jobs.logs(name), jobs.details(name)
        if not details.status.is_terminal():
            if READY in output:
                return True
            time.sleep(POLL_S)
        elif (other := running(jobs)) and other != name:  # somebody else's launch was faster
            name = other
        else:
            break
    last = (output.strip().splitlines() or [details.message or "no output"])[-1]
    raise RuntimeError(
        f"the MLflow server of the cluster does not start: {redact(last)}; see its output with "
        f"python -m pipeline job logs ... {name}"
    )


def start(jobs: Jobs, runs_dir: str) -> str:
    """Start a server; returns the id of its job."""
    name = f"mlflow-{time.strftime('%m%d-%H%M%S')}"
    place = shlex.quote(data_folder(runs_dir))
    entrypoint = f"exec python -m pipeline track serve {place} --port {MLFLOW}"
    with copied() as folder:
        jobs.submit(entrypoint, name, code=Path(folder), env={}, command=COMMAND)
    return name
