"""The resources that each worker of a run reserves."""

from collections.abc import Mapping

from pipeline.settings.config import TrainConfig


def worker_resources(
    config: TrainConfig, cluster: Mapping[str, float], own_cpus: int | None = None
) -> dict[str, float]:
    """Resources that each worker reserves; ValueError if the cluster can never provide them.

    Args:
        config: The run.
        cluster: Resources of the whole cluster by name, from Ray.
        own_cpus: CPUs of a worker without a GPU; by default the workers share half of the cores.
    """
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 0))
    least = config.min_workers or config.workers
    if config.device == "gpu" or (config.device == "auto" and gpus):
        if config.device == "auto" and gpus < least:
            raise ValueError(
                f"workers ({least}) need a GPU each and the cluster has {gpus}; use fewer, or "
                f"device gpu to wait for an autoscaler"
            )
        each = {"GPU": 1, "CPU": config.worker_cpus or 1}
    else:
        # without GPUs half of the cores train, and the other half reads and decodes
        half = cpus / (2 * config.workers)
        each = {"CPU": config.worker_cpus or own_cpus or int(half) or half}
    if config.device != "gpu" and least * each["CPU"] >= cpus:
        raise ValueError(
            f"{least} workers of {each['CPU']} CPUs leave none of the cluster's {cpus} to read and "
            f"decode; use fewer workers or a smaller worker_cpus"
        )
    return each
