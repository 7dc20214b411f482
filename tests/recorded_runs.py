"""Folders of runs and of evaluations as they are recorded, for tests that need no training."""

import json
from pathlib import Path

import numpy as np

from pipeline.checkpoint.local import CONFIG
from pipeline.evaluation.evaluate import RESULT, write_classes, write_predictions
from pipeline.evaluation.metrics import Predictions, summary
from pipeline.outcome import Outcome
from pipeline.settings.presets import find_preset
from pipeline.tracking.journal import EVENTS, RECORDS
from support.files import append_line
from vit.registry import num_views

SAMPLES = 12_800  # 100 steps of an epoch of the demo preset


def begun(run_dir: Path, *events: dict, **changes: object) -> Path:
    """A run of the demo preset with changes (`optim__lr`) and events (`started`, `ended`)."""
    run_dir.mkdir(parents=True)
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    settings = {"name": run_dir.name, "epochs": 1.0, **settings}
    flat = find_preset("demo").replace(settings).flat()
    (run_dir / CONFIG).write_text(json.dumps(flat))
    for event in events:
        append_line(run_dir / EVENTS, event, durable=False)
    return run_dir


def started(time: float, workers: int = 1, digest: str = "d" * 64) -> list[dict]:
    """The events with which a start begins."""
    data = {"name": "set/train", "context": "training", "samples": SAMPLES, "digest": digest}
    return [
        {"event": "start", "time": time},
        {"event": "tags", "time": time, "tags": {"workers": str(workers)}},
        {"event": "dataset", "time": time, "source": "set", **data},
    ]


def ended(time: float, status: str, **tags: str) -> list[dict]:
    """The events with which a start ends."""
    told = [{"event": "tags", "time": time, "tags": tags}] if tags else []
    return [*told, {"event": "status", "time": time, "status": status}]


def record(run_dir: Path, kind: str, step: int, time: float, **values: float) -> None:
    """Add a record; "__" in the name of a value is a slash."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    line = {"kind": kind, "step": step, "time": time, **named}
    append_line(run_dir / RECORDS, line, durable=False)


def finished(
    run_dir: Path, top1: float, protocol: str = "ten", steps: int = 100, evaluation: str = ""
) -> None:
    """Write the result of a run, which reports its last checkpoint."""
    values = {"top1": top1, "top1_low": top1 - 0.02, "top1_high": top1 + 0.01}
    Outcome(
        steps=steps,
        images_per_s=500.0,
        checkpoint=str(run_dir / f"checkpoints/step-{steps:09d}"),
        protocols={"center": values | {"views": 1}, protocol: values | {"views": 10}},
        evaluation=evaluation,
    ).write(run_dir)


def predictions(labels: list[int], tops: list[int]) -> Predictions:
    """Predictions of one class for images of one class each."""
    count = len(labels)
    half = np.full(count, 0.5)
    columns = {"labels": np.array(labels)[:, None], "top": np.array(tops, np.int32)[:, None]}
    return Predictions(**columns, confidence=half, loss=half)


def evaluated(
    folder: Path, found: dict[str, Predictions], classes: tuple[str, ...], **facts
) -> Path:
    """The folder of an evaluation with these predictions under each protocol."""
    folder.mkdir(parents=True)
    block = {"labels": next(iter(found.values())).labels}
    for name, each in found.items():
        block |= {
            f"{name}/{field}": getattr(each, field) for field in ("top", "confidence", "loss")
        }
    count = len(block["labels"])
    write_predictions(
        folder / "predictions.parquet",
        facts.pop("keys", [f"image-{number}" for number in range(count)]),
        block,
        tuple(found),
    )
    write_classes(folder / "classes.csv", found, classes)
    result = {
        **{"checkpoint": "step-000000100", "step": 100, "data": "s3://K:S3CR3T@bucket/in1k"},
        **{"split": "val", "fingerprint": "f" * 64, "images": count, "average": "logits"},
        **{"precision": "tf32", "missing": [], "resized": dict.fromkeys(found, [256])},
        "protocols": {name: {"views": num_views(name), **summary(p)} for name, p in found.items()},
        "changes": {},
        **facts,
    }
    (folder / RESULT).write_text(json.dumps(result))
    return folder
