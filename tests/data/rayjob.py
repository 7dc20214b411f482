"""Makes rayjob.json, a JSON Schema of KubeRay's RayJob, from the published definition.

    python tests/data/rayjob.py ray.io_rayjobs.yaml > tests/data/rayjob.json

The definition is ray-operator/config/crd/bases/ray.io_rayjobs.yaml of the repository
github.com/ray-project/kuberay, licence Apache-2.0; here of 2026-08-19, after v1.7.0, commit
feeaf72facab4881ba2b179248bb67315634e229. Kept are names, types, choices and required fields of what
a user writes; what is the same in several places stands once, in $defs.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import yaml

KEPT = ("type", "enum", "required", "minimum", "maximum")
SHORT = 60  # characters up to which a repeated part is not worth a reference


def condensed(node: dict) -> dict:
    """The part of a definition that a file can be checked against; no field may be misspelt."""
    found = {key: node[key] for key in KEPT if key in node}
    if node.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    if "properties" in node:
        found["properties"] = {name: condensed(part) for name, part in node["properties"].items()}
        found["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(node.get("additionalProperties"), dict):
        found["additionalProperties"] = condensed(node["additionalProperties"])
    if "items" in node:
        found["items"] = condensed(node["items"])
    return found


def shared(schema: dict) -> dict:
    """The same schema with its repeated parts in $defs."""
    texts = Counter()

    def count(node: dict) -> None:
        text = json.dumps(node, sort_keys=True)
        if isinstance(node.get("type"), str):  # a schema, and not the names of fields
            texts[text] += 1
        if texts[text] <= 1:
            for part in node.values():
                if isinstance(part, dict):
                    count(part)

    def referring(node: dict, *, top: bool = False) -> dict:
        text = json.dumps(node, sort_keys=True)
        if text in names and not top:
            return {"$ref": f"#/$defs/{names[text]}"}
        return {k: referring(v) if isinstance(v, dict) else v for k, v in node.items()}

    count(schema)
    repeated = [text for text, n in texts.items() if n > 1 and len(text) > SHORT]
    names = {text: f"d{number}" for number, text in enumerate(repeated)}
    defs = {name: referring(json.loads(text), top=True) for text, name in names.items()}
    return {**referring(schema, top=True), "$defs": defs}


if __name__ == "__main__":
    definition = yaml.safe_load(Path(sys.argv[1]).read_text())
    versions = {v["name"]: v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"]}
    del versions["v1"]["properties"]["status"]
    sys.stdout.write(json.dumps(shared(condensed(versions["v1"])), separators=(",", ":")) + "\n")
