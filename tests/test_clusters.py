"""Cluster files pass the checks of Ray and of the clouds, and say what the launcher relies on."""

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.commands.train import Train
from pipeline.settings.gpus import GPUS
from support.command import parse

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "clusters" / "kubernetes.yaml"
FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "clusters").glob("*.yaml"))]
CLUSTERS = {
    str(path.relative_to(ROOT)): yaml.safe_load(path.read_text())
    for path in FILES
    if path != KUBERNETES
}
AWS, GCP = CLUSTERS["cluster.yaml"], CLUSTERS["clusters/gcp.yaml"]
CLOUDS = {name: c for name, c in CLUSTERS.items() if "available_node_types" in c}
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())

every_cluster = pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
every_cloud = pytest.mark.parametrize("cluster", CLOUDS.values(), ids=CLOUDS)


def start_command(cluster, kind):
    """The line that starts Ray on the head or on a worker."""
    (line,) = [line for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line]
    return line


@every_cluster
def test_ray_accepts_the_file(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))


@every_cluster
def test_ray_refuses_a_misspelt_field(cluster):
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config({**copy.deepcopy(cluster), "setup_comands": []}))


@every_cluster
def test_the_head_takes_no_tasks(cluster):
    if "available_node_types" in cluster:
        assert cluster["head_node_type"] == "head"
        assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}
    else:
        assert re.search(r"--num-cpus[= ]0\b", start_command(cluster, "head"))


@every_cloud
def test_workers_are_spot_machines_with_labels_and_the_head_is_not(cluster):
    types = cluster["available_node_types"]
    assert types.keys() == {"head", "gpu", "cpu"}
    for name, node in types.items():
        config = node["node_config"]
        market = config.get("InstanceMarketOptions", {}).get("MarketType")
        is_spot = "spot" in (
            market,
            config.get("scheduling", {}).get("provisioningModel", "").lower(),
        )
        assert is_spot == (name != "head") == (node.get("labels", {}).get("market-type") == "spot")
    assert types["cpu"]["labels"]["role"] == "decode"


@every_cloud
def test_gpu_nodes_come_and_go_and_others_only_if_asked_for(cluster):
    types = cluster["available_node_types"]
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"]
    assert types["cpu"]["min_workers"] == types["cpu"]["max_workers"] == 0
    assert cluster["max_workers"] == types["gpu"]["max_workers"] + types["cpu"]["max_workers"]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start_command(cluster, "head")
    assert not cluster["provider"]["cache_stopped_nodes"]


@every_cloud
def test_what_is_the_same_on_all_clouds_does_not_differ(cluster):
    names = [name for name in AWS if name.endswith("_commands")] + ["file_mounts"]
    assert {name: cluster[name] for name in names} == {name: AWS[name] for name in names}


@every_cluster
def test_every_node_has_the_token_and_asks_for_it(cluster):
    mounts = [
        (remote, local) for remote, local in cluster["file_mounts"].items() if "token" in remote
    ]
    ((remote, local),) = mounts
    assert remote.endswith("/.ray/auth_token") and local == "~/.ray/auth_token"
    for kind in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in start_command(cluster, kind)


@every_cluster
def test_nodes_get_the_tested_versions_and_not_the_project(cluster):
    mounts = cluster["file_mounts"]
    (constraints,) = [remote for remote, local in mounts.items() if local == "constraints.txt"]
    install = [line for line in cluster["setup_commands"] if "pip install" in line]
    assert len(install) == 1 and f"-r {constraints}" in install[0]
    for local in mounts.values():
        assert local.startswith("~") or (ROOT / local).is_file()


@every_cluster
def test_the_dashboard_is_reached_through_ssh_alone(cluster):
    assert "--dashboard-host=127.0.0.1" in start_command(cluster, "head")


@every_cloud
def test_the_estimate_has_a_price_for_every_type_and_a_known_gpu(cluster):
    facts = cluster["metadata"]
    assert facts["gpu"] in GPUS
    assert facts["price_per_hour"].keys() == cluster["available_node_types"].keys()
    assert all(price > 0 for price in facts["price_per_hour"].values())


