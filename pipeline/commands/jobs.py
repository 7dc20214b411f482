"""The commands for jobs on a cluster: `python -m pipeline job status|logs|stop CLUSTER [ID]`."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from support.console import duration, open_console, table
from support.redact import redact

if TYPE_CHECKING:
    from pipeline.launch.cluster_file import ClusterFile
    from pipeline.launch.head import Head
    from pipeline.launch.jobs import Jobs

log = logging.getLogger(__name__)

# jobs that a table shows
MAX_JOBS = 20


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """Show the nodes of a cluster, what the autoscaler does, and the jobs."""

    cluster: tyro.conf.Positional[str | None] = None
    """Cluster file, such as cluster.yaml; it must be omitted with --address."""
    address: str | None = None
    """Dashboard of the cluster, such as http://10.0.0.1:8265, in place of its file."""

    def __call__(self) -> int:
        """Show them."""
        with connected(self.cluster, self.address) as jobs:
            text, found = jobs.autoscaler(), jobs.listed()
        rows = [["job", "status", "started", "took", "command"]]
        for job in found[:MAX_JOBS]:
            started = (job.start_time or 0) / 1000
            took = (job.end_time / 1000 if job.end_time else time.time()) - started
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(started))
            words = job.metadata.get("command", job.entrypoint)
            rows.append([job.submission_id, job.status.value, when, duration(took), redact(words)])
        sys.stdout.write(f"{redact(text).strip()}\n\n{table(rows)}\n")
        return 0


@dataclass(frozen=True, kw_only=True)
class _OnJob:
    """A command about a job of a cluster."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Cluster file and id of the job; with --address the id alone."""
    address: str | None = None
    """Dashboard of the cluster, such as http://10.0.0.1:8265, in place of its file."""

    @property
    def job(self) -> str:
        """Id of the job."""
        return self.names[-1]

    @contextlib.contextmanager
    def jobs(self) -> Iterator["Jobs"]:
        """The jobs of the cluster, for the block; ValueError if the names are not those needed."""
        if len(self.names) != (1 if self.address else 2):
            raise ValueError("give the CLUSTER file and the id of the JOB, or --address and the id")
        with connected(None if self.address else self.names[0], self.address) as jobs:
            yield jobs


@dataclass(frozen=True, kw_only=True)
class JobLogs(_OnJob):
    """Write the output of a job so far; `launch --attach ID` follows it."""

    def __call__(self) -> int:
        """Write it."""
        with self.jobs() as jobs:
            jobs.details(self.job)
            sys.stdout.write(redact(jobs.logs(self.job)))
        return 0


@dataclass(frozen=True, kw_only=True)
class JobStop(_OnJob):
    """Stop a job; training writes a checkpoint first, and the same command goes on from it."""

    def __call__(self) -> int:
        """Ask it to stop, and wait until it has."""
        with self.jobs() as jobs:
            from pipeline.launch.launch import wait_until_ended

            jobs.details(self.job)
            if jobs.stop(self.job):
                log.info("the job writes its last checkpoint; Ctrl-C here does not disturb it")
            log.info("job         %s: %s", self.job, wait_until_ended(jobs, self.job).value)
        return 0


@contextlib.contextmanager
def connected(cluster: str | None, address: str | None) -> Iterator["Jobs"]:
    """The jobs of a cluster, for the block: that of a file, or at an address."""
    open_console(verbose=False)
    if bool(cluster) == bool(address):
        raise ValueError("give either the CLUSTER file or --address http://HOST:8265")
    with reached(opened(cluster, address), address) as head:
        from pipeline.launch.head import DASHBOARD
        from pipeline.launch.jobs import Jobs

        yield Jobs.connect(head.address(DASHBOARD))


def place(cluster: str | None, address: str | None) -> str:
    """How a command line names a cluster."""
    return f"--address {redact(address)}" if address else str(cluster)


def opened(location: str | None, address: str | None) -> "ClusterFile | None":
    """The cluster file at a path, checked; None if there is an address in its place."""
    has_token = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not address or has_token or Path("~/.ray/auth_token").expanduser().exists():
        # before Ray is imported: clusters that this machine starts have its token
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address:
        return None
    from pipeline.launch.cluster_file import ClusterFile

    return ClusterFile.open(location)


@contextlib.contextmanager
def reached(cluster: "ClusterFile | None", address: str | None) -> Iterator["Head"]:
    """The head of a cluster for the block, through ssh or at the address of its dashboard."""
    from pipeline.launch.head import Head

    with Head.through_ssh(cluster) if cluster else Head.at(address) as head:
        yield head
