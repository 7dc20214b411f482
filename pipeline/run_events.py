"""What the record of a run says beside its numbers: circumstances, data, models, evaluations.

    Job, checkpoints, evaluations -> events (pipeline.tracking.journal) -> MLflow and the report

The events are those that `pipeline.tracking.mlflow_client.TrackingServer.tell` knows.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.checkpoint import local
from pipeline.checkpoint.local import Checkpoint
from pipeline.evaluation import evaluate
from pipeline.evaluation.metrics import METRICS
from pipeline.outcome import RESULT
from pipeline.report.run_page import write_report
from pipeline.tracking import journal
from pipeline.tracking.recorder import Recorder
from pipeline.train.job import Job
from pipeline.train.system_metrics import cluster_facts

# the parts of a checkpoint that only resuming the run needs
PRIVATE = ("state.pt",)


def record_circumstances(recorder: Recorder, job: Job) -> None:
    """Record what the run runs on and what it reads; Ray must run."""
    recorder.tell("tags", tags=cluster_facts() | {"workers": str(job.config.workers)})
    data = job.config.data
    for source, split, context in (
        (job.train, data.train_split, "training"),
        (job.eval, data.eval_split, "evaluation"),
    ):
        locations = [subset.shards.location for subset in source.subsets]
        recorder.tell(
            "dataset",
            name=dataset_name(locations[0], split),
            digest=source.fingerprint,
            source=", ".join(locations),
            context=context,
            samples=source.samples,
        )


def dataset_name(location: str, split: str) -> str:
    """Name of a split of a shard set: its folder's, or the folder's above where that says more."""
    path = Path(location)
    name = path.parent.name if path.name == "shards" else path.name
    return f"{name}/{split}"


def record_result(recorder: Recorder, job: Job, best: Checkpoint, evaluation: Path) -> None:
    """End the record with models, their evaluation, files, and the page about all of it."""
    settings = job.config.record
    kept = {"best": [best], "kept": local.checkpoints(job.checkpoints), "none": []}
    # the best one first: the registry takes the last one for the newest
    for item in sorted(kept[settings.models], key=lambda item: (item.step != best.step, item.step)):
        tell_model(job.dir, item, settings.register)
    if settings.models != "none":
        tell_evaluation(job.dir, evaluation)
    for path in sorted(best.path.iterdir()):
        if path.name not in PRIVATE:
            recorder.artifact(path, "checkpoint")
    recorder.artifact(job.dir / RESULT)
    for path in result_files(evaluation):
        recorder.artifact(path, f"evaluations/{evaluation.name}")
    recorder.artifact(write_report(job.dir, status="FINISHED"))
    recorder.finish("FINISHED")


def tell_model(run_dir: Path, item: Checkpoint, register: str | None = None) -> None:
    """A checkpoint becomes a model with the figures that it had in training, and a version."""
    about = {"checkpoint": item.path, "step": item.step}
    journal.tell(run_dir, "model", **about)
    if item.metrics:
        # names of their own: the run has a curve of these figures, with a point at this step
        own = {f"checkpoint/{name}": value for name, value in item.metrics.items()}
        journal.tell(run_dir, "evaluation", metrics=own, **about, **evaluation_data(run_dir))
    if register:
        value = item.metrics.get(local.BEST, 0.0)
        facts = {"name": register, "metric": local.BEST, "value": value}
        journal.tell(run_dir, "register", checkpoint=item.path, **facts)


def evaluation_data(run_dir: Path) -> dict[str, str]:
    """Name and digest of the data that the run evaluates on."""
    found = [
        event
        for event in journal.read_events(run_dir)
        if event["event"] == "dataset" and event["context"] == "evaluation"
    ]
    if not found:
        return {"dataset": "unknown", "digest": "unknown"}
    return {"dataset": found[-1]["name"], "digest": found[-1]["digest"]}


def tell_evaluation(run_dir: Path, folder: Path) -> None:
    """Attach the result of an evaluation to the model that it is about."""
    result = json.loads((folder / evaluate.RESULT).read_text())
    journal.tell(
        run_dir,
        "evaluation",
        checkpoint=Path(result["checkpoint"]),
        step=result["step"],
        metrics=attached(result),
        dataset=dataset_name(result["data"], result["split"]),
        digest=result["fingerprint"],
    )


def attached(result: Mapping) -> dict[str, float]:
    """The figures of an evaluation as they are attached to a model."""
    found = figures(result["protocols"], f"eval/{result['split']}")
    for name, values in result.get("real", {}).get("protocols", {}).items():
        found[f"eval/{result['split']}/{name}/real_top1"] = values["top1"]
    return found | figures(result.get("v2", {}).get("protocols", {}), "eval/v2")


def figures(protocols: Mapping[str, Mapping[str, float]], prefix: str) -> dict[str, float]:
    """The figures that are worth a curve, by one name each: PREFIX/ten/top1."""
    return {
        f"{prefix}/{protocol}/{name}": values[name]
        for protocol, values in protocols.items()
        for name in (*METRICS, "ece")
        if name in values
    }


def result_files(folder: Path) -> list[Path]:
    """Files of an evaluation that people read."""
    names = (evaluate.RESULT, "classes.csv", "predictions.parquet")
    return [folder / name for name in names if (folder / name).exists()]


def attach(run_dir: Path, item: Checkpoint, folder: Path) -> None:
    """Record an evaluation that was made after the run, and the model that it is about."""
    tell_model(run_dir, item)
    tell_evaluation(run_dir, folder)
    for path in (*result_files(folder), write_report(run_dir)):
        inside = "" if path.parent == run_dir else f"evaluations/{folder.name}"
        version = path.stat().st_mtime_ns
        journal.tell(run_dir, "artifact", path=path, folder=inside, version=version)
