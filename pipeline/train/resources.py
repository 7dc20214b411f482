"""The Ray cluster of a command, and what a worker of a run takes of it."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping

import ray

from pipeline.settings.config import TrainConfig


@contextlib.contextmanager
def ray_session(*, extra_cpus: int, verbose: bool) -> Iterator[None]:
    """Ray: as it is if it runs, the cluster of RAY_ADDRESS, or a local one for the block.

    SIGTERM ends the block like Ctrl-C, so that what is at work can leave a checkpoint.

    Args:
        extra_cpus: CPUs that a local Ray counts beyond those of the machine: workers of a training
            run reserve theirs, and all cores may read and decode beside them.
        verbose: Show what Ray prints, and its dashboard.
    """
    if ray.is_initialized():
        yield
        return
    local = {"address": "local", "num_cpus": os.cpu_count() + extra_cpus}
    local = {} if "RAY_ADDRESS" in os.environ else local
    ray.init(
        **local,
        include_dashboard=None if verbose else False,
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
    )
    if threading.current_thread() is threading.main_thread():
        # Ray has taken the signal, and would end the process at once
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        ray.shutdown()


def worker_resources(
    config: TrainConfig, cluster: Mapping[str, float], own_cpus: int | None = None
) -> dict[str, float]:
    """What each worker reserves; a cluster that could never start them is a ValueError.

    Args:
        config: The run.
        cluster: Resources of the whole cluster by name, as Ray gives them.
        own_cpus: CPUs of a worker where there is no GPU; by default they share half of the cores.
    """
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 0))
    least = config.min_workers or config.workers
    if config.device == "gpu" or (config.device == "auto" and gpus):
        if config.device == "auto" and gpus < least:
            raise ValueError(
                f"workers ({least}) need a GPU each and the cluster has {gpus}; take fewer, or "
                f"device gpu to wait for an autoscaler"
            )
        each = {"GPU": 1, "CPU": config.worker_cpus or 1}
    else:
        # without GPUs half of the cores compute, and the others read and decode
        half = cpus / (2 * config.workers)
        each = {"CPU": config.worker_cpus or own_cpus or int(half) or half}
    if config.device != "gpu" and least * each["CPU"] >= cpus:
        raise ValueError(
            f"{least} workers of {each['CPU']} CPUs leave none of the cluster's {cpus} to read and "
            f"decode; take fewer workers or a smaller worker_cpus"
        )
    return each
