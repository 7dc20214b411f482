"""How many workers the nodes of a cluster can hold, and what a run says while it waits."""

import contextlib

import pytest

from pipeline.cluster import autoscaler
from pipeline.cluster.autoscaler import NodeType, brief, possible_resources
from pipeline.settings.presets import find_preset
from pipeline.train import capacity
from pipeline.train.capacity import Capacity, fitting_workers

DEMO = find_preset("demo")
GPU = {"GPU": 8.0, "CPU": 96.0}
HEAD = {"CPU": 0.0}

V1 = """======== Autoscaler status: 2026-01-01 00:00:00 ========
Node status
---------------------------------------------------------------
Active:
 1 head
Pending:
 gpu, 2 launching
 10.0.0.7: gpu, setting-up
Recent failures:
 gpu: InsufficientInstanceCapacity (latest_attempt: 14:56:12)

Resources
---------------------------------------------------------------
Total Usage:
 0.0/6.0 CPU
"""


class Cluster:
    """Nodes that come while a run waits, and what the autoscaler is asked for."""

    def __init__(self, monkeypatch, nodes, *, types=(), coming=(), draining=()):
        self.nodes, self.coming, self.asked = list(nodes), list(coming), []
        self.draining = set(draining)
        for name, value in (
            ("node_types", lambda: list(types)),
            ("report", lambda: "starting: gpu, 2 launching"),
            ("requested", self.requested),
        ):
            monkeypatch.setattr(autoscaler, name, value)
        monkeypatch.setattr(capacity, "draining", lambda: self.draining)
        monkeypatch.setattr(capacity, "alive", lambda: dict.fromkeys(range(len(self.nodes))))
        monkeypatch.setattr(capacity.time, "sleep", self.pass_time)
        monkeypatch.setattr(capacity.ray, "nodes", self.described)
        monkeypatch.setattr(capacity.ray, "cluster_resources", self.resources)

    def requested(self, each, workers):
        self.asked.append((each, workers))
        return contextlib.nullcontext()

    def pass_time(self, _):
        if self.coming:
            self.nodes.append(self.coming.pop(0))

    def described(self):
        return [
            {"NodeID": number, "Alive": True, "Resources": resources}
            for number, resources in enumerate(self.nodes)
        ]

    def resources(self):
        names = {name for node in self.nodes for name in node}
        return {name: sum(node.get(name, 0) for node in self.nodes) for name in names}


def never():
    return False


def test_workers_are_counted_node_by_node():
    each = {"GPU": 1, "CPU": 4}
    assert fitting_workers(each, [GPU, GPU, HEAD], 64) == 16
    assert fitting_workers(each, [GPU, GPU, HEAD], 12) == 12
    assert fitting_workers({"GPU": 1, "CPU": 40}, [GPU], 64) == 2


def test_a_node_that_goes_away_or_is_gone_holds_none(monkeypatch):
    cluster = Cluster(monkeypatch, [HEAD, GPU, GPU])
    run = Capacity(DEMO.replace({"workers": 16, "min_workers": 1, "device": "gpu"}))
    assert run.now() == 16
    cluster.draining.add(2)
    assert run.now() == 8
    nodes = cluster.described()
    nodes[1]["Alive"] = False
    monkeypatch.setattr(capacity.ray, "nodes", lambda: nodes)
    assert run.now() == 0


def test_a_cluster_of_a_head_alone_becomes_what_its_autoscaler_can_start(monkeypatch):
    types = [NodeType(resources=HEAD, most=0), NodeType(resources=GPU, most=2)]
    cluster = Cluster(monkeypatch, [HEAD], types=types, coming=[GPU])
    assert possible_resources(types) == {"GPU": 16, "CPU": 192}
    run = Capacity(DEMO.replace({"workers": 8}))
    assert run.each == {"GPU": 1, "CPU": 1}  # and not the CPUs that are there
    assert run.wait(never) == 8
    assert cluster.asked == [(run.each, 8)]


def test_an_elastic_run_starts_with_what_is_there_and_asks_for_what_there_can_be(monkeypatch):
    types = [NodeType(resources=GPU, most=2)]
    cluster = Cluster(monkeypatch, [HEAD], types=types, coming=[GPU])
    run = Capacity(DEMO.replace({"workers": 64, "min_workers": 2}))
    assert run.wait(never) == 8
    assert cluster.asked == [(run.each, 16)]
    assert run.missing(8) == 8


def test_a_run_whose_workers_fit_asks_for_nothing(monkeypatch):
    cluster = Cluster(monkeypatch, [GPU])
    run = Capacity(DEMO.replace({"workers": 8}))
    assert (run.wait(never), run.missing(8), cluster.asked) == (8, 0, [])


def test_a_run_says_every_minute_what_it_waits_for(monkeypatch, caplog):
    caplog.set_level("INFO")
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(capacity.time, "monotonic", lambda: next(clock))
    cluster = Cluster(monkeypatch, [HEAD, GPU], coming=[{}] * 20 + [GPU], draining={1})
    run = Capacity(DEMO.replace({"workers": 8, "device": "gpu"}))
    assert run.wait(never) == 8
    first = caplog.messages[0]
    assert "8 workers need 1 GPU, 1 CPU each, and 0 of them fit on the nodes that are" in first
    assert "(2, 1 of which go away). Autoscaler" in first
    assert "Autoscaler: starting: gpu, 2 launching" in first
    lines = [line for line in caplog.messages if "for nodes" in line]
    assert 3 <= len(lines) <= 5
    assert not cluster.coming


def test_a_run_that_is_stopped_waits_no_longer(monkeypatch):
    Cluster(monkeypatch, [HEAD])
    assert Capacity(DEMO.replace({"device": "gpu"})).wait(lambda: True) == 0


def test_nodes_of_unknown_resources_are_awaited_before_the_devices_are_chosen(monkeypatch):
    types = [NodeType(resources={}, most=2)]
    Cluster(monkeypatch, [{"CPU": 8.0}], types=types, coming=[GPU, GPU])
    assert Capacity(DEMO).each == {"GPU": 1, "CPU": 1}
    monkeypatch.setattr(capacity, "UNKNOWN_S", 0.0)
    Cluster(monkeypatch, [{"CPU": 8.0}], types=types)
    assert Capacity(DEMO).each == {"CPU": 2}


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (
            V1,
            "starting: gpu, 2 launching; 10.0.0.7: gpu, setting-up. "
            "failed: gpu: InsufficientInstanceCapacity (latest_attempt: 14:56:12)",
        ),
        (
            "Pending:\n (no pending nodes)\nRecent failures:\n (no failures)\n\nResources\n",
            "no node is starting",
        ),
        ("No cluster status.", "no node is starting"),
    ],
)
def test_the_status_of_ray_is_told_in_a_line(status, text):
    assert brief(f"\n{status}") == text
