"""Commands on a cluster whose nodes come when they are asked for, and go when they are idle."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_cluster import FakeCluster, SoldOut

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLUSTER_FILE = Path(__file__).parent.parent / "cluster.yaml"
TIMEOUT_S = 600
SMALL = {
    "head": {"resources": {"CPU": 0}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 3}, "min_workers": 0, "max_workers": 2},
}

# its own process: the tests share another Ray
PLACE = """
import json, sys, time
import ray
from pipeline.settings.presets import find_preset
from pipeline.cluster.autoscaler import node_types
from pipeline.train.capacity import Capacity

ray.init(log_to_driver=False, logging_level="ERROR")
gpus = int(sys.argv[1])
assert not ray.cluster_resources().get("GPU")
capacity = Capacity(find_preset("demo").replace({"workers": gpus + 1}))
assert capacity.each == {"GPU": 1, "CPU": 1}
started = time.monotonic()
assert capacity.wait(lambda: False) == gpus + 1
facts = {
    "types": [[dict(one.resources), one.most] for one in node_types()],
    "labels": [node["Labels"] for node in ray.nodes() if node["Resources"].get("GPU")],
    "waited_s": time.monotonic() - started,
}
while sum(node["Alive"] for node in ray.nodes()) > 1:
    time.sleep(0.5)
print(json.dumps(facts))
"""
REPORT = """
import time
import ray
from pipeline.cluster.autoscaler import report, requested

ray.init(log_to_driver=False, logging_level="ERROR")
with requested({"CPU": 1}, 1):
    while "failed" not in (text := report()):
        time.sleep(0.5)
print(text)
"""


def node_types() -> dict:
    """Those of the cluster file, all of which come only when they are asked for."""
    types = yaml.safe_load(CLUSTER_FILE.read_text())["available_node_types"]
    return {name: {**node, "min_workers": 0} for name, node in types.items()}


def python(cluster: FakeCluster, *arguments: str) -> str:
    """What a process that joins the cluster prints."""
    result = subprocess.run(
        [sys.executable, *arguments],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout


def test_gpu_nodes_come_when_a_run_waits_for_them_and_go_when_they_are_idle():
    types = node_types()
    gpus = types["gpu"]["resources"]["GPU"]
    with FakeCluster(types) as cluster:
        facts = json.loads(python(cluster, "-c", PLACE, str(gpus)).splitlines()[-1])
    assert len(facts["labels"]) == 2  # one worker more than a node holds
    for labels in facts["labels"]:
        assert labels.items() >= types["gpu"]["labels"].items()
        assert labels["market-type"] == "spot"
    assert [gpus, types["gpu"]["max_workers"]] in [
        [resources.get("GPU"), most] for resources, most in facts["types"]
    ]


@pytest.mark.parametrize(
    ("v2", "words"), [(False, "InsufficientInstanceCapacity"), (True, "cpu: LaunchFailed")]
)
def test_no_capacity_is_told_as_far_as_ray_keeps_the_reason(v2, words):
    provider = f"{SoldOut.__module__}.{SoldOut.__name__}"
    with FakeCluster(SMALL, provider=provider, v2=v2) as cluster:
        assert words in python(cluster, "-c", REPORT)


def test_a_run_on_a_head_alone_waits_for_its_nodes_and_trains_on_them(tmp_path):
    runs = tmp_path / "runs"
    command = ["-m", "pipeline", "train", "demo", "--runs-dir", str(runs), "--epochs", "1"]
    command += ["--device", "cpu", "--worker-cpus", "2", "--crops", "center"]
    with FakeCluster(SMALL, idle_minutes=5) as cluster:
        console = python(cluster, *command)
    assert "2 workers need 2 CPU each, and 0 of them fit on the nodes that are there" in console
    assert "waiting   is over: 2 workers fit" in console
    records = (runs / "demo" / "metrics.jsonl").read_text().splitlines()
    assert {row["workers"] for row in map(json.loads, records) if row["kind"] == "train"} == {2}


def test_a_build_on_a_head_alone_gets_nodes(tmp_path, digits):
    archive = digits.parent / "digits.tar"
    out = tmp_path / "shards"
    with FakeCluster(SMALL, idle_minutes=5) as cluster:
        started = time.monotonic()
        python(cluster, "-m", "shards", "build", str(archive), "--out", str(out))
        assert time.monotonic() - started < TIMEOUT_S
    assert (out / "manifest.json").exists()
