"""What a node's pipelines may use, and that Ray Data goes by it."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import ray
from ray.data._internal.execution import resource_manager, streaming_executor

from pipeline.data import budget as node_budget
from pipeline.data.budget import NodeBudget

GIB = 2**30


def node(name: str, cpus: int, alive: bool = True, **labels: str) -> dict:
    return {
        "Alive": alive,
        "Resources": {"CPU": cpus, "object_store_memory": cpus * GIB},
        "Labels": {"ray.io/node-id": name, **labels},
    }


NODES = [
    node("a", 96),
    node("b", 96),
    *(node(f"c{n}", 32, pool="decode") for n in range(3)),
    node("d", 32, alive=False, pool="decode"),
]


def test_a_node_decodes_with_all_that_its_workers_leave():
    budget = NodeBudget(node="a", reserved_cpus=8)
    assert budget.label == ("ray.io/node-id", "a")
    found = budget.resources(NODES)
    assert (found.cpu, found.object_store_memory) == (88, 96 * GIB)


def test_labelled_nodes_are_divided_among_the_feeds():
    budget = NodeBudget(node="a", reserved_cpus=96, decode_on="pool=decode", feeds=2)
    assert budget.placement == {"label_selector": {"pool": "decode"}}
    found = budget.resources(NODES)
    assert (found.cpu, found.object_store_memory) == (48, 48 * GIB)
    assert NodeBudget(node="a", decode_on="pool=decode", feeds=1000).resources(NODES).cpu == 1


def test_a_node_without_free_cpus_and_a_label_that_no_node_has_are_refused():
    with pytest.raises(ValueError, match=r"reserve 95\.5 .* leaves 0\.5 "):
        NodeBudget(node="a", reserved_cpus=95.5).resources(NODES)
    with pytest.raises(ValueError, match=r"decode_on \(pool=other\)"):
        NodeBudget(node="a", decode_on="pool=other").resources(NODES)


@pytest.mark.ray
def test_two_pipelines_of_a_node_may_each_use_all_that_is_left(ray_cluster, monkeypatch):
    """Fails when Ray Data no longer asks the function that is replaced."""
    monkeypatch.setattr(  # so that this process has Ray's own again afterwards
        streaming_executor,
        "create_cluster_autoscaler",
        streaming_executor.create_cluster_autoscaler,
    )
    limits, both = {}, threading.Barrier(2, timeout=60)
    ask = resource_manager.ResourceManager.get_global_limits

    def get_global_limits(self) -> object:
        found = ask(self)
        limits.setdefault(id(self), []).append(found.cpu)
        return found

    monkeypatch.setattr(resource_manager.ResourceManager, "get_global_limits", get_global_limits)
    node_budget.use(NodeBudget(node=ray.get_runtime_context().get_node_id(), reserved_cpus=1))

    def run() -> None:
        data = ray.data.range(4, override_num_blocks=4)
        for number, _ in enumerate(data.iter_internal_ref_bundles()):
            if not number:
                both.wait()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(limits) == 2 and {cpus for found in limits.values() for cpus in found} == {2 * 3.0}


# its own process: Ray's cluster utility starts several nodes on this machine
SCRIPT = """
import json, sys, time
import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from pipeline.data import feed
from pipeline.data.budget import NodeBudget
from pipeline.data.feed import NodeFeed
from pipeline.data.order import Order
from pipeline.data.stream import Stream

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=2)
cluster.add_node(num_cpus=2, labels={"pool": "decode"})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
cluster.wait_for_nodes()


def reader(spans):
    rows = np.concatenate([p + np.arange(n) for p, n in zip(spans.position, spans.count)])
    where = np.array([ray.get_runtime_context().get_node_id()] * len(rows))
    # large enough for the object store
    return {"position": rows, "node": where, "images": np.zeros((len(rows), 2**18), np.uint8)}


@ray.remote(num_cpus=0)
def take(decode_on):
    node = ray.get_runtime_context().get_node_id()
    actor = feed.start(NodeBudget(node=node, decode_on=decode_on), 1)
    end = NodeFeed(actor=actor, ranks=range(1), rank=0, world_size=1)
    order = Order(counts=np.full(100, 4), seed=0)
    stream = Stream(
        reader=reader, order=order, ranges=[(0, 400)], task_samples=20, buffer_gib=0.05
    )
    actor.open.remote(0, stream)
    decoded, stored, refs = set(), set(), []
    while refs := ray.get(actor.take.remote(0, 0)):
        locations = ray.experimental.get_object_locations(refs)[refs[0]]["node_ids"]
        stored.update(locations)
        decoded.update(feed.columns(ray.get(refs[0]))["node"].tolist())
    return node, sorted(decoded), sorted(stored)


nodes = [node["NodeID"] for node in ray.nodes()]
labelled = [node["NodeID"] for node in ray.nodes() if node["Labels"].get("pool") == "decode"]
found = [
    ray.get(
        take.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(decode_on)
    )
    for node in nodes
    for decode_on in (None, "pool=decode")
]
# the last node goes away: its feed is not stopped yet, and needs samples
gcs = ray._raylet.GcsClient(address=cluster.address)
budget = NodeBudget(node=nodes[2])
actor = feed.start(budget, 1)
ray.get(actor.__ray_ready__.remote())
deadline_ms = int(1000 * (time.time() + 300))
gcs.drain_node(nodes[2], DRAIN_NODE_REASON_PREEMPTION, "a test", deadline_ms)
while nodes[2] not in ray._private.state.state.get_draining_nodes():
    time.sleep(0.1)
order = Order(counts=np.full(100, 4), seed=0)
ranges = [(0, 400)]
stream = Stream(reader=reader, order=order, ranges=ranges, task_samples=20, buffer_gib=0.05)
actor.open.remote(0, stream)
elsewhere = set()
while refs := ray.get(actor.take.remote(0, 0)):
    elsewhere.update(feed.columns(ray.get(refs[0]))["node"].tolist())
print(json.dumps([labelled, found, nodes[2] in elsewhere]))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_blocks_are_decoded_and_stored_on_the_node_or_on_those_with_the_label():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    labelled, found, decoded_on_drained = json.loads(result.stdout.splitlines()[-1])
    assert not decoded_on_drained
    assert len(found) == 6
    for place, (own, decoded, stored) in enumerate(found):
        assert decoded == (labelled if place % 2 else [own])
        if not place % 2:
            assert stored == [own]
    assert np.unique([own for own, _, _ in found]).size == 3
