"""Hosts on one machine: networks, processes and disks of their own, and an S3 server beside them.

with Hosts(folder, "h1", "h2") as hosts:
    hosts.start_ray()
    hosts.h1.run("python", "-m", "pipeline", ...)
    hosts.h2.kill()                          # the node is lost; its disk stays
    hosts.store.keys("runs/")                # the store outlives all hosts

A host is a set of Linux namespaces. Only the machine's read-only parts are seen by all of them: the
Python installation, and nothing of this checkout but a copy in the folder CODE. They end with the
process that made them, however it ends, and leave nothing behind.
"""

import contextlib
import itertools
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import s3_server
from namespaces import STAY, Namespaces, enter_network

from support import code

CODE, WORK = "/srv/code", "/srv/work"
NETWORK = "10.77.0."
BUCKET, STORE_ADDRESS, STORE_PORT = "bkt", f"{NETWORK}100", 5000
RAY_PORT, CPUS = 6379, 3
# folders of which each host has its own, and the checkout, which an editable install would find;
# what Python needs of them is still seen
PRIVATE = ("/tmp", "/run", "/root", "/home", "/srv", "/dev/shm", str(Path(__file__).parent.parent))

# $1 name, $2 addresses of all hosts, the rest: folders that Python needs
HOST = rf"""
set -e
hostname "$1"
mount -t tmpfs tmpfs /mnt
printf "127.0.0.1 localhost\n$2" > /mnt/hosts
mount --bind /mnt/hosts /etc/hosts
shift 2
for folder in $PRIVATE; do mkdir -p "/mnt$folder"; chmod 1777 "/mnt$folder"; done
for folder in "$@"; do
    mkdir -p "/mnt$folder"
    mount --bind "$folder" "/mnt$folder"
    mount -o remount,ro,bind "/mnt$folder"
done
mkdir -p "/mnt$WORK" "/mnt$CODE"
cp -r $SOURCES "/mnt$CODE"
for folder in $PRIVATE; do mount --rbind "/mnt$folder" "$folder"; done
ip link set lo up
cd /
{STAY}
"""
SWITCH = f"""
set -e
ip link set lo up
ip link add switch type bridge
ip addr add {STORE_ADDRESS}/24 dev switch
ip link set switch up
{STAY}
"""


