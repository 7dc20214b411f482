"""How many trials run at the same time.

A trial needs all of its workers at once and a core for their data. With fewer it would wait and
hold resources that other trials wait for. So the number of concurrent trials is computed from the
cluster before the first one starts, and their workers leave cores to read and decode images.
"""

from dataclasses import dataclass

from pipeline.cluster.autoscaler import node_types, possible_nodes, possible_resources

# without GPUs, more trials are no faster, and the sampler knows fewer results when it chooses
MAX_CPU_TRIALS = 8


@dataclass(frozen=True, kw_only=True)
class TrialSlots:
    """How many trials run at the same time, and the CPUs of each worker."""

    trials: int
    worker_cpus: int
    idle_gpus: int

    @classmethod
    def of(cls, *, cpus: int, gpus: int, workers: int, wanted: int | None) -> "TrialSlots":
        """The slots of a cluster; ValueError if there are none, or fewer than wanted."""
        if gpus:
            # a core for each worker, and at least one core for the data
            most = min(gpus // workers, (cpus - 1) // workers)
            needs = f"{workers} GPUs and {workers + 1} CPUs"
        else:
            # half of the cores compute, and the others read and decode
            most = min(MAX_CPU_TRIALS, cpus // 2 // workers)
            needs = f"{2 * workers} CPUs"
        available = f"the cluster has {gpus} GPUs and {cpus} CPUs"
        if most < 1:
            raise ValueError(f"a trial of {workers} workers needs {needs}; {available}")
        trials = wanted or most
        if trials > most:
            raise ValueError(
                f"concurrent ({trials}) trials of {workers} workers would wait for each other: "
                f"each needs {needs}, {available}; at most {most}"
            )
        return cls(
            trials=trials,
            worker_cpus=1 if gpus else max(1, cpus // 2 // (trials * workers)),
            idle_gpus=gpus - trials * workers if gpus else 0,
        )

    @classmethod
    def here(cls, *, workers: int, wanted: int | None) -> "TrialSlots":
        """The slots of the cluster that Ray is connected to, with nodes that can still come."""
        possible_nodes()  # machines that come by themselves have told what they have
        resources = possible_resources(node_types())
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        return cls.of(cpus=cpus, gpus=gpus, workers=workers, wanted=wanted)
