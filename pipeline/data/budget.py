"""The CPUs and the memory that a node's pipelines may use.

Ray Data divides the CPUs that are left over in the cluster evenly among all its datasets, node by
node and in whole CPUs: of 64 pipelines on 64 nodes each is granted one CPU of every node, or none,
although its tasks may run on its own node alone. Here each pipeline may use all CPUs that the
workers of its node leave. Two pipelines of a node (training and evaluation) may both do so; Ray
queues what does not fit, and a pipeline whose buffer is full asks for nothing.

Ray has no setting for this: `use` replaces a private function of Ray Data in its own process. It
was checked against Ray 2.60, and tests/test_pipeline_data_budget.py fails when Ray changes it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.data import ExecutionResources
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# the label that Ray gives each node
NODE_ID = "ray.io/node-id"
# Ray Data looks for finished tasks every 0.1 s. With one task more for each CPU, which waits in
# Ray's own queue, the next one starts at once: tasks of 0.33 s then keep the CPUs busy for 0.91 of
# the time, and not for 0.61
TASKS_PER_CPU = 2
# seconds until the nodes of the cluster are looked up again: they come and go
REFRESH_S = 10.0


@dataclass(frozen=True, kw_only=True)
class NodeBudget:
    """Where the pipelines of a node run, and what they may use there."""

    node: str
    """Ray's id of the node whose workers are fed."""
    reserved_cpus: float = 0.0
    """CPUs that these workers reserve on it."""
    decode_on: str | None = None
    """KEY=VALUE, the label of the nodes that decode; None is the node itself."""
    feeds: int = 1
    """Nodes that are fed, which share the nodes that decode."""

    @property
    def label(self) -> tuple[str, str]:
        """The label of the nodes that decode, and its value."""
        if self.decode_on is None:
            return NODE_ID, self.node
        key, _, value = self.decode_on.partition("=")
        return key, value

    @property
    def placement(self) -> dict[str, object]:
        """Ray's options for the tasks.

        A node's own tasks wait for a CPU of it even if another node has one free, but run elsewhere
        as soon as Ray drains it because it goes away.
        """
        if self.decode_on is None:
            return {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.node, soft=True)}
        return {"label_selector": dict([self.label])}

    def resources(self, nodes: Sequence[Mapping]) -> ExecutionResources:
        """What the pipelines may use, given `ray.nodes()`; ValueError if that is nothing."""
        key, value = self.label
        chosen = [node for node in nodes if node["Alive"] and node["Labels"].get(key) == value]
        if not chosen:
            raise ValueError(
                f"data.decode_on ({self.decode_on}): no node of the cluster has this label; start "
                f"such nodes with ray start --labels {key}={value}, or leave it out"
            )
        cpus = sum(node["Resources"].get("CPU", 0) for node in chosen)
        memory = sum(node["Resources"].get("object_store_memory", 0) for node in chosen)
        if self.decode_on is None:
            cpus -= self.reserved_cpus
        else:
            cpus, memory = cpus // self.feeds, memory // self.feeds
            # several feeds may take turns on one CPU, and an autoscaler may add nodes
            cpus = max(1, cpus)
        if cpus < 1:
            raise ValueError(
                f"the workers on node {self.node[:12]} reserve {self.reserved_cpus:g} of its CPUs, "
                f"which leaves {cpus:g} to read and decode; at least 1 must be left: lower "
                f"worker_cpus or the workers per node, or set data.decode_on to other nodes"
            )
        return ExecutionResources(cpu=cpus, object_store_memory=memory)


class FixedResources(ClusterAutoscaler):
    """Tells Ray Data's scheduler what it may use; it asks nobody, and starts no nodes."""

    def __init__(self, budget: NodeBudget) -> None:
        self._budget, self._looked_up = budget, -REFRESH_S
        self._resources = ExecutionResources.zero()

    def get_total_resources(self) -> ExecutionResources:
        """The budget on the nodes of this moment."""
        if time.monotonic() - self._looked_up >= REFRESH_S:
            found = self._budget.resources(ray.nodes())
            self._resources = found.copy(cpu=TASKS_PER_CPU * found.cpu)
            self._looked_up = time.monotonic()
        return self._resources

    def try_trigger_scaling(self) -> None:
        """Nothing: the nodes are those of the workers, or the user's own."""

    def on_executor_shutdown(self) -> None:
        """Nothing to give back."""


def use(budget: NodeBudget) -> None:
    """Give every dataset that this process runs from now on the budget."""
    name = "create_cluster_autoscaler"
    if not hasattr(streaming_executor, name):
        raise RuntimeError(f"Ray {ray.__version__} has no {name}; pipeline/data/budget.py needs it")
    setattr(streaming_executor, name, lambda *_, **__: FixedResources(budget))
