"""CPUs that Ray grants to the data pipelines of a training run on large clusters.

    python benchmarks/coordinator.py

Nothing runs: Ray's own coordinator of resources is given the nodes of a cluster (8 GPUs and 96 CPUs
each), the workers of a run (1 GPU and 1 CPU each) and its pipelines, as Ray Train and Ray Data
register them. While the run evaluates, there are twice as many pipelines.

    worker   a pipeline for each worker, each a part of the cluster's remaining CPUs
    node     a pipeline for each node, pinned to it: its part of the node's CPUs
    budget   the same with pipeline.data.budget, as training uses it

Each figure is the CPUs of a node that its pipelines may use together, of the 88 that are left.
"""

import argparse
import sys
from collections.abc import Sequence

from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    STANDARD_RESOURCE_TYPES,
    ResourceRequestPriority,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    _AutoscalingCoordinatorActor,
)

from pipeline.data.budget import NODE_ID, NodeBudget

GPUS, CPUS = 8, 96
EXPIRE_S = 180.0


def cluster(nodes: int) -> list[dict]:
    """The nodes, as Ray lists them."""
    resources = {"CPU": CPUS, "GPU": GPUS, "memory": 2**40, "object_store_memory": 200 * 2**30}
    return [
        {
            "Alive": True,
            "NodeID": f"n{number}",
            "Resources": dict(resources),
            "Labels": {NODE_ID: f"n{number}"},
        }
        for number in range(nodes)
    ]


def granted(nodes: Sequence[dict], pipelines: int, *, pinned: bool) -> float:
    """CPUs of a node that the pipelines may use by Ray's coordinator, on average."""
    coordinator = _AutoscalingCoordinatorActor(
        send_resources_request=lambda *_: None, get_cluster_nodes=lambda: list(nodes)
    )
    # Ray divides again after every request, which takes minutes with a thousand pipelines
    divide = coordinator._refresh_resource_reservations
    coordinator._refresh_resource_reservations = lambda: None
    coordinator.request_resources(
        requester_id="train",
        resources=[{"CPU": 1, "GPU": 1}] * (len(nodes) * GPUS),
        expire_after_s=EXPIRE_S,
        priority=ResourceRequestPriority.HIGH,
    )
    for number in range(pipelines):
        coordinator.request_resources(
            requester_id=f"data-{number}",
            resources=[],
            expire_after_s=EXPIRE_S,
            request_remaining=STANDARD_RESOURCE_TYPES,
        )
    divide()
    total = 0.0
    for number in range(pipelines):
        reserved = coordinator.get_reserved_resources(f"data-{number}")
        total += sum(
            node.get("CPU", 0)
            for name, node in reserved.items()
            if not pinned or name == f"n{number % len(nodes)}"
        )
    return total / len(nodes)


def main() -> None:
    """Print a table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    sys.stdout.write(f"{'':<32}{'worker':>10}{'node':>10}{'budget':>10}\n")
    for count in (8, 16, 64):
        nodes = cluster(count)
        budget = NodeBudget(node="n0", reserved_cpus=GPUS).resources(nodes).cpu
        for what, streams in (("training", 1), ("training and evaluation", 2)):
            figures = (
                granted(nodes, streams * count * GPUS, pinned=False),
                granted(nodes, streams * count, pinned=True),
                budget,  # each of the node's pipelines may use all; Ray queues what does not fit
            )
            name = f"{count:>2} x {GPUS} GPUs, {what}"
            sys.stdout.write(f"{name:<32}" + "".join(f"{f:>10.0f}" for f in figures) + "\n")


if __name__ == "__main__":
    main()
