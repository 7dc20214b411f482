"""A cluster file: what Ray's cluster launcher needs to know of machines, and what they cost.

    ClusterFile.open("cluster.yaml") -> checked by Ray's own schema and defaults

Beyond Ray's schema, `metadata` holds `gpu` (a kind that `train --plan-gpu` knows) and
`price_per_hour` (US dollars by node type), from which a launch estimates the cost.
"""

import contextlib
import copy
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jsonschema
import yaml
from ray.autoscaler._private import util

from pipeline.settings.gpus import GPUS

# its messages are about defaults that it fills in
logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)

LOCAL = "local"  # Ray's word for machines that are there: nothing is rented or given back


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of machine in a cluster file."""

    name: str
    machine: str
    """What the provider calls the machine."""
    least: int
    """Nodes that are always there."""
    most: int
    """Nodes that the autoscaler may start."""
    gpus: int
    """GPUs of a node."""
    price: float | None
    """US dollars for an hour of a node; None if the file does not say."""


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """A cluster file that Ray accepts."""

    path: Path
    config: Mapping[str, Any]
    """The content, with Ray's defaults."""

    @classmethod
    def open(cls, location: str) -> "ClusterFile":
        """Read and check a file; ValueError if Ray would not accept it."""
        path = Path(location)
        if not path.is_file():
            raise FileNotFoundError(
                f"cluster file {location} does not exist; copy cluster.yaml, or a file of clusters/"
            )
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"cluster file {location} is not YAML: {error}") from error
        if isinstance(content, dict) and "apiVersion" in content:
            raise ValueError(
                f"{location} is a Kubernetes manifest, not a file of Ray's cluster launcher: "
                f"use kubectl apply -f {location}"
            )
        cluster = cls(path=path, config=prepared(content, location))
        cluster._check_metadata()
        return cluster

    @property
    def name(self) -> str:
        """Name of the cluster."""
        return self.config["cluster_name"]

    @property
    def provider(self) -> str:
        """Who provides the machines: aws, gcp, local, ..."""
        return self.config["provider"]["type"]

    @property
    def gpu(self) -> str | None:
        """Kind of GPU of the workers."""
        return self._metadata.get("gpu")

    @property
    def worker_addresses(self) -> list[str]:
        """Addresses of the workers that the file lists; empty where a cloud gives them."""
        return list(self.config["provider"].get("worker_ips", ()))

    def node_types(self) -> list[NodeType]:
        """The kinds of machines, the head first; none where the machines are the user's own."""
        if self.provider == LOCAL:
            return []
        types, head = self.config["available_node_types"], self.config["head_node_type"]
        return [
            self._node_type(name, types[name], is_head=name == head)
            for name in sorted(types, key=lambda name: name != head)
        ]

    def _node_type(self, name: str, fields: Mapping, *, is_head: bool) -> NodeType:
        node, workers = fields["node_config"], self.config["max_workers"]
        return NodeType(
            name=name,
            machine=node.get("InstanceType") or node.get("machineType") or "machine",
            least=1 if is_head else fields.get("min_workers", 0),
            most=1 if is_head else min(fields.get("max_workers", workers), workers),
            gpus=int(fields.get("resources", {}).get("GPU", 0)),
            price=self._metadata.get("price_per_hour", {}).get(name),
        )

    @property
    def _metadata(self) -> Mapping[str, Any]:
        return self.config.get("metadata") or {}

    def check_mounts(self) -> None:
        """Raise FileNotFoundError if a file that goes to the machines is not here."""
        for target, source in self.config["file_mounts"].items():
            if not Path(source).expanduser().exists():
                raise FileNotFoundError(
                    f"cluster file {self.path}: file_mounts: {source} (for {target}) does not "
                    f"exist here; its paths are relative to the folder in which the command is "
                    f"started: start it in the project's folder"
                )

    def _check_metadata(self) -> None:
        """Raise ValueError if the facts for the estimate are not what they must be."""
        if self.gpu is not None and self.gpu not in GPUS:
            raise ValueError(
                f"cluster file {self.path}: metadata.gpu ({self.gpu}) must be one of "
                f"{', '.join(GPUS)}"
            )
        for name, price in self._metadata.get("price_per_hour", {}).items():
            if not isinstance(price, int | float) or price < 0:
                raise ValueError(
                    f"cluster file {self.path}: metadata.price_per_hour.{name} ({price}) must be "
                    f"US dollars, 0 or more"
                )


def prepared(content: object, location: str) -> dict[str, Any]:
    """The content of a cluster file with Ray's defaults; ValueError if Ray does not accept it."""
    try:
        # before Ray's defaults are there, one check of this call cannot pass
        with contextlib.suppress(RuntimeError):
            util.validate_config(content)
        with contextlib.redirect_stdout(io.StringIO()):  # Ray's advice about Docker
            config = util.prepare_config(copy.deepcopy(content))
        util.validate_config(config)
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the file"
        raise ValueError(f"cluster file {location}: {place}: {error.message}") from error
    except (ValueError, KeyError, TypeError, NotImplementedError, click.ClickException) as error:
        raise ValueError(f"cluster file {location} is not accepted by Ray: {error}") from error
    return config
