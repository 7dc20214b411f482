"""What a run runs on, and how busy that is.

    driver: cluster -> tags of the run         worker: sampling (a thread) -> records at the queue

Each worker samples its own GPU, and one worker of each node its CPUs, memory and network, under
the names that MLflow has for them, so that its page of system metrics shows them.
"""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator

import psutil
import pynvml
import ray
import ray.train
import torch
from ray.actor import ActorHandle

from pipeline.checkpoint.local import made_by

MEGABYTE = 1e6


def cluster_facts() -> dict[str, str]:
    """Commit, versions, hardware and Ray job of this run, as tags; Ray must run."""
    resources, made = ray.cluster_resources(), made_by()
    kinds = sorted(n.split(":", 1)[1] for n in resources if n.startswith("accelerator_type:"))
    num_gpus, nodes = int(resources.get("GPU", 0)), sum(node["Alive"] for node in ray.nodes())
    gpus = f"{num_gpus} x {' and '.join(kinds) or 'GPU'}, " if num_gpus else ""
    cores = f"{os.cpu_count()} cores ({processor()}) on the driver's node"
    context = ray.get_runtime_context()
    versions = {f"version.{name}": value for name, value in made["versions"].items()}
    return {
        "commit": made["commit"] or "unknown",
        "mlflow.source.git.commit": made["commit"] or "unknown",
        "mlflow.source.name": "python -m pipeline",
        "hardware": f"{nodes} node{'s' * (nodes > 1)}, {gpus}{cores}",
        "ray.job_id": os.environ.get("RAY_JOB_SUBMISSION_ID") or context.get_job_id(),
        "version.python": platform.python_version(),
        **versions,
    }


def processor() -> str:
    """Model of this machine's CPU."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - no file on a disk
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except FileNotFoundError:
        names = []
    return names[0] if names else platform.machine()


@contextlib.contextmanager
def sampling(queue: ActorHandle, every_s: float) -> Iterator[None]:
    """In a Ray Train worker: leave a record of the machine at the queue every so many seconds.

    Each worker tells of its own GPU, the first one of each node of the node; 0 seconds is never.
    """
    context, closing = ray.train.get_context(), threading.Event()
    rank = context.get_world_rank()
    samplers: list[Host | Gpu] = []
    if every_s and context.get_local_rank() == 0:
        samplers.append(Host(context.get_node_rank()))
    if every_s and torch.cuda.is_available():
        samplers.append(Gpu(rank))

    def work() -> None:
        for sampler in samplers:
            sampler.sample()  # the first one only sets the clocks
        while not closing.wait(every_s):
            values = {k: v for sampler in samplers for k, v in sampler.sample().items()}
            queue.put.remote({"kind": f"system/{rank}", **values})

    thread = threading.Thread(target=work, name="sampler", daemon=True)
    if samplers:
        thread.start()
    try:
        yield
    finally:
        closing.set()
        if samplers:
            thread.join()


class Host:
    """CPUs, memory, disk and network of a node."""

    def __init__(self, node_rank: int) -> None:
        self._prefix = "system/" if node_rank == 0 else f"system/node_{node_rank}/"
        self._last = traffic(), time.monotonic()

    def sample(self) -> dict[str, float]:
        """Values since the last sample, by MLflow's names; rates of the network are per second."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        (before, then), (network, now) = self._last, (traffic(), time.monotonic())
        self._last = network, now
        seconds = max(now - then, 1e-9)
        received, sent = (
            (a - b) / seconds / MEGABYTE for a, b in zip(network, before, strict=True)
        )
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "network_receive_megabytes_per_s": received,
            "network_transmit_megabytes_per_s": sent,
        }
        return {f"{self._prefix}{name}": value for name, value in values.items()}


def traffic() -> tuple[int, int]:
    """Bytes received and sent so far over all networks but the machine's own."""
    counters = psutil.net_io_counters(pernic=True)
    others = [found for name, found in counters.items() if name != "lo"]
    return sum(found.bytes_recv for found in others), sum(found.bytes_sent for found in others)


class Gpu:
    """The GPU of a worker, found by its id: the number it has here is not the machine's."""

    def __init__(self, rank: int) -> None:
        pynvml.nvmlInit()
        self._prefix = f"system/gpu_{rank}_"
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        )

    def sample(self) -> dict[str, float]:
        """Utilisation, memory and power, by MLflow's names."""
        memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        busy = pynvml.nvmlDeviceGetUtilizationRates(self._handle)
        values = {
            "utilization_percentage": busy.gpu,
            "memory_usage_megabytes": memory.used / MEGABYTE,
            "memory_usage_percentage": 100 * memory.used / memory.total,
            "power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000,
        }
        return {f"{self._prefix}{name}": float(value) for name, value in values.items()}
