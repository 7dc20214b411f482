"""One evaluation from a model to its result: at the end of every run, and by `evaluate`.

EvalModel + EvaluateConfig -> predictions of all images (resumed) -> metrics

FOLDER/result.json          figures of every protocol, what changed, confusions, calibration
FOLDER/classes.csv          accuracy of every class under every protocol
FOLDER/predictions.parquet  every image: key, classes, predictions, confidence, loss
FOLDER/sheet.json           right and wrong predictions with their crops, for the report
"""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.dataset import Dataset
from pipeline.evaluation.config import CENTER, EvaluateConfig
from pipeline.evaluation.examples import write_examples
from pipeline.evaluation.metrics import (
    Predictions,
    calibration,
    comparison,
    confusions,
    per_class,
    relabelled,
    summary,
)
from pipeline.evaluation.model import EvalModel, head_columns
from pipeline.evaluation.predict import Evaluator, predict_all
from pipeline.evaluation.predictions import (
    Block,
    PredictionStore,
    protocol_predictions,
)
from shards.dataset import wordnet
from shards.dataset.classes import BUILT_IN, class_list
from shards.dataset.format import open_set
from support.console import table
from support.files import write_bytes, write_json, written
from support.redact import redact
from vit.registry import num_views

log = logging.getLogger(__name__)

RESULT = "result.json"
# ImageNet's validation images are numbered, and ReaL's labels lie in this order
REAL_KEY = re.compile(r"ILSVRC2012_val_(\d{8})")
Progress = Callable[[int, int], None]


def evaluate_model(
    eval_model: EvalModel,
    settings: EvaluateConfig,
    dataset: Dataset,
    folder: Path,
    progress: Progress,
    *,
    sheet: bool = True,
) -> dict:
    """Evaluate a model on a split and write the folder; the content of result.json."""
    classes = named(dataset.classes)
    dataset = dataclasses.replace(dataset, classes=classes)
    columns, missing = head_columns(eval_model.head_classes(settings.classes, classes), classes)
    if missing:
        log.warning(
            "%d of the data's %d classes are not in the head, their images count as wrong: %s",
            len(missing),
            len(classes),
            ", ".join(f"{wnid} {wordnet.name(wnid).split(',')[0]}" for wnid in missing),
        )
    weights = eval_model.sha256()
    parts = PredictionStore(
        folder,
        identity(eval_model, settings, dataset, weights),
        images=dataset.samples,
        batch=settings.batch_images,
    )
    evaluator = Evaluator(dataset=dataset, settings=settings, columns=columns)
    left, before = len(parts.missing()), time.monotonic()
    found = predict_all(evaluator, eval_model.load(settings.model), parts, progress)
    predictions = {name: protocol_predictions(found, name) for name in settings.protocols}
    keys = sample_keys(dataset)
    result = {
        "checkpoint": str(eval_model.path),
        "step": eval_model.step,
        "weights_sha256": weights,
        "data": redact(settings.data),
        "split": settings.split,
        "fingerprint": dataset.fingerprint,
        "images": dataset.samples,
        "average": settings.average,
        "precision": settings.precision,
        "missing": list(missing),
        "seconds": time.monotonic() - before if left == parts.num_units else None,
        **figures(predictions, classes),
    }
    if settings.real:
        result["real"] = real_figures(Path(settings.real), keys, predictions, classes)
    write_classes(folder / "classes.csv", predictions, classes)
    write_predictions(folder / "predictions.parquet", keys, found, settings.protocols)
    if sheet:
        write_examples(folder, dataset, settings, predictions)
    if settings.v2:
        result["v2"] = evaluate_v2(eval_model, settings, folder, progress)
    write_json(folder / RESULT, result)
    return result


def figures(predictions: Mapping[str, Predictions], classes: tuple[str, ...]) -> dict[str, dict]:
    """Figures of every protocol, and how each differs from the single centre crop."""
    others = [name for name in predictions if name != CENTER]
    return {
        "protocols": {
            name: {"views": num_views(name), **summary(own)} for name, own in predictions.items()
        },
        "changes": {name: comparison(predictions[CENTER], predictions[name]) for name in others},
        "confusions": {
            name: [[classes[a], classes[b] if b >= 0 else "", n] for a, b, n in confusions(own)]
            for name, own in predictions.items()
        },
        "calibration": {name: calibration(own) for name, own in predictions.items()},
    }


def identity(
    eval_model: EvalModel, settings: EvaluateConfig, dataset: Dataset, weights: str
) -> dict[str, object]:
    """What the predictions depend on."""
    asked = dataclasses.asdict(settings)
    for name in ("data", "real", "v2", "out", "workers"):
        del asked[name]
    return {"weights": weights, "fingerprint": dataset.fingerprint, **asked}


def default_folder(eval_model: EvalModel, settings: EvaluateConfig, dataset: Dataset) -> Path:
    """Where the result goes unless the user says: one folder for each evaluation of each model."""
    print_of = hashlib.sha256(
        json.dumps(
            identity(eval_model, settings, dataset, eval_model.sha256()), sort_keys=True
        ).encode()
    ).hexdigest()
    base = eval_model.run_dir or Path("runs").absolute()
    crops = "+".join(settings.crops)
    name = f"{eval_model.path.stem}-{settings.split}-{crops}-{print_of[:8]}"
    return base / "evaluations" / name