@every_cluster
def test_no_secret_is_in_the_file(cluster):
    text = json.dumps(cluster)
    assert not re.search(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|PRIVATE KEY|_credentials|secret", text)


def test_the_pins_cover_what_the_project_and_the_clouds_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [Requirement(r) for r in project["dependencies"] + extras["aws"] + extras["gcp"]]
    pins = {name.lower().replace("_", "-"): pin for name, pin in PINS.items()}
    for requirement in needed:
        assert pins[requirement.name] in requirement.specifier


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_in_the_files_are_accepted(path):
    if path == KUBERNETES:
        commands = [yaml.safe_load(path.read_text())["spec"]["entrypoint"]]
    else:
        text = re.sub(r" *\\\n# +", " ", path.read_text())
        commands = re.findall(r"^# +python -m pipeline launch \S+ -- (.*)", text, re.MULTILINE)
    for command in commands:
        words = shlex.split(command.removeprefix("python -m pipeline "))
        assert words[0] == "train"
        # on a cluster that has no GPU nodes yet, auto would train on CPUs
        assert parse("train", Train, words[1:]).config.device != "cpu"


# AWS


def run_instances(node):
    """The arguments with which Ray 2.60 calls RunInstances (AWSNodeProvider._create_node)."""
    filled_in = {
        "KeyName": "key",
        "SecurityGroupIds": ["sg-1"],
        "SubnetId": "subnet-1",
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": "vit"}]}
        ],
    }
    return {**node["node_config"], **filled_in, "MinCount": 1, "MaxCount": 2}


@pytest.mark.parametrize("name", AWS["available_node_types"])
def test_ec2_knows_the_fields_of_a_node(name):
    session = pytest.importorskip("botocore.session", reason="needs boto3: pip install '.[aws]'")
    from botocore.validate import ParamValidator

    service = session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    arguments = run_instances(AWS["available_node_types"][name])
    assert ParamValidator().validate(arguments, shape).generate_report() == ""
    misspelt = copy.deepcopy(arguments)
    misspelt["BlockDeviceMappings"][0]["Ebs"]["Volumesize"] = 1
    assert "Volumesize" in ParamValidator().validate(misspelt, shape).generate_report()


class Template(yaml.SafeLoader):
    """A template of CloudFormation, whose functions are tags."""


Template.add_multi_constructor("!", lambda loader, tag, node: f"{tag} {node.value}")


def test_the_template_makes_the_profiles_of_the_nodes_and_the_head_may_give_workers_theirs():
    template = yaml.load((ROOT / "clusters/access/aws.yaml").read_text(), Template)  # noqa: S506
    resources = template["Resources"]
    profiles = {
        part["Properties"]["InstanceProfileName"]: part["Properties"]["Roles"]
        for part in resources.values()
        if part["Type"] == "AWS::IAM::InstanceProfile"
    }
    assert profiles == {"vit-head": ["Ref HeadRole"], "vit-worker": ["Ref WorkerRole"]}
    for name, node in AWS["available_node_types"].items():
        profile = "vit-head" if name == "head" else "vit-worker"
        assert node["node_config"]["IamInstanceProfile"] == {"Name": profile}
    (policy,) = resources["HeadRole"]["Properties"]["Policies"]
    statements = policy["PolicyDocument"]["Statement"]
    (passing,) = [s for s in statements if s["Action"] == "iam:PassRole"]
    assert passing["Resource"] == "GetAtt WorkerRole.Arn"


# Google Cloud


def unknown_fields(value, schema, schemas):
    """Fields of a value that its schema in a discovery document does not have."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    if isinstance(value, list):
        for part in value:
            yield from unknown_fields(part, schema["items"], schemas)
    elif isinstance(value, dict) and "additionalProperties" not in schema:
        for name, part in value.items():
            if name not in schema["properties"]:
                yield name
            else:
                yield from unknown_fields(part, schema["properties"][name], schemas)


@pytest.mark.parametrize("name", GCP["available_node_types"])
def test_compute_engine_knows_the_fields_of_a_node(name):
    client = pytest.importorskip("googleapiclient", reason="needs pip install '.[gcp]'")
    folder = Path(client.__file__).parent / "discovery_cache" / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    node = GCP["available_node_types"][name]["node_config"]
    assert list(unknown_fields(node, schemas["Instance"], schemas)) == []
    node = copy.deepcopy(node)
    node["disks"][0]["initializeParams"]["diskSizeGB"] = 1
    assert list(unknown_fields(node, schemas["Instance"], schemas)) == ["diskSizeGB"]
