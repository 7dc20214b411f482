"""One evaluation from a model to its result: at the end of every run, and by `evaluate`.

EvalModel + EvaluateConfig -> predictions for all images (resumed) -> metrics

FOLDER/result.json          metrics of every protocol, changes, confusions, calibration
FOLDER/classes.csv          accuracy of every class under every protocol
FOLDER/predictions.parquet  every image: key, classes, predictions, confidence, loss
FOLDER/sheet.json           example predictions with their crops, for the report
"""

import csv
import dataclasses
import hashlib
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
from pipeline.evaluation import metrics
from pipeline.evaluation.class_figures import ClassFigures
from pipeline.evaluation.config import CENTER, RESULT, EvaluateConfig
from pipeline.evaluation.examples import first_name, write_examples
from pipeline.evaluation.metrics import Predictions
from pipeline.evaluation.model import EvalModel, head_columns
from pipeline.evaluation.predict import Evaluator, view_of
from pipeline.evaluation.predictions import Block, PredictionStore, protocol_predictions
from pipeline.evaluation.unreadable import COUNTS_AS_WRONG, named_faults
from pipeline.evaluation.workers import predict_all
from shards.dataset import wordnet
from shards.dataset.classes import class_list, mapping
from shards.dataset.format import open_set
from support.files import write_json, written
from support.redact import redact
from vit.registry import num_views

log = logging.getLogger(__name__)

# ImageNet's validation images are numbered from 1, and ReaL's labels are in this order
REAL_KEY = re.compile(r"ILSVRC2012_val_(\d{8})")
# raised when the same settings give other predictions than before; 2: AlexNet's corners
VERSION = 2
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
    """Evaluate a model on a split and write the folder; returns the content of result.json."""
    classes = named(dataset.classes)
    dataset = dataclasses.replace(dataset, classes=classes)
    columns, missing = head_columns(eval_model.head_classes(settings.classes, classes), classes)
    warn_of_missing(missing, len(classes))
    weights = eval_model.sha256()
    store = PredictionStore(
        folder,
        identity(settings, dataset, weights),
        images=dataset.samples,
        batch=settings.batch_images,
    )
    evaluator = Evaluator(dataset=dataset, settings=settings, columns=columns)
    is_fresh, started = len(store.missing()) == store.num_units, time.monotonic()
    log.info("crops       %s", settings.described_crops)
    predict_all(evaluator, eval_model.load(settings.model), store, progress)
    block, keys = store.read(), sample_keys(dataset)
    predictions = {name: protocol_predictions(block, name) for name in settings.protocols}
    unreadable = named_faults(store.faults(), keys, settings.split, COUNTS_AS_WRONG)
    result = {
        "checkpoint": str(eval_model.path),
        "step": eval_model.step,
        "weights_sha256": weights,
        "data": redact(settings.data),
        "split": settings.split,
        "fingerprint": dataset.fingerprint,
        "images": dataset.samples,
        "unreadable": unreadable,
        "resized": settings.resized,
        "average": settings.average,
        "precision": settings.precision,
        **({} if eval_model.is_probe else {"selected_on": selected_on(eval_model)}),
        "missing": list(missing),
        "seconds": time.monotonic() - started if is_fresh else None,
        **figures(predictions, ClassFigures.of_model(eval_model, classes)),
    }
    if settings.real:
        result["real"] = real_figures(Path(settings.real), keys, predictions, classes)
    write_classes(folder / "classes.csv", predictions, classes)
    write_predictions(folder / "predictions.parquet", keys, block, settings.protocols)
    if sheet:
        write_examples(folder, dataset, settings, predictions)
    if settings.v2:
        result["v2"] = evaluate_v2(eval_model, settings, folder, progress)
    write_json(folder / RESULT, result)
    return result


def warn_of_missing(missing: tuple[str, ...], num_classes: int) -> None:
    """Warn of classes of the data that the head lacks."""
    if missing:
        names = ", ".join(f"{wnid} {first_name(wnid)}" for wnid in missing)
        text = "%d of the data's %d classes are not in the head; their images count as wrong: %s"
        log.warning(text, len(missing), num_classes, names)


def selected_on(eval_model: EvalModel) -> dict[str, str | None] | None:
    """The split whose top-1 selects among the checkpoints of the model's run, if one does.

    Its set has a fingerprint, as it may be elsewhere now; None if that is not known.
    """
    training = eval_model.training
    if training is None or training.select_split is None:
        return None
    return {
        "data": redact(eval_model.data),
        "split": training.select_split,
        "fingerprint": set_fingerprint(eval_model),
    }


def set_fingerprint(eval_model: EvalModel) -> str | None:
    """Fingerprint of the shard set `data` of a run; None if it is not known here."""
    if not eval_model.training.extra:
        return eval_model.fingerprint
    try:
        return open_set(eval_model.data).fingerprint
    except (OSError, ValueError):
        return None


