"""Hardware and software of a run, and the load of its machines.

    driver: cluster -> tags of the run         first worker of a node: sampling (a thread) -> queue

One worker of each node samples its CPUs, memory and network, and the GPUs of all its workers: one
message for each node and interval. The names are those of MLflow, so that its page of system
metrics shows them.
"""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pynvml
import ray
import ray.train
import torch
from ray.actor import ActorHandle

from pipeline.checkpoint.local import provenance
from pipeline.train.report_queue import Lossy
from support.code import shortened
from support.threads import beside

MEGABYTE = 1e6
# workers up to which each node is sampled as often as it is set
MANY_WORKERS = 64


def cluster_facts() -> dict[str, str]:
    """Commit, versions, hardware and Ray job of this run, as tags; Ray must be running."""
    resources, code = ray.cluster_resources(), provenance()
    commit = shortened(code["commit"] or "unknown")
    kinds = sorted(n.split(":", 1)[1] for n in resources if n.startswith("accelerator_type:"))
    num_gpus, nodes = int(resources.get("GPU", 0)), sum(node["Alive"] for node in ray.nodes())
    gpus = f"{num_gpus} x {' and '.join(kinds) or 'GPU'}, " if num_gpus else ""
    cores = f"{os.cpu_count()} cores ({processor()}) on the driver's node"
    job_id = os.environ.get("RAY_JOB_SUBMISSION_ID") or ray.get_runtime_context().get_job_id()
    return {
        "commit": commit,
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
    """In a Ray Train worker: sample its node every `every_s` seconds; 0 turns sampling off.

    The first worker of a node samples; the others only tell the queue which GPU they use. With more
    than MANY_WORKERS the interval grows with their number, so that the record does not grow faster.
    """
    context = ray.train.get_context()
    every_s *= max(1.0, context.get_world_size() / MANY_WORKERS)
    node, has_gpus = ray.get_runtime_context().get_node_id(), torch.cuda.is_available()
    if every_s and has_gpus:
        queue.use_gpu.remote(context.get_world_rank(), node, gpu_uuid())
    if not every_s or context.get_local_rank():
        yield
        return

    def sample(closing: threading.Event) -> None:
        host, send = host_samples(context.get_node_rank()), Lossy(queue.sample)
        next(host)  # rates start from here
        if has_gpus:
            pynvml.nvmlInit()
        while not closing.wait(every_s):
            uuids = ray.get(queue.gpus.remote(node)) if has_gpus else {}
            send(node, {**next(host), **gpu_sample(uuids)})

    with beside(sample, "sampler"):
        yield


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


def gpu_uuid() -> str:
    """NVML's name of this worker's GPU: its index here is not that of the machine."""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def gpu_sample(uuids: Mapping[int, str]) -> dict[str, float]:
    """Utilisation, memory and power of GPUs of this node, each by the rank that uses it."""
    values = {}
    for rank, uuid in uuids.items():
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        prefix = f"system/gpu_{rank}_"
        busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
        values[f"{prefix}utilization_percentage"] = float(busy)
        values[f"{prefix}memory_usage_megabytes"] = memory.used / MEGABYTE
        values[f"{prefix}memory_usage_percentage"] = 100 * memory.used / memory.total
        values[f"{prefix}power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return values
