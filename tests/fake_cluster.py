"""A Ray cluster on this machine whose autoscaler starts and ends real raylets, by node types.

with FakeCluster({"head": {...}, "gpu": {...}}) as cluster:
    cluster.environment          # for a process that joins it

The node types are those of a cluster file; what only a cloud understands is left out. The cluster
has a folder of its own, and ends by the ids of its own processes.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psutil
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PROVIDER = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
# what a cluster file must have, and a machine that is here already needs not
NOTHING = {
    **dict.fromkeys(("file_mounts", "auth"), {}),
    **dict.fromkeys(("cluster_synced_files", "initialization_commands", "setup_commands"), []),
    **dict.fromkeys(("head_setup_commands", "worker_setup_commands"), []),
    **dict.fromkeys(("head_start_ray_commands", "worker_start_ray_commands"), []),
}
# the only name of the head's type that the provider knows
HEAD_TYPE = "ray.head.default"
MARK = "FAKE_CLUSTER"
STORE_BYTES = 100_000_000


class SoldOut(FakeMultiNodeProvider):
    """A cloud that has no machine left."""

    def create_node_with_resources_and_labels(self, *_: object) -> None:
        """Refuse, as AWS does."""
        words = "There is no Spot capacity available that matches your request."
        raise NodeLaunchException("InsufficientInstanceCapacity", words, None)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class FakeCluster:
    """A head, and the autoscaler that starts what is asked for."""

    def __init__(
        self,
        node_types: Mapping[str, Mapping],
        *,
        idle_minutes: float = 0.1,
        provider: str = PROVIDER,
        v2: bool = True,
    ) -> None:
        """Take the node types; the one named head is running from the start.

        Ray's first autoscaler, which is the default elsewhere, tells nodes by their addresses; here
        they all have the same, so that it does not see when one is idle.
        """
        self._types = node_types
        self._idle_minutes, self._provider, self._v2 = idle_minutes, provider, v2
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {
            **os.environ,
            **{"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"},
            **{"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        }

    def config(self) -> dict:
        """The cluster file."""
        kept = ("labels", "min_workers", "max_workers")
        types = {
            HEAD_TYPE if name == "head" else name: {
                "node_config": {},
                **{key: node[key] for key in kept if key in node},
                "resources": {**node.get("resources", {}), "object_store_memory": STORE_BYTES},
            }
            for name, node in self._types.items()
        }
        return {
            "cluster_name": "fake",
            "max_workers": 16,
            "idle_timeout_minutes": self._idle_minutes,
            "provider": {
                "type": "external",
                "module": self._provider,
                "launch_multiple": True,
                "gcs_address": self.address,
                "head_node_id": HEAD_ID,
            },
            "available_node_types": types,
            "head_node_type": HEAD_TYPE,
            **NOTHING,
        }

    def __enter__(self) -> Self:
        """Start the head; returns when it answers."""
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, for Ray's sockets
        file = self._folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(self.config()))
        head = {**self._types["head"].get("resources", {})}
        port = self.address.partition(":")[2]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--num-cpus={head['CPU']}"]
        command += [f"--temp-dir={self._folder}", f"--autoscaling-config={file}"]
        command += ["--include-dashboard=false", f"--object-store-memory={STORE_BYTES}"]
        if labels := self._types["head"].get("labels"):
            command += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())]
        environment = self.environment | {
            MARK: self.address,
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": str(int(self._v2)),
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
        del environment["RAY_ADDRESS"]
        with (self._folder / "head.log").open("wb") as log:
            self._head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self, most_s: float = 60.0) -> None:
        host, _, port = self.address.partition(":")
        deadline = time.monotonic() + most_s
        while time.monotonic() < deadline and self._head.poll() is None:
            text = (self._folder / "head.log").read_text()
            if "Ray runtime started" in text:
                return
            time.sleep(0.2)
        raise RuntimeError(f"the head did not start:\n{text}")

    def __exit__(self, *_: object) -> None:
        """End all processes of the cluster."""
        processes = [process for process in psutil.process_iter() if self._owns(process)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)
        self._head.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.address
        except psutil.Error:  # another user's, or gone
            return False
