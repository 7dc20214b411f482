"""How many trials run at the same time, and the workers of each.

A trial needs all of its workers at once and a core for their data. With fewer it would wait and
hold resources that other trials wait for. So both numbers follow from what the cluster has, or can
get from its autoscaler: a rung of many trials runs many side by side, one of few gives each of them
more workers.
"""

import logging
import time
from dataclasses import dataclass

from pipeline.cluster.autoscaler import node_types, possible_nodes, possible_resources
from tune.config import part
from tune.plan import Plan

log = logging.getLogger(__name__)

# seconds for which the resources of the cluster are taken to be the same
LOOK_S = 30.0
# without GPUs more trials are no faster
MAX_CPU_TRIALS = 8


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The trials of a rung that run at the same time, and the resources of each."""

    trials: int
    workers: int
    worker_cpus: int
    device: str
    """Device of the workers: gpu, also while the autoscaler is still bringing the GPUs, or cpu."""

    @classmethod
    def of(
        cls,
        *,
        cpus: int,
        gpus: int,
        trials: int,
        batch: int,
        workers: int | None = None,
        concurrent: int | None = None,
        device: str = "auto",
    ) -> "Slots":
        """The slots of a cluster for a rung; ValueError if it runs no trial, or fewer than asked.

        Args:
            cpus: CPUs that the cluster has or can get.
            gpus: GPUs that the cluster has or can get.
            trials: Trials that are to be run.
            batch: Global batch of a trial, of which each worker takes the same share.
            workers: Workers of each trial; None for as many as the trials can share.
            concurrent: Most trials at the same time; None for as many as fit.
            device: Device of the preset: auto, gpu or cpu.
        """
        on_gpus = device == "gpu" or (device == "auto" and gpus > 0)
        # a core for each worker beside a GPU and at least one for the data; without GPUs half of
        # the cores compute, and the others read and decode
        units = min(gpus, cpus - 1) if on_gpus else cpus // 2
        most = min(trials, concurrent or trials, *(() if on_gpus else (MAX_CPU_TRIALS,)))
        if device == "gpu" and workers and concurrent:  # an autoscaler that cannot be seen
            gpus = max(gpus, workers * concurrent)
            units = gpus
        elif device == "gpu" and not gpus:  # one trial waits for them
            units, most, concurrent = workers or 1, 1, None
        if workers is None:
            workers = shared(batch, max(1, units // max(1, most))) if on_gpus else 1
        fitting = units // workers
        if fitting < 1 or (concurrent and min(concurrent, trials) > fitting):
            kind = "GPUs and a core each, and one for the data" if on_gpus else "pairs of CPUs"
            raise ValueError(
                f"{concurrent or 1} trials of {workers} workers at the same time need "
                f"{(concurrent or 1) * workers} {kind}; the cluster has {gpus} GPUs and {cpus} "
                f"CPUs: lower --workers or --concurrent"
            )
        running = min(most, fitting)
        return cls(
            trials=running,
            workers=workers,
            worker_cpus=1 if on_gpus else max(1, cpus // 2 // (running * workers)),
            device="gpu" if on_gpus else "cpu",
        )


class Cluster:
    """The slots of each rung while the cluster grows and shrinks; the device stays."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._device = plan, plan.run.device
        self._known: dict[int, tuple[float, Slots | None]] = {}

    def slots(self, rung: int) -> Slots | None:
        """The slots of a rung now; None while nodes are lost. ValueError if there never were any.

        What the cluster has, or can get from its autoscaler, is looked at again after LOOK_S.
        """
        looked, known = self._known.get(rung, (-LOOK_S, None))
        if time.monotonic() - looked < LOOK_S:
            return known
        possible_nodes()  # machines that come by themselves have told what they have
        resources, plan, found = possible_resources(node_types()), self._plan, None
        try:
            found = Slots.of(
                cpus=int(resources.get("CPU", 0)),
                gpus=int(resources.get("GPU", 0)),
                trials=plan.trials(rung),
                batch=int(plan.space.shared.get("global_batch", plan.batch)),
                workers=plan.config.workers,
                concurrent=plan.config.concurrent,
                device=self._device,
            )
        except ValueError as error:
            if not self._known:
                raise
            log.info("waiting   for nodes: %s", error)
        if found and found != known:
            self._device = found.device
            log.info(
                "rung %d    at %s of the run: %d trials at the same time, each on %d x %s",
                *(rung + 1, part(plan.horizon(rung))),
                *(found.trials, found.workers, found.device),
            )
        self._known[rung] = time.monotonic(), found
        return found


def shared(batch: int, most: int) -> int:
    """The largest number of workers, up to `most`, that take equal shares of a global batch."""
    return max(number for number in range(1, most + 1) if batch % (2 * number) == 0 or number == 1)