def named(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Wnids of a class list; ImageNet-V2's folders are numbers into ImageNet-1k's."""
    if all(name.isascii() and name.isdigit() for name in classes) and len(classes) <= 1000:
        known = imagenet_1k()
        return tuple(known[int(name)] for name in classes)
    return classes


def imagenet_1k() -> tuple[str, ...]:
    """The classes of ImageNet-1k, in the order of their numbers."""
    return next(found for found in map(class_list, BUILT_IN) if len(found) == 1000)


def sample_keys(dataset: Dataset) -> list[str]:
    """Key of every image by position, from the indexes of the shards."""
    keys: list[str] = []
    for subset, shard in dataset.shards:
        index = subset.shards.read_index(shard)
        kept = dataset.filter.of_index(index)
        keys += index["key"].filter(pa.array(kept)).to_pylist()
    return keys


def real_figures(
    path: Path, keys: list[str], predictions: Mapping[str, Predictions], classes: tuple[str, ...]
) -> dict:
    """Top-1 under ReaL's labels (arXiv 2006.07159); images that it gives no label are left out."""
    labels = json.loads(path.read_text())
    known, numbers = imagenet_1k(), {wnid: n for n, wnid in enumerate(classes)}
    by_position = {}
    for position, key in enumerate(keys):
        if found := REAL_KEY.search(key):
            own = labels[int(found[1]) - 1]
            by_position[position] = [numbers[known[n]] for n in own if known[n] in numbers]
    if not by_position:
        raise ValueError(
            f"--real {path} is about ImageNet's validation images, and no key of the data has the "
            f"form ILSVRC2012_val_00000001 (the first is {keys[0]!r})"
        )
    protocols = {}
    for name, own in predictions.items():
        values = summary(relabelled(own, by_position))
        kept = ("images", "top1", "top1_low", "top1_high")
        protocols[name] = {key: values[key] for key in kept}
    return {"labels": str(path), "protocols": protocols}


def evaluate_v2(
    eval_model: EvalModel, settings: EvaluateConfig, folder: Path, progress: Progress
) -> dict:
    """The same evaluation on ImageNet-V2."""
    splits = tuple(open_set(settings.v2).manifest.splits)
    split = splits[0] if len(splits) == 1 else "test"
    v2 = dataclasses.replace(settings, data=settings.v2, split=split, v2=None, real=None)
    log.info("ImageNet-V2: %s, split %s", redact(settings.v2), split)
    dataset = open_dataset(v2)
    return evaluate_model(eval_model, v2, dataset, folder / "v2", progress, sheet=False)


def open_dataset(settings: EvaluateConfig) -> Dataset:
    """The images of an evaluation."""
    return Dataset.open((settings.data,), settings.split, slice_samples=32)


def write_classes(
    path: Path, predictions: Mapping[str, Predictions], classes: tuple[str, ...]
) -> None:
    """Accuracy of every class that has images, under every protocol."""
    tables = {name: per_class(own, len(classes)) for name, own in predictions.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["wnid", "name", "images", *(f"top1 {name}" for name in predictions)])
    counts = tables[CENTER][0]
    for number in np.flatnonzero(counts):
        shares = (f"{right[number] / counts[number]:.6f}" for _, right in tables.values())
        name = wordnet.name(classes[number])
        writer.writerow([classes[number], name, int(counts[number]), *shares])
    write_bytes(path, text.getvalue().encode())


def write_predictions(
    path: Path, keys: list[str], found: Block, protocols: tuple[str, ...]
) -> None:
    """Every image with its classes and predictions, in numbers of the data's classes."""
    columns = {
        "key": keys,
        "classes": [[int(n) for n in row if n >= 0] for row in found["labels"]],
    }
    for name in protocols:
        columns[f"{name}/top"] = [[int(n) for n in row if n >= 0] for row in found[f"{name}/top"]]
        columns[f"{name}/confidence"] = found[f"{name}/confidence"]
        columns[f"{name}/loss"] = found[f"{name}/loss"]
    with written(path) as aside:
        pq.write_table(pa.table(columns), aside)


def result_table(result: Mapping) -> str:
    """The figures side by side, as they are shown at the end."""
    rows = [["crops", "views", "top-1", "95 %", "top-5", "loss", "ECE", "against one", "p"]]
    for name, values in result["protocols"].items():
        change = result["changes"].get(name)
        interval = f"{values['top1_low']:.4f}-{values['top1_high']:.4f}"
        gain = f"{change['gain']:+.4f} (+{change['gained']} -{change['lost']})" if change else ""
        loss = f"{values['loss']:.4f}" if "loss" in values else "-"
        rows.append(
            [name, str(values["views"]), f"{values['top1']:.4f}", interval]
            + [f"{values['top5']:.4f}", loss, f"{values['ece']:.4f}", gain]
            + [f"{change['p']:.3f}" if change else ""]
        )
    lines = [table(rows)]
    if "real" in result:
        lines += ["", "ReaL labels"]
        lines += [
            f"  {name:<14}top-1 {v['top1']:.4f} ({v['top1_low']:.4f}-{v['top1_high']:.4f}) of "
            f"{v['images']:,} images"
            for name, v in result["real"]["protocols"].items()
        ]
    if "v2" in result:
        lines += ["", "ImageNet-V2", result_table(result["v2"])]
    return "\n".join(lines)