def figures(predictions: Mapping[str, Predictions], class_figures: ClassFigures) -> dict[str, dict]:
    """Metrics of every protocol, and how each differs from the single centre crop."""
    center, classes = predictions[CENTER], class_figures.classes
    return {
        "protocols": {
            name: {
                "views": num_views(name),
                **metrics.summary(each),
                **class_figures.of(each),
            }
            for name, each in predictions.items()
        },
        "classes": class_figures.facts(center),
        "changes": {
            n: metrics.comparison(center, each) for n, each in predictions.items() if n != CENTER
        },
        "confusions": {
            name: [[classes[a], classes[b], count] for a, b, count in metrics.confusions(each)]
            for name, each in predictions.items()
        },
        "calibration": {name: metrics.calibration(each) for name, each in predictions.items()},
    }


def identity(settings: EvaluateConfig, dataset: Dataset, weights: str) -> dict[str, object]:
    """Everything that the predictions depend on."""
    values = dataclasses.asdict(settings)
    for name in ("data", "real", "v2", "out", "workers"):
        del values[name]
    return {"version": VERSION, "weights": weights, "fingerprint": dataset.fingerprint, **values}


def default_folder(eval_model: EvalModel, settings: EvaluateConfig, dataset: Dataset) -> Path:
    """The default folder of a result: one per evaluation of each model."""
    values = identity(settings, dataset, eval_model.sha256())
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    base = eval_model.run_dir or Path("runs").absolute()
    crops = "+".join(settings.crops)
    return base / "evaluations" / f"{eval_model.path.stem}-{settings.split}-{crops}-{digest[:8]}"


def named(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Wnids of a class list; the folders of ImageNet-V2 are numbers of ImageNet-1k's classes."""
    if all(name.isascii() and name.isdigit() for name in classes) and len(classes) <= 1000:
        wnids = class_list("1k")
        return tuple(wnids[int(name)] for name in classes)
    return classes


def sample_keys(dataset: Dataset) -> list[str]:
    """Key of every image by position, from the indexes of the shards."""
    keys: list[str] = []
    for subset, shard in dataset.shards:
        index = subset.shards.read_index(shard)
        keys += index["key"].filter(pa.array(dataset.filter.of_index(index))).to_pylist()
    return keys


def real_figures(
    path: Path, keys: list[str], predictions: Mapping[str, Predictions], classes: tuple[str, ...]
) -> dict:
    """Top-1 under ReaL's labels (arXiv 2006.07159); images without such a label are left out."""
    labels = json.loads(path.read_text())
    numbers = mapping(class_list("1k"), classes)
    labels_by_position = {
        position: [numbers[n] for n in labels[int(match[1]) - 1] if numbers[n] >= 0]
        for position, match in enumerate(map(REAL_KEY.search, keys))
        if match
    }
    if not labels_by_position:
        raise ValueError(
            f"--real {path} is for ImageNet's validation images, but no key of the data has the "
            f"form ILSVRC2012_val_00000001 (the first is {keys[0]!r})"
        )
    protocols = {}
    for name, original in predictions.items():
        values = metrics.summary(metrics.relabelled(original, labels_by_position))
        protocols[name] = {key: values[key] for key in ("images", "top1", "top1_low", "top1_high")}
    return {"labels": str(path), "protocols": protocols}


def evaluate_v2(
    eval_model: EvalModel, settings: EvaluateConfig, folder: Path, progress: Progress
) -> dict:
    """The same evaluation on ImageNet-V2."""
    splits = tuple(open_set(settings.v2).manifest.splits)
    split = splits[0] if len(splits) == 1 else "test"
    v2 = dataclasses.replace(settings, data=settings.v2, split=split, v2=None, real=None)
    log.info("ImageNet-V2: %s, split %s", redact(settings.v2), split)
    return evaluate_model(eval_model, v2, open_dataset(v2), folder / "v2", progress, sheet=False)


def open_dataset(settings: EvaluateConfig) -> Dataset:
    """The images of an evaluation; ValueError if they cannot be cropped as it asks."""
    view_of(settings).check()
    return Dataset.open((settings.data,), settings.split, slice_samples=32)


def write_classes(
    path: Path, predictions: Mapping[str, Predictions], classes: tuple[str, ...]
) -> None:
    """Write the accuracy of every class that has images, under every protocol."""
    counts = {name: metrics.per_class(each, len(classes)) for name, each in predictions.items()}
    images = counts[CENTER][0]
    with written(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["wnid", "name", "images", *(f"top1 {name}" for name in predictions)])
        for number in np.flatnonzero(images):
            wnid = classes[number]
            accuracies = (f"{hits[number] / images[number]:.6f}" for _, hits in counts.values())
            writer.writerow([wnid, wordnet.name(wnid), int(images[number]), *accuracies])


def write_predictions(
    path: Path, keys: list[str], block: Block, protocols: tuple[str, ...]
) -> None:
    """Write the classes and predictions of every image, as class numbers of the data."""
    columns = {"key": keys, "classes": unpadded(block["labels"])}
    for name in protocols:
        columns[f"{name}/top"] = unpadded(block[f"{name}/top"])
        columns |= {key: block[key] for key in (f"{name}/confidence", f"{name}/loss")}
    with written(path) as aside:
        pq.write_table(pa.table(columns), aside)


def unpadded(rows: np.ndarray) -> list[list[int]]:
    """The class numbers of each row without the negative padding."""
    return [row[row >= 0].tolist() for row in rows]
