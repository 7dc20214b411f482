"""The data of a run as MLflow's data sets, whose source `mlflow.data.get_source` opens.

event "dataset" -> one DatasetInput for each location: name, digest, source, number of samples
"""

import json
from collections.abc import Mapping

from mlflow.entities import Dataset, DatasetInput, InputTag

from pipeline.data.dataset import set_name

MAX_DIGEST = 36  # longest digest that MLflow takes


def dataset_inputs(event: Mapping) -> list[DatasetInput]:
    """The inputs of a run: one for each location; the digest is that of all of them together."""
    locations = event["source"].split(", ")
    first, _, split = event["name"].rpartition("/")
    names = [first, *(set_name(location) for location in locations[1:])]
    tags = [InputTag("mlflow.data.context", event["context"])]
    # MLflow counts rows of a set; the parts of several have not been counted one by one
    rows = "num_rows" if len(locations) == 1 else "num_rows_of_all_parts"
    profile = json.dumps({rows: event["samples"], "manifest_sha256": event["digest"]})
    inputs = []
    for place, (name, location) in enumerate(zip(names, locations, strict=True)):
        kind, source = source_of(location)
        if name in names[:place]:  # MLflow keeps one set of a name and digest
            name = f"{name}-{place + 1}"
        data = Dataset(
            name=f"{name}/{split}",
            digest=event["digest"][:MAX_DIGEST],
            source_type=kind,
            source=json.dumps(source),
            profile=profile,
        )
        inputs.append(DatasetInput(data, tags))
    return inputs


def source_of(location: str) -> tuple[str, dict[str, str]]:
    """MLflow's type of a source, and its facts; `load` of it gives a path on this machine.

    Credentials and options of a URI are left out: MLflow takes its own from the environment.
    """
    scheme, mark, rest = location.partition("://")
    if not mark:
        return "local", {"uri": location}
    place, _, _ = rest.partition("?")
    host, slash, path = place.partition("/")
    uri = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    if scheme == "file":
        return "local", {"uri": uri}
    return ("http", {"url": uri}) if scheme in ("http", "https") else (scheme, {"uri": uri})
