"""Hardware and software of a run, and the load of its machines.

    driver: cluster -> tags of the run         worker: sampling (a thread) -> records in the queue

Each worker samples its own GPU, and one worker of each node samples CPUs, memory and network. The
names are those of MLflow, so that its page of system metrics shows them.
"""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pynvml
import ray
import ray.train
import torch
from ray.actor import ActorHandle

from pipeline.checkpoint.local import provenance

MEGABYTE = 1e6


def cluster_facts() -> dict[str, str]:
    """Commit, versions, hardware and Ray job of this run, as tags; Ray must be running."""
    resources, code = ray.cluster_resources(), provenance()
    commit = code["commit"] or "unknown"
    kinds = sorted(n.split(":", 1)[1] for n in resources if n.startswith("accelerator_type:"))
    num_gpus, nodes = int(resources.get("GPU", 0)), sum(node["Alive"] for node in ray.nodes())
    gpus = f"{num_gpus} x {' and '.join(kinds) or 'GPU'}, " if num_gpus else ""
    cores = f"{os.cpu_count()} cores ({processor()}) on the driver's node"
    job_id = os.environ.get("RAY_JOB_SUBMISSION_ID") or ray.get_runtime_context().get_job_id()
    return {
        "commit": commit,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "python -m pipeline",
        "hardware": f"{nodes} node{'s' * (nodes > 1)}, {gpus}{cores}",
        "ray.job_id": job_id,
        "version.python": platform.python_version(),
        **{f"version.{name}": version for name, version in code["versions"].items()},
    }


def processor() -> str:
    """Model of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, platform.machine())


@contextlib.contextmanager
def sampling(queue: ActorHandle, every_s: float) -> Iterator[None]:
    """In a Ray Train worker: put a record of its machine into the queue every `every_s` seconds.

    Each worker samples its own GPU, and the first one of each node samples the node. 0 turns
    sampling off.
    """
    context, closing = ray.train.get_context(), threading.Event()
    rank = context.get_world_rank()
    samplers = []
    if every_s and context.get_local_rank() == 0:
        samplers.append(host_samples(context.get_node_rank()))
    if every_s and torch.cuda.is_available():
        samplers.append(gpu_samples(rank, gpu_handle()))

    def sample() -> None:
        for sampler in samplers:
            next(sampler)  # rates start from here
        while samplers and not closing.wait(every_s):
            values = {name: value for sampler in samplers for name, value in next(sampler).items()}
            queue.put.remote({"kind": f"system/{rank}", **values})

    thread = threading.Thread(target=sample, name="sampler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()


def host_samples(node_rank: int) -> Iterator[dict[str, float]]:
    """CPUs, memory, disk and network of a node; network rates are since the previous sample."""
    prefix = "system/" if node_rank == 0 else f"system/node_{node_rank}/"
    before, last_s = traffic(), time.monotonic()
    while True:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        after, now_s = traffic(), time.monotonic()
        scale = 1 / MEGABYTE / max(now_s - last_s, 1e-9)
        received, sent = ((a - b) * scale for a, b in zip(after, before, strict=True))
        before, last_s = after, now_s
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "network_receive_megabytes_per_s": received,
            "network_transmit_megabytes_per_s": sent,
        }
        yield {f"{prefix}{name}": value for name, value in values.items()}


def traffic() -> tuple[int, int]:
    """Bytes received and sent so far over all networks except loopback."""
    counters = [c for name, c in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    return sum(c.bytes_recv for c in counters), sum(c.bytes_sent for c in counters)


def gpu_handle() -> object:
    """NVML's handle of this thread's GPU, by UUID: its index here is not that of the machine."""
    pynvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


def gpu_samples(rank: int, handle: object) -> Iterator[dict[str, float]]:
    """Utilisation, memory and power of the GPU of a worker."""
    while True:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        values = {
            "utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory_usage_megabytes": memory.used / MEGABYTE,
            "memory_usage_percentage": 100 * memory.used / memory.total,
            "power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }
        yield {f"system/gpu_{rank}_{name}": float(value) for name, value in values.items()}
