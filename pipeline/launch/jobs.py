"""Jobs of a cluster, through the job API of its dashboard (`ray job ...`).

    jobs = Jobs.connect("http://127.0.0.1:8265")
    jobs.submit(...)   jobs.follow(id, write)   jobs.stop(id)

Every failure becomes an error that says in a sentence what is wrong and what to do.
"""

import asyncio
import contextlib
import functools
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import metadata
from pathlib import Path

import aiohttp
import ray
import requests
from packaging.specifiers import SpecifierSet
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from support.command import DISTRIBUTION
from support.redact import redact

log = logging.getLogger(__name__)
# its messages about uploads and connections do not concern the job
logging.getLogger("ray.dashboard").setLevel(logging.WARNING)

# what a connection that breaks raises
LOST = (ConnectionError, requests.RequestException, aiohttp.ClientError)
# how Ray says that the server failed, which is as temporary
SERVER_FAILED = "status code 5"
# seconds between two questions whether the dashboard answers, and those that it may take
PROBE_S, TIMEOUT_S = 60.0, 30.0
# what a head answers while it starts, and the seconds for which it is asked again
YOUNG, YOUNG_S = "No available agent", 120.0
# seconds that a job may take to write its last checkpoint after it was asked to stop
STOP_S = 330


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, client: JobSubmissionClient, address: str) -> None:
        """Use a client that is connected to an address; see `connect`."""
        self._client, self._address = client, address

    @classmethod
    def connect(cls, address: str) -> "Jobs":
        """Connect to a dashboard, and check that this machine and the cluster fit.

        Raises ConnectionError if nothing answers, PermissionError if the token is not accepted, and
        ValueError if the cluster has another version of Ray than this machine.
        """
        with explained(address):
            client = JobSubmissionClient(address)
            # there is no public call for this
            answer = client._do_request("GET", "/api/v0/cluster_metadata", timeout=TIMEOUT_S)
            answer.raise_for_status()
            check_versions(answer.json()["data"], address)
        return cls(client, address)

    def submit(
        self, entrypoint: str, name: str, *, code: Path, env: Mapping[str, str], command: str
    ) -> None:
        """Submit a shell command as a job; the folder `code` becomes its working directory."""
        submit = functools.partial(
            self._client.submit_job,
            entrypoint=entrypoint,
            submission_id=name,
            runtime_env={
                "working_dir": str(code),
                "env_vars": {**env, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
            },
            metadata={"command": command},
        )
        deadline = time.monotonic() + YOUNG_S
        with explained(self._address):
            while True:
                try:
                    submit()
                    return
                except RuntimeError as error:
                    if YOUNG not in str(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(1.0)

    def listed(self) -> list[JobDetails]:
        """The jobs that were submitted, the newest first."""
        with explained(self._address):
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: -(job.start_time or 0))

    def details(self, name: str) -> JobDetails:
        """What the cluster knows of a job; ValueError if it has none of that id."""
        try:
            with explained(self._address):
                return self._client.get_job_info(name)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            known = ", ".join(job.submission_id for job in self.listed()[:10]) or "none"
            raise ValueError(f"the cluster has no job {name!r}; its jobs: {known}") from error

    def logs(self, name: str) -> str:
        """The output of a job so far."""
        with explained(self._address):
            return self._client.get_job_logs(name)

    def follow(self, name: str, seen: int, write: Callable[[str], None]) -> None:
        """Write the output of a job as it comes, without its first `seen` characters.

        Returns when the job has ended. Raises ConnectionError if the connection breaks, also if
        nobody says so, as when this machine has slept.
        """

        async def copy() -> None:
            left = seen
            async for text in self._client.tail_job_logs(name):
                write(text[left:])
                left = max(0, left - len(text))

        async def follow() -> None:
            tail = asyncio.create_task(copy())
            try:
                while not (await asyncio.wait({tail}, timeout=PROBE_S))[0]:
                    if (await asyncio.to_thread(self.status, name)).is_terminal():
                        # what is left of the output comes at once, or not at all
                        await asyncio.wait({tail}, timeout=TIMEOUT_S)
                        break
                if tail.done():
                    tail.result()
            finally:
                tail.cancel()

        with explained(self._address):
            try:
                asyncio.run(follow())
            except RuntimeError as error:  # Ray's words for a connection that was cut
                raise ConnectionError(str(error)) from error

    def status(self, name: str) -> JobStatus:
        """Whether a job runs or how it has ended; ConnectionError if no answer comes in time."""
        with explained(self._address):
            # the public call waits for an answer without a limit
            answer = self._client._do_request("GET", f"/api/jobs/{name}", timeout=TIMEOUT_S)
            answer.raise_for_status()
            return JobStatus(answer.json()["status"])

    def stop(self, name: str) -> bool:
        """Ask a job to stop, which writes a checkpoint first; whether it was running."""
        with explained(self._address):
            return self._client.stop_job(name)

    def autoscaler(self) -> str:
        """The nodes of the cluster and what the autoscaler does, in its own words."""
        with explained(self._address):
            # there is no public call for this
            path = "/api/cluster_status?format=1"
            answer = self._client._do_request("GET", path, timeout=TIMEOUT_S)
            data = answer.json().get("data") or {}
        return data.get("clusterStatus") or ""


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Raise what goes wrong in the block as an error that says what to do."""
    try:
        yield
    except AuthenticationError as error:
        raise PermissionError(
            f"the cluster at {address} does not accept the token of this machine "
            f"(RAY_AUTH_TOKEN, or ~/.ray/auth_token): copy the file of the machine that has "
            f"started the cluster, and set RAY_AUTH_MODE=token"
        ) from error
    except LOST as error:
        raise ConnectionError(
            f"nothing answers as Ray's dashboard at {address}: check the address, that the cluster "
            f"runs, and that its head has ray[default]"
        ) from error
    except RuntimeError as error:
        if SERVER_FAILED in str(error) and YOUNG not in str(error):
            raise ConnectionError(f"the dashboard at {address} fails: {brief(error)}") from error
        raise RuntimeError(f"the cluster at {address} refuses: {brief(error)}") from error


def check_versions(cluster: Mapping[str, str], address: str) -> None:
    """ValueError if the cluster has another Ray than this machine, or no Python that we support."""
    if cluster["rayVersion"] != ray.__version__:
        raise ValueError(
            f"the cluster at {address} has Ray {cluster['rayVersion']}, this machine has "
            f"{ray.__version__}: install the same version on both"
        )
    there, supported = cluster["pythonVersion"], metadata(DISTRIBUTION)["Requires-Python"]
    if there not in SpecifierSet(supported):
        raise ValueError(
            f"the cluster at {address} has Python {there}, and this project needs {supported}: "
            f"install another one on its nodes"
        )
    if there.split(".")[:2] != platform.python_version().split(".")[:2]:
        log.info(
            "python      the cluster has %s, this machine has %s; the job runs with the cluster's",
            *(there, platform.python_version()),
        )


def brief(error: BaseException) -> str:
    """The last line of an error, without secrets."""
    return redact((str(error).strip().splitlines() or [type(error).__name__])[-1])