class Host:
    """One host."""

    def __init__(self, name: str, address: str, hosts: "Hosts") -> None:
        self.name, self.address, self._hosts = name, address, hosts
        self._up()

    def _up(self) -> None:
        needed = {path for path in (sys.prefix, sys.base_prefix) if path.startswith(PRIVATE)}
        settings = {
            "PRIVATE": " ".join(PRIVATE),
            "CODE": CODE,
            "WORK": WORK,
            "SOURCES": " ".join(map(str, code.folders())),
        }
        names = "".join(rf"{address} {name}\n" for name, address in self._hosts.addresses.items())
        command = ["bash", "-c", HOST, "host", self.name, names, *sorted(needed)]
        self.inside = Namespaces(command, settings, "--mount", "--uts", "--ipc", "--net")
        self._hosts.connect(self)

    def path(self, place: str) -> Path:
        """A file of the host, as it is seen from here."""
        return Path(f"/proc/{self.inside.pid}/root{place}")

    def log(self, title: str) -> Path:
        """A new empty file here, for the output of a command."""
        log = self._hosts.folder / f"{self.name}-{title}-{next(self._hosts.numbers)}.log"
        log.touch()
        return log

    def start(self, *command: str, log: Path, **env: str) -> subprocess.Popen:
        """Start a command in WORK; its output goes to the end of the file `log`."""
        shell = ["sh", "-c", f'cd {WORK} && exec "$@"', "sh"]
        enter = self.inside.enter("-m", "-u", "-i", "-n", "-p")
        with log.open("a") as output:
            return subprocess.Popen(
                [*enter, *shell, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._hosts.environment | {"PYTHONPATH": CODE} | env,
            )

    def run(self, *command: str, timeout: float = 300, **env: str) -> tuple[int, str]:
        """Run a command in WORK; returns its exit status and its output."""
        log = self.log("run")
        status = self.start(*command, log=log, **env).wait(timeout)
        return status, log.read_text()

    def done(self, *command: str, **env: str) -> str:
        """Run a command that must succeed; returns its output."""
        status, output = self.run(*command, **env)
        assert status == 0, output
        return output

    def start_ray(self) -> None:
        """Start Ray's head if this is the first host, or join it."""
        is_head = self is self._hosts.all[0]
        head = ["--head", "--port", str(RAY_PORT), "--include-dashboard=false"]
        address = ["--address", f"{self._hosts.all[0].address}:{RAY_PORT}"]
        options = ["--num-cpus", str(CPUS), "--object-store-memory", "200000000"]
        options += ["--node-ip-address", self.address, "--disable-usage-stats"]
        # without the code: the nodes get it from the driver
        self.done("ray", "start", *(head if is_head else address), *options, PYTHONPATH="")

    def pids(self, title: str) -> list[int]:
        """Ids of the processes whose command line contains `title`."""
        return [pid for pid, line in self.inside.processes().items() if title in line]

    def set_link(self, state: str) -> None:
        """Set the cable to the switch "up" or "down"."""
        command = [*self.inside.enter("-n"), "ip", "link", "set", "eth0", state]
        subprocess.run(command, check=True)

    def kill(self) -> None:
        """SIGKILL all processes, as in a loss of the node; the disk stays."""
        self.inside.kill()

    def replace(self) -> None:
        """Lose the host with its disk; another one of the same name takes its place."""
        self.inside.close()
        self._up()


class Store:
    """An S3 server with one bucket, which outlives the hosts."""

    def __init__(self, switch: Namespaces, folder: Path, latency_s: float) -> None:
        place = (STORE_ADDRESS, str(STORE_PORT), str(latency_s))
        with (folder / "s3.log").open("w") as log:
            subprocess.Popen(
                [*switch.enter("-n", "-p"), sys.executable, s3_server.__file__, *place],
                stdout=log,
                stderr=log,
            )
        # a thread may enter a network alone
        self._thread = ThreadPoolExecutor(1, initializer=enter_network, initargs=(switch.pid,))
        deadline = time.monotonic() + 60
        while True:
            try:
                self._request("", method="PUT")
                return
            except urllib.error.URLError:
                assert time.monotonic() < deadline, (folder / "s3.log").read_text()
                time.sleep(0.2)

    def _request(self, path: str, method: str = "GET") -> bytes:
        url = f"http://{STORE_ADDRESS}:{STORE_PORT}/{BUCKET}{path}"

        def send() -> bytes:
            with urllib.request.urlopen(
                urllib.request.Request(url, method=method), timeout=30
            ) as a:
                return a.read()

        return self._thread.submit(send).result()

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects that begin with `prefix`, in order."""
        keys, after = [], ""
        while True:
            query = f"?list-type=2&prefix={prefix}&start-after={after}"
            page = self._request(query).decode()
            keys += re.findall("<Key>(.*?)</Key>", page)
            if "<IsTruncated>true" not in page:
                return keys
            after = keys[-1]

    def read(self, key: str) -> bytes:
        """The content of an object."""
        return self._request(f"/{key}")


class Hosts:
    """Hosts on one network with the store, and nothing else; each is an attribute by its name."""

    def __init__(
        self,
        folder: Path,
        *names: str,
        environment: dict[str, str] | None = None,
        latency_s: float = 0.0,
    ) -> None:
        """Bring all up; the output of commands goes to `folder`.

        `environment` is that of all commands; by default one with which they find the store and the
        Ray whose head is on the first host. `latency_s` is how long the store takes to answer.
        """
        self.folder, self.numbers = folder, itertools.count(1)
        self.addresses = {name: f"{NETWORK}{n}" for n, name in enumerate(names, 1)}
        first = f"{self.addresses[names[0]]}:{RAY_PORT}"
        self.environment = environment or ENVIRONMENT | RAY | {"RAY_ADDRESS": first}
        self.all: list[Host] = []
        with contextlib.ExitStack() as stack:
            self._switch = Namespaces(["bash", "-c", SWITCH], {}, "--net")
            stack.callback(self._switch.close)
            self.store = Store(self._switch, folder, latency_s)
            for name, address in self.addresses.items():
                host = Host(name, address, self)
                stack.callback(lambda host=host: host.inside.close())
                self.all.append(host)
                setattr(self, name, host)
            self._ends = stack.pop_all()

    def connect(self, host: Host) -> None:
        """Give a new host its cable to the switch."""
        cable, pid = f"cable{next(self.numbers)}", str(host.inside.pid)
        in_switch = self._switch.enter("-n")
        # the same card for a host that takes another's place, for its neighbours remember it
        card = f"02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x}"
        peer = ["type", "veth", "peer", "name", "eth0", "address", card, "netns", pid]
        for command in (
            [*in_switch, "ip", "link", "add", cable, *peer],
            [*in_switch, "ip", "link", "set", cable, "master", "switch", "up"],
            [*host.inside.enter("-n"), "ip", "addr", "add", f"{host.address}/24", "dev", "eth0"],
            [*host.inside.enter("-n"), "ip", "link", "set", "eth0", "up"],
        ):
            subprocess.run(command, check=True, capture_output=True)

    def start_ray(self) -> None:
        """Start Ray on all hosts."""
        for host in self.all:
            host.start_ray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()


ENVIRONMENT = {
    "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    **s3_server.variables(STORE_ADDRESS, STORE_PORT),
}
RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
    # a lost host is noticed in seconds
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # it would count the memory of all that runs on this machine, and kill for it
    "RAY_memory_monitor_refresh_ms": "0",
}
