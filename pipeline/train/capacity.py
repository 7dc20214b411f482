"""How many workers the nodes of a cluster can hold, now and later; a run waits until enough fit.

nodes that are there, nodes that can come -> resources of a worker, once for a whole run
before each attempt: workers that fit now -> enough: their number
                                          -> too few: the autoscaler is asked, the run waits
"""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat

import ray

from pipeline.cluster import autoscaler
from pipeline.cluster.autoscaler import LOOK_S, SAY_S, NodeType, Resources, possible_resources
from pipeline.settings.config import TrainConfig
from pipeline.train.preemption import draining
from pipeline.train.resources import worker_resources
from shards.build.ray_map import alive

log = logging.getLogger(__name__)

# how long a start waits for nodes whose resources only they themselves know
UNKNOWN_S = 300.0


def fitting_workers(each: Resources, nodes: Sequence[Resources], most: int) -> int:
    """How many workers, of those resources each, nodes of these resources hold; `most` at most."""
    counts = (
        min(int(node.get(name, 0.0) // amount) for name, amount in each.items()) for node in nodes
    )
    return min(most, sum(counts))


def usable_nodes() -> list[Resources]:
    """Resources of the nodes that are alive and do not go away."""
    leaving = draining()
    return [
        node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving
    ]


class Capacity:
    """What a run can count on in its cluster."""

    def __init__(self, config: TrainConfig, own_cpus: int | None = None) -> None:
        """Decide what each worker reserves; ValueError if the cluster can never provide it.

        It is decided once: a run must not change its devices because a node is missing for a
        moment. `own_cpus` is CPUs of a worker without a GPU; None is the default.
        """
        self._types = autoscaler.node_types()
        self._least = config.min_workers or config.workers
        await_unknown(config, self._types, own_cpus)
        self.each = worker_resources(config, possible_resources(self._types), own_cpus)
        """Resources that each worker reserves."""
        possible = chain.from_iterable(repeat(one.resources, one.most) for one in self._types)
        limit = fitting_workers(self.each, [*possible], config.workers)
        # an autoscaler that is asked for more than it can start may start nothing
        self._wanted = max(self._least, limit) if limit else config.workers
        self._most = config.workers

    def now(self) -> int:
        """Workers that the nodes hold now."""
        return fitting_workers(self.each, usable_nodes(), self._most)

    def wait(self, stopped: Callable[[], bool]) -> int:
        """Wait until enough workers fit; returns how many do, or 0 if the run is stopped."""
        if (now := self.now()) >= self._least:
            return now
        due_s = time.monotonic()
        with autoscaler.requested(self.each, self._wanted):
            while (now := self.now()) < self._least:
                if stopped():
                    return 0
                if time.monotonic() >= due_s:
                    log.info("waiting   %s", self._lack(now))
                    due_s += SAY_S
                time.sleep(LOOK_S)
        log.info("waiting   is over: %d workers fit", now)
        return now

    def missing(self, workers: int) -> int:
        """How many more workers than these the run can use, and the cluster may hold later."""
        return max(0, self._wanted - workers)

    def _lack(self, now: int) -> str:
        """What a run waits for."""
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items())
        leaving = len(draining())
        nodes = f"{len(alive())}, {leaving} of which go away" if leaving else len(alive())
        return (
            f"for nodes: {self._least} workers need {each} each, and {now} of them fit on the "
            f"nodes that are there ({nodes}). Autoscaler: {autoscaler.report()}"
        )


def await_unknown(config: TrainConfig, types: Sequence[NodeType], own_cpus: int | None) -> None:
    """Wait for nodes of unknown resources, which come by themselves, as far as they may matter."""
    coming = sum(one.most for one in types if not one.resources)
    deadline, said = time.monotonic() + UNKNOWN_S, False
    while len(alive()) <= coming and time.monotonic() < deadline:
        try:
            each = worker_resources(config, possible_resources(types), own_cpus)
        except ValueError:
            pass
        else:
            if "GPU" in each or config.device == "cpu":
                return
        if not said:
            log.info(
                "waiting   for up to %d nodes besides the head, which tell what they have", coming
            )
            said = True
        time.sleep(LOOK_S)
