"""What a cluster costs, before it starts: an hour of it, and a whole run on it."""

import math
from collections.abc import Iterable

from pipeline.launch.cluster_file import LOCAL, ClusterFile, NodeType
from pipeline.settings.budget import Budget
from pipeline.settings.config import TrainConfig
from support.console import duration, table


def estimate(cluster: ClusterFile, config: TrainConfig | None) -> str:
    """The prices of a cluster in words, and of the run with these settings, if it is known."""
    if cluster.provider == LOCAL:
        return "machines    your own: nothing is rented"
    types = cluster.node_types()
    header = ["node type", "machine", "nodes", "$ an hour each"]
    rows = [[kind.name, kind.machine, numbers(kind), dollars(kind.price)] for kind in types]
    least = total((kind, kind.least) for kind in types)
    most = total((kind, kind.most) for kind in types)
    lines = [table([header, *rows]), ""]
    lines.append(f"an hour     {dollars(least)} when idle, {dollars(most)} at most")
    if config:
        lines.append(run_estimate(cluster, types, config))
    return "\n".join(lines)


def run_estimate(cluster: ClusterFile, types: list[NodeType], config: TrainConfig) -> str:
    """Nodes, hours and dollars of a run."""
    gpu_type = next((kind for kind in types if kind.gpus), None)
    if not gpu_type or not cluster.gpu or config.device == "cpu":
        return "the run     not estimated: give metadata.gpu and a node type with GPUs"
    workers = config.min_workers or config.workers
    if (nodes := math.ceil(workers / gpu_type.gpus)) > gpu_type.most:
        raise ValueError(
            f"workers ({workers}) need {nodes} nodes of type {gpu_type.name} with "
            f"{gpu_type.gpus} GPUs, and {cluster.path} allows {gpu_type.most}: raise max_workers "
            f"there, or use fewer workers"
        )
    nodes = min(math.ceil(config.workers / gpu_type.gpus), gpu_type.most)
    config = config.replace({"workers": min(config.workers, nodes * gpu_type.gpus)})
    try:
        budget = Budget(config, gpu=cluster.gpu)
    except OSError as error:
        return f"the run     not estimated: {config.data.dir} cannot be read from here ({error})"
    hour = total((kind, nodes if kind is gpu_type else kind.least) for kind in types)
    machines = f"{nodes} x {gpu_type.machine}"
    if budget.unknown:
        return f"the run     {budget.steps:,} steps on {machines}; time unknown: {budget.unknown}"
    cost = None if hour is None else hour * budget.seconds / 3600
    return (
        f"the run     {budget.steps:,} steps, data {budget.origin}\n"
        f"            {machines} for {duration(budget.seconds)} at {budget.mfu:.0%} of "
        f"the peak of {cluster.gpu}: {dollars(hour)} an hour, {dollars(cost)} in all"
    )


def total(counts: Iterable[tuple[NodeType, int]]) -> float | None:
    """US dollars an hour of these numbers of nodes; None if a price is unknown."""
    prices = [(kind.price, count) for kind, count in counts if count]
    if any(price is None for price, _ in prices):
        return None
    return sum(price * count for price, count in prices)


def numbers(kind: NodeType) -> str:
    """How many nodes of a kind there may be."""
    return f"{kind.least}" if kind.least == kind.most else f"{kind.least} to {kind.most}"


def dollars(amount: float | None) -> str:
    """An amount in words; an unknown one is said to be unknown."""
    return "unknown" if amount is None else f"${amount:,.2f}"
