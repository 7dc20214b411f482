"""The head of a cluster, as this machine reaches it: by its address, or through ssh.

with Head.through_ssh(cluster) as head:
    head.address(DASHBOARD)                  # http://127.0.0.1:PORT, a tunnel to that port
"""

import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from pipeline.launch import ray_cli
from pipeline.launch.cluster_file import ClusterFile
from support.redact import redact

# ports of the head: of Ray's dashboard, which takes jobs, and of MLflow
DASHBOARD, MLFLOW = 8265, 5000
# seconds in which a tunnel must be open
TUNNEL_S = 90.0


class Head:
    """The way to the head of a cluster; to be closed at the end."""

    def __init__(self, cluster: ClusterFile | None, address: str | None) -> None:
        """Reach the head of a cluster through ssh, or at the address of its dashboard."""
        self._cluster, self._address = cluster, address
        self._tunnels: dict[int, tuple[subprocess.Popen, int]] = {}

    @classmethod
    def through_ssh(cls, cluster: ClusterFile) -> Self:
        """The head of a cluster that a cluster file describes."""
        return cls(cluster, None)

    @classmethod
    def at(cls, address: str) -> Self:
        """The head whose dashboard is at an address; ValueError if it is none."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"address ({redact(address)}) must be that of the dashboard: http://HOST:8265"
            )
        return cls(None, address.rstrip("/"))

    def __enter__(self) -> Self:
        """Nothing is opened before it is needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        """Close the tunnels."""
        for process, _ in self._tunnels.values():
            ray_cli.end(process)
        self._tunnels.clear()

    @property
    def has_tunnels(self) -> bool:
        """Whether any port of the head can be reached, and not only its dashboard."""
        return self._cluster is not None

    def address(self, port: int) -> str:
        """Address by which this machine reaches a port of the head; ConnectionError if it cannot.

        A tunnel that has broken is opened again, with the same local port.
        """
        if not self._cluster:
            return self._address
        process, local = self._tunnels.get(port, (None, None))
        if process is None or process.poll() is not None:
            local = local or free_port(port)
            self._tunnels[port] = (self._opened(local, port), local)
        return f"http://127.0.0.1:{local}"

    def _opened(self, local: int, port: int) -> subprocess.Popen:
        """A tunnel from a local port to a port of the head."""
        with tempfile.TemporaryFile("w+") as output:
            process = ray_cli.start(
                *("dashboard", str(self._cluster.path)),
                *("--port", str(local), "--remote-port", str(port)),
                output=output,
            )
            deadline = time.monotonic() + TUNNEL_S
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    if answers(local):
                        return process
                    time.sleep(0.2)
            except BaseException:  # such as Ctrl-C, which does not reach the process
                ray_cli.end(process)
                raise
            ray_cli.end(process)
            output.seek(0)
            raise ConnectionError(
                f"the head of {self._cluster.name} cannot be reached: "
                f"{ray_cli.explained(output.read().splitlines())}"
            )


def answers(port: int) -> bool:
    """Whether a port of this machine takes connections."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return not probe.connect_ex(("127.0.0.1", port))


def free_port(wanted: int) -> int:
    """A port of this machine that nobody uses: the wanted one, or another."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError("this machine has no free port")
