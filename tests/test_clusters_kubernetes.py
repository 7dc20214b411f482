"""The RayJob for Kubernetes has fields that KubeRay knows, and the structure of cluster.yaml."""

import copy
import json
from importlib.metadata import version
from pathlib import Path

import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parent.parent
AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB_TEXT = (ROOT / "clusters" / "kubernetes.yaml").read_text()
DOCKERFILE = (ROOT / "clusters" / "Dockerfile").read_text()
PACKAGES = ("support", "shards", "vit", "pipeline", "tune")

RAYJOB = yaml.safe_load(RAYJOB_TEXT)
# what `tests/data/rayjob.py` makes of KubeRay's own definition
DEFINITION = Draft7Validator(json.loads((ROOT / "tests/data/rayjob.json").read_text()))
# their fields are names that the user chooses
FREE = {"labels", "limits", "nodeSelector", "rayStartParams", "requests"}


def fields(node, path=()):
    """The path to each field that has a fixed name."""
    for key, part in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(node, dict) and (not path or path[-1] not in FREE):
            yield (*path, key)
        if isinstance(part, dict | list):
            yield from fields(part, (*path, key))


def test_kuberay_knows_every_field():
    assert [error.message for error in DEFINITION.iter_errors(RAYJOB)] == []


def test_a_misspelt_field_is_found_wherever_it_is():
    paths = list(fields(RAYJOB["spec"], ("spec",)))
    assert len(paths) > 50
    for path in paths:
        job = copy.deepcopy(RAYJOB)
        node = job
        for key in path[:-1]:
            node = node[key]
        node[f"{path[-1]}s"] = node.pop(path[-1])
        assert list(DEFINITION.iter_errors(job)), path


def test_the_kubernetes_cluster_has_the_same_structure():
    spec = RAYJOB["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == version("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] and RAYJOB["spec"]["shutdownAfterJobFinishes"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for name, group in groups.items():
        node = AWS["available_node_types"][name]
        assert group["labels"] == node["labels"]
        assert (group["minReplicas"], group["maxReplicas"]) == (
            node["min_workers"],
            node["max_workers"],
        )
        size = int(group["rayStartParams"]["object-store-memory"])
        assert size == node["resources"]["object_store_memory"]
        (volume,) = group["template"]["spec"]["volumes"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30 > size
    gpu = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(gpu["nvidia.com/gpu"]) == AWS["available_node_types"]["gpu"]["resources"]["GPU"]


def test_every_pod_has_the_image_that_is_built_and_the_account():
    spec = RAYJOB["spec"]["rayClusterSpec"]
    pods = [
        group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    (image,) = {container["image"] for pod in pods for container in pod["containers"]}
    assert f"-t {image} " in DOCKERFILE and f"-t {image} " in RAYJOB_TEXT
    assert {pod["serviceAccountName"] for pod in pods} == {"vit"}


def test_the_image_holds_the_tested_versions_and_every_package():
    assert "-r constraints.txt" in DOCKERFILE
    for package in PACKAGES:
        assert f"COPY {package} {package}\n" in DOCKERFILE
