"""From a cluster file and a command to a job that is followed to its end.

    up -> tunnel to the head -> MLflow server -> job -> its output, until it ends -> down

Everything can be done again: a cluster that is up is only updated, an MLflow server that runs is
used, and the job of a command that runs already is followed.
"""

import logging
import os
import subprocess
import sys
import time

from ray.job_submission import JobDetails, JobStatus

from pipeline.launch import mlflow_job, own_machines, ray_cli
from pipeline.launch.cluster_file import LOCAL, ClusterFile
from pipeline.launch.head import DASHBOARD, MLFLOW, Head
from pipeline.launch.jobs import Jobs
from pipeline.launch.submission import TRACKING, Submission
from support.console import duration
from support.redact import redact

log = logging.getLogger(__name__)

# seconds for which a broken connection is tried again, and the longest pause between attempts
LOST_S, MAX_PAUSE_S = 900.0, 30.0
# what the head answers if Ray does not run there
NO_RAY = "no-ray-here"
# variables in which Ray looks for a token before it looks at the file
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# characters of earlier output that a job which is followed again shows
EARLIER = 4000


def bring_up(cluster: ClusterFile) -> None:
    """Start a cluster; one that runs is brought up to date with its file, and its jobs go on.

    Nodes of a type whose `node_config` has changed are replaced by the autoscaler.
    """
    ensure_token()
    cluster.check_mounts()
    up = ("up", str(cluster.path), "--yes", "--no-config-cache")
    # without this, Ray would restart a head that runs, and end its jobs
    ray_cli.run(*up, "--no-restart")
    if is_up(cluster):
        return
    if runs_ray(cluster):
        raise ConnectionError(
            f"the head of {cluster.name} runs Ray, but its dashboard does not answer: try again, "
            f"or look at it with ray attach {cluster.path}"
        )
    ray_cli.run(*up)  # a head that was there already, without Ray


def is_up(cluster: ClusterFile) -> bool:
    """Whether the head of a cluster answers."""
    with Head.through_ssh(cluster) as head:
        try:
            Jobs.connect(head.address(DASHBOARD))
        except ConnectionError:
            return False
        return True


def runs_ray(cluster: ClusterFile) -> bool:
    """Whether Ray runs on the head; RuntimeError if ssh fails."""
    lines = ray_cli.run("exec", str(cluster.path), f"pgrep -x gcs_server || echo {NO_RAY}")
    return not any(line.strip() == NO_RAY for line in lines)


def take_down(cluster: ClusterFile, head: Head) -> None:
    """End a cluster with all its machines; on machines of one's own, end Ray.

    Raises RuntimeError if jobs still run there. MLflow's server ends first, with its last copy.
    """
    try:
        jobs = Jobs.connect(head.address(DASHBOARD))
        server = mlflow_job.running(jobs)
        running = [job.submission_id for job in jobs.listed() if not job.status.is_terminal()]
    except (OSError, ValueError) as error:
        log.warning("%s; the machines are taken down all the same", error)
        server, running = None, []
    if others := [name for name in running if name != server]:
        raise RuntimeError(
            f"jobs run on {cluster.name}, which stays up: {', '.join(others)}; stop them with "
            f"python -m pipeline job stop {cluster.path} ID, or wait for them"
        )
    if server:
        jobs.stop(server)
        wait_until_ended(jobs, server)
    log.info("down        the cluster %s", cluster.name)
    if cluster.provider == LOCAL:
        own_machines.stop_ray(cluster)
    ray_cli.run("down", str(cluster.path), "--yes")


def ensure_token() -> None:
    """Make the token that all machines of a cluster share, unless this machine has one.

    Raises ValueError if the environment has another one than the file, which goes to the machines.
    """
    if given := [name for name in TOKENS if os.environ.get(name)]:
        raise ValueError(
            f"{' and '.join(given)} would give this machine another token than its cluster, which "
            f"gets the file ~/.ray/auth_token: unset it"
        )
    command = [*ray_cli.COMMAND, "get-auth-token", "--generate"]
    made = subprocess.run(
        command, capture_output=True, text=True, env=ray_cli.environment(), check=False
    )  # its output is the token
    if made.returncode:
        raise RuntimeError(
            f"no token for the cluster: {ray_cli.explained(made.stderr.splitlines())}"
        )


