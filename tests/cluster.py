"""A cluster of hosts on one machine, made by the project's own cluster file through real ssh.

with Cluster(folder) as cluster:
    run = cluster.launch("--", "train", "demo", ...)     # from the laptop
    cluster.cut(cluster.w2)                  # its cable is pulled and its power is gone
    cluster.boot(cluster.w2)
    run.end()

The hosts are head, w1, w2, and laptop, from which commands are given. The first three know the keys
of the store from a file; the laptop does not know them.
"""

import contextlib
import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import namespaces
import s3_server
import sshd
import yaml
from fake_metadata import FakeMetadata
from hosts import ENVIRONMENT, STORE_ADDRESS, STORE_PORT, WORK, Host, Hosts
from namespaces import enter_network

from pipeline.train.metadata_server import ADDRESS

PROJECT = Path(__file__).parent.parent
FILE = "on-premise.yaml"
TOKEN, CREDENTIALS = "/root/.ray/auth_token", "/root/.aws/credentials"
STORE = s3_server.variables(STORE_ADDRESS, STORE_PORT)
# as much as a store in a cloud needs, so that a run is not over in a moment
LATENCY_S = 0.03
TIMEOUT_S = 1200
# in place of the memory and the CPUs of a machine
SIZES = {
    "head": "--object-store-memory=100000000",
    "worker": "--num-cpus=3 --object-store-memory=200000000",
}
# a lost host is noticed in seconds, and taken back as soon as it answers
SETTINGS = {
    "RAY_health_check_initial_delay_ms": 1000,
    "RAY_health_check_period_ms": 1000,
    "RAY_health_check_timeout_ms": 2000,
    "RAY_health_check_failure_threshold": 3,
    "AUTOSCALER_UPDATE_INTERVAL_S": 1,
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": 5,
    # it would count the memory of all that runs on this machine, and kill for it
    "RAY_memory_monitor_refresh_ms": 0,
    # where the store is; its keys are in a file
    **{name: STORE[name] for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")},
}


def missing() -> str | None:
    """Why there can be no such cluster here; None if there can."""
    return namespaces.missing(*sshd.PROGRAMS)


class Cluster(Hosts):
    """The hosts, with ssh, and the cluster file on the laptop."""

    head: Host
    w1: Host
    w2: Host
    laptop: Host

    def __init__(self, folder: Path) -> None:
        """Bring the machines up; Ray is not started."""
        here = {name: text for name, text in ENVIRONMENT.items() if name not in STORE}
        names = ("head", "w1", "w2", "laptop")
        super().__init__(folder, *names, environment=here, latency_s=LATENCY_S)
        secret = secrets.token_hex(20)
        self.keys = STORE | {"AWS_SECRET_ACCESS_KEY": secret}
        """The environment of a process on the laptop that is to use the store."""
        credentials = (
            f"[default]\naws_access_key_id = {STORE['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {secret}\n"
        )
        try:
            self._key = sshd.make_key(folder)
            for host in (self.head, self.w1, self.w2):
                sshd.serve(host, self._key)
                write(host, CREDENTIALS, credentials)
            sshd.give(self.laptop, self._key)
            write(self.laptop, f"{WORK}/constraints.txt", "")
            self.describe(FILE, self.head.address, sshd.PRIVATE_KEY)
        except BaseException:
            self.__exit__()
            raise

    def describe(self, name: str, head_ip: str, ssh_private_key: str) -> None:
        """Put the project's file for machines of one's own on the laptop, with these machines."""
        content = yaml.safe_load((PROJECT / "clusters" / FILE).read_text())
        addresses = [self.w1.address, self.w2.address]
        content["provider"] |= {"head_ip": head_ip, "worker_ips": addresses}
        content["auth"] |= {"ssh_user": "root", "ssh_private_key": ssh_private_key}
        # the packages are there already
        content["setup_commands"] = [f"ln -sfn {sys.prefix} ~/venv"]
        for kind, size in SIZES.items():
            commands = content[f"{kind}_start_ray_commands"]
            commands[-1] = started_with(commands[-1], SETTINGS, size)
        write(self.laptop, f"{WORK}/{name}", yaml.safe_dump(content))

    def launch(self, *arguments: str, file: str = FILE, **env: str) -> "Launch":
        """Start `launch` on the laptop."""
        log = self.laptop.log("launch")
        command = ("python", "-m", "pipeline", "launch", file, *arguments)
        return Launch(self.laptop.start(*command, log=log, **env), log)

    def job(self, verb: str, *arguments: str) -> str:
        """Run `job` on the laptop; returns its output."""
        return self.laptop.done("python", "-m", "pipeline", "job", verb, FILE, *arguments)

    def records(self, run: str) -> list[dict]:
        """The records of training steps in the journal of a run."""
        if f"runs/{run}/metrics.jsonl" not in self.store.keys(f"runs/{run}/metrics"):
            return []
        lines = self.store.read(f"runs/{run}/metrics.jsonl").splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == "train"]

    def trains_with(self, run: str, workers: int) -> bool:
        """Whether the newest record of a run is from so many workers."""
        return [record["workers"] for record in self.records(run)[-1:]] == [workers]

    def checkpoints(self, run: str) -> list[int]:
        """Steps of the complete checkpoints of a run."""
        keys = " ".join(self.store.keys(f"runs/{run}/checkpoints/"))
        return sorted(map(int, re.findall(r"step-(\d{9})/meta\.json", keys)))

    def cut(self, host: Host) -> None:
        """Lose a host: its network, then all its processes."""
        host.set_link("down")
        host.kill()

    def boot(self, host: Host) -> None:
        """Bring a host back, with its disk."""
        host.set_link("up")
        sshd.serve(host, self._key)

    @contextlib.contextmanager
    def metadata_server(self, host: Host) -> Iterator[FakeMetadata]:
        """During the block a host has the metadata server of AWS."""
        address = [*host.inside.enter("-n"), "ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo"]
        subprocess.run(address, check=True)
        # a thread may enter a network alone
        with ThreadPoolExecutor(1, initializer=enter_network, initargs=(host.inside.pid,)) as there:
            server = there.submit(FakeMetadata, "aws", (ADDRESS, 80)).result()
        with server:
            yield server


@dataclass(frozen=True)
class Launch:
    """A `launch` on the laptop."""

    process: subprocess.Popen
    log: Path

    @property
    def output(self) -> str:
        """Its output so far."""
        return self.log.read_text()

    @property
    def job(self) -> str:
        """Id of its job."""
        return re.search(r"^job +(\S+)", self.output, re.MULTILINE)[1]

    def wait_for(self, done: Callable[[], object]) -> None:
        """Wait until something is so, while the launch runs."""
        deadline = time.monotonic() + TIMEOUT_S
        while not done():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.2)

    def end(self) -> int:
        """Wait until it ends; returns its status."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(self.output) from error


def started_with(command: str, settings: Mapping[str, object], options: str) -> str:
    """A start command of Ray with variables and options added, which win over its own."""
    before, start, after = command.partition("ray start ")
    variables = " ".join(f"{name}={value}" for name, value in settings.items())
    return f"{before}export {variables}; {start}{after} {options}"


def write(host: Host, place: str, text: str) -> None:
    """Write a file of a host."""
    path = host.path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
