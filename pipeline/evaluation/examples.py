"""Example predictions with the crops they were made from, for people to look at.

Predictions -> choice of informative images -> read again -> small JPEGs in sheet.json
"""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.dataset import Dataset
from pipeline.data.reader import SampleReader
from pipeline.evaluation.config import CENTER, EvaluateConfig
from pipeline.evaluation.metrics import Predictions
from pipeline.evaluation.predict import view_of
from shards.dataset import wordnet
from support.files import write_bytes
from vit.images import decode
from vit.registry import num_views

EXAMPLES = "sheet.json"
# images per group, crops shown per protocol, and their side in pixels
PER_GROUP, MAX_CROPS, SIDE = 6, 10, 64
GROUPS = {
    "gained": "wrong with one crop, right with many",
    "lost": "right with one crop, wrong with many",
    "wrong": "wrong with the highest confidence",
    "right": "right, drawn at random",
}


def chosen(one: Predictions, many: Predictions) -> Iterator[tuple[str, int]]:
    """(group, position) of the images to show, without repeats; the choice is deterministic.

    Images that could not be read have no predictions, and are not shown.
    """
    before, after = one.hits(1), many.hits(1)
    order = np.argsort(-many.confidence, kind="stable")
    order = order[many.top[order, 0] >= 0]
    random = np.random.default_rng(0).permutation(len(after))
    members = {
        "gained": order[~before[order] & after[order]],
        "lost": order[before[order] & ~after[order]],
        "wrong": order[~before[order] & ~after[order]],
        "right": random[before[random] & after[random]],
    }
    for group in GROUPS:
        for position in members[group][:PER_GROUP]:
            yield group, int(position)


def write_examples(
    folder: Path, dataset: Dataset, settings: EvaluateConfig, predictions: dict[str, Predictions]
) -> None:
    """Write sheet.json: each chosen image, its classes, and crops and predictions per protocol."""
    protocols = settings.protocols
    reader = SampleReader(dataset=dataset, view=view_of(settings))
    ends = np.cumsum([num_views(name) for name in protocols])[:-1]
    order, entries = dataset.order(seed=None), []
    for group, position in chosen(predictions[CENTER], predictions[protocols[-1]]):
        ((_, shard, record),) = reader.samples(order.spans(position, position + 1))
        pixels = decode(record.image)
        crops = np.split(reader.view(pixels, position), ends)
        entries.append(
            {
                "group": group,
                "key": record.key,
                "shard": shard,
                "classes": [class_label(dataset.classes[n]) for n in record.classes],
                "image": encoded(pixels, 2 * SIDE),
                "protocols": {
                    name: protocol_entry(dataset, predictions[name], position, views)
                    for name, views in zip(protocols, crops, strict=True)
                },
            }
        )
    # not redacted: an image in base64 may look like a token
    write_bytes(folder / EXAMPLES, json.dumps(entries).encode())


def protocol_entry(
    dataset: Dataset, predictions: Predictions, position: int, views: np.ndarray
) -> dict[str, object]:
    """Prediction and crops of one image under one protocol; views (C, S, S, 3)."""
    return {
        "right": bool(predictions.hits(1)[position]),
        "confidence": float(predictions.confidence[position]),
        "top": [class_label(dataset.classes[n]) for n in predictions.top[position] if n >= 0],
        "views": len(views),
        "crops": encoded(row_of(views), SIDE),
    }


def first_name(wnid: str) -> str:
    """The first WordNet name of a class, or its id if it has no name."""
    return wordnet.name(wnid).split(",")[0]


def class_label(wnid: str) -> str:
    """The first WordNet name of a class, with its id."""
    name = first_name(wnid)
    return wnid if name == wnid else f"{name} ({wnid})"


def row_of(views: np.ndarray) -> np.ndarray:
    """At most 10 of the views side by side: (C, S, S, 3) -> (S, c S, 3)."""
    picked = np.linspace(0, len(views) - 1, min(len(views), MAX_CROPS)).round().astype(int)
    return np.concatenate(list(views[picked]), axis=1)


def encoded(pixels: np.ndarray, height: int) -> str:
    """A small JPEG of the pixels, in base64."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    width = max(1, round(image.width * height / image.height))
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