def submit(head: Head, submission: Submission, runs_dir: str | None) -> str:
    """Submit a job with an MLflow server at hand; returns its id, or that of the same, running one.

    Args:
        head: The cluster.
        submission: The job.
        runs_dir: Where the runs are and MLflow's data will be; None starts no server.
    """
    jobs = Jobs.connect(head.address(DASHBOARD))
    for job in jobs.listed():
        if job.metadata.get("command") == submission.text and not job.status.is_terminal():
            log.info("job         the same command runs already; following it")
            return job.submission_id
    env = dict(submission.env)
    if TRACKING not in env:
        if mlflow_job.ensure(jobs, runs_dir):
            env[TRACKING] = mlflow_job.ADDRESS
            if head.has_tunnels:
                log.info("MLflow      %s", head.address(MLFLOW))
    with submission.code() as folder:
        jobs.submit(
            submission.entrypoint, submission.name, code=folder, env=env, command=submission.text
        )
    return submission.name


def follow(head: Head, name: str, *, earlier: int | None = None) -> int:
    """Show the output of a job until it ends; returns its exit status.

    A connection that breaks is opened again. Raises ConnectionError if that fails for LOST_S; the
    job is not concerned.

    Args:
        head: The cluster.
        name: Id of the job.
        earlier: Characters of the output so far that are shown; None shows all.
    """
    jobs = Jobs.connect(head.address(DASHBOARD))
    shown = Shown(0 if earlier is None else max(0, len(jobs.logs(name)) - earlier))
    lost_since, pause = None, 1.0
    while True:
        try:
            jobs = jobs or Jobs.connect(head.address(DASHBOARD))
            before = shown.count
            jobs.follow(name, shown.count, shown)
            details = jobs.details(name)
            if details.status.is_terminal():
                return ended(details, shown.count)
            lost_since, pause = (None, 1.0) if shown.count > before else (lost_since, pause)
        except ConnectionError as error:
            now = time.monotonic()
            if lost_since is None or shown.count > before:
                lost_since, pause = now, 1.0
                log.warning("connection  lost: %s; trying again", error)
            if now - lost_since > LOST_S:
                raise ConnectionError(
                    f"no connection to the cluster for {duration(LOST_S)} ({error}). The job may "
                    f"still run; if the head is gone, the same command starts another one, and "
                    f"the run goes on"
                ) from error
            jobs = None
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_S)


class Shown:
    """Writes the output of a job and counts its characters."""

    def __init__(self, count: int) -> None:
        """Start after so many characters."""
        self.count = count

    def __call__(self, text: str) -> None:
        """Write a piece of the output, without secrets."""
        self.count += len(text)
        sys.stdout.write(redact(text))
        sys.stdout.flush()


def ended(details: JobDetails, num_shown: int) -> int:
    """Say how a job has ended; returns the exit status of its command."""
    name = details.submission_id
    if details.status == JobStatus.SUCCEEDED:
        log.info("job         %s has succeeded", name)
        return 0
    if details.status == JobStatus.STOPPED:
        log.info("job         %s was stopped; the same command goes on with the run", name)
        return 130
    # a job that has not even started says why in its message alone
    reason = "its output says why" if num_shown else redact(details.message or "no reason given")
    log.error("error: job %s has failed: %s", name, reason)
    return details.driver_exit_code if details.driver_exit_code in (1, 2, 130) else 1


def wait_until_ended(jobs: Jobs, name: str) -> JobStatus:
    """Wait until a job has ended; returns how."""
    while not (status := jobs.details(name).status).is_terminal():
        time.sleep(1.0)
    return status
