"""The autoscaler of a cluster: what it can start, what it is asked for, and what it says.

    cluster file on the head -> `node_types` -> what the cluster can become
    nodes that are missing -> `requested` -> Ray's coordinator of all requests -> nodes, in minutes
    `ray status` -> `report` -> a line for the console

Ray tells a driver nothing about the cluster file, but the processes of its head name it. Where they
do not (Kubernetes), and where there is no autoscaler, the cluster is what it is now.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
import yaml
from ray._private.ray_constants import DEBUG_AUTOSCALING_ERROR, DEBUG_AUTOSCALING_STATUS
from ray.autoscaler._private.commands import debug_status
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    ResourceRequestPriority,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)

from support.threads import beside

log = logging.getLogger(__name__)

# seconds between two looks at the nodes, and between two lines that say what is waited for
LOOK_S, SAY_S = 1.0, 60.0
# how long nodes are waited for that an autoscaler may bring which cannot be seen
UNSEEN_S = 900.0
# a resource that Ray gives the head alone
HEAD = "node:__internal_head__"
# seconds between two requests, and those after which Ray forgets one
REQUEST_S, FORGET_S = 20.0, 180.0
# characters of an autoscaler's message that are shown
MAX_MESSAGE = 300

Resources = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of nodes of which the autoscaler can start some."""

    resources: Resources
    """Resources of a node; empty if only the node itself knows them, as with machines one owns."""
    most: int
    """Nodes of this type that there may be."""


def node_types() -> list[NodeType]:
    """What the autoscaler can start; empty if there is none, or none that can be seen."""
    context = ray.get_runtime_context()
    heads = [node["NodeID"] for node in ray.nodes() if HEAD in node["Resources"] and node["Alive"]]
    if context.get_node_id() in heads:
        files = cluster_files(context.gcs_address)
    else:
        files = ray.get(_cluster_files.remote(context.gcs_address))
    return [
        NodeType(
            resources=node.get("resources") or {},
            most=node.get("max_workers", file["max_workers"]),
        )
        for file in files
        for node in file["available_node_types"].values()
    ]


def possible_resources(types: Sequence[NodeType]) -> Resources:
    """Resources by name of the cluster, now or once the autoscaler has started all it can."""
    now, later = Counter(ray.cluster_resources()), Counter()
    for one in types:
        for name, amount in one.resources.items():
            later[name] += amount * one.most
    return now | later


def cluster_files(gcs_address: str) -> list[dict]:
    """On the head: the cluster files that the autoscalers of this cluster were started with."""
    option, files = "--autoscaling-config=", []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if f"--gcs-address={gcs_address}" in arguments:
            files += [one.removeprefix(option) for one in arguments if one.startswith(option)]
    return [yaml.safe_load(Path(file).expanduser().read_text()) for file in files]


_cluster_files = ray.remote(num_cpus=0, resources={HEAD: 0.001})(cluster_files)


def possible_nodes() -> list[Resources]:
    """Resources of the nodes that are alive, and of one of each type that can be started.

    Waits until there is one with CPUs: what some nodes have, only they themselves know. Raises
    RuntimeError if none comes, and no autoscaler can be seen that could start one.
    """
    types, due_s = node_types(), time.monotonic()
    deadline = due_s + UNSEEN_S
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes += [one.resources for one in types if one.most]
        if any(node.get("CPU") for node in nodes):
            return nodes
        if not types and time.monotonic() > deadline:
            raise RuntimeError("no node of the cluster has CPUs; add nodes, or start an autoscaler")
        if time.monotonic() >= due_s:
            log.info("waiting   for nodes with CPUs. Autoscaler: %s", report())
            due_s += SAY_S
        time.sleep(LOOK_S)


@contextlib.contextmanager
def requested(each: Resources, workers: int) -> Iterator[None]:
    """During the block: ask for nodes that hold workers of these resources, besides all others.

    Ray Train asks for the workers that it starts itself.
    """
    if workers < 1:
        yield
        return
    coordinator, name = get_or_create_autoscaling_coordinator(), f"pipeline-{uuid.uuid4().hex}"

    def ask(closing: threading.Event) -> None:
        while True:
            coordinator.request_resources.remote(
                requester_id=name,
                resources=[dict(each)] * workers,
                expire_after_s=FORGET_S,
                # what is there is for those that run
                priority=ResourceRequestPriority.LOW,
            )
            if closing.wait(REQUEST_S):
                break
        coordinator.cancel_request.remote(name)

    with beside(ask, "autoscaler"):
        yield


def report() -> str:
    """What the autoscaler is starting, and what it could not start lately, as `ray status` says."""
    address = ray.get_runtime_context().gcs_address
    gcs = ray._raylet.GcsClient(address=address)
    keys = (DEBUG_AUTOSCALING_STATUS, DEBUG_AUTOSCALING_ERROR)
    status, error = (gcs.internal_kv_get(key.encode()) for key in keys)
    return brief(debug_status(status, error, verbose=True, address=address))


def brief(status: str) -> str:
    """The parts of `ray status` about nodes that are to come."""
    rest, found = status.partition("\nPending:\n")[2], []
    for title, end in (("starting", "\nRecent failures:\n"), ("failed", "\n\nResources\n")):
        part, _, rest = rest.partition(end)
        lines = [line.strip()[:MAX_MESSAGE] for line in part.splitlines()]
        if lines := [line for line in lines if not line.startswith("(no ")]:
            found.append(f"{title}: {'; '.join(lines)}")
    return ". ".join(found) or "no node is starting"
