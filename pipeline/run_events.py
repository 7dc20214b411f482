"""Events of a run, recorded along with its metrics: environment, data, models, evaluations.

    Job, checkpoints, evaluations -> events (pipeline.tracking.journal) -> MLflow and the report

`pipeline.tracking.mlflow_client.TrackingServer.apply` handles these events.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.checkpoint import local
from pipeline.checkpoint.local import Checkpoint
from pipeline.data.dataset import set_name
from pipeline.evaluation import evaluate
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.metrics import METRICS
from pipeline.outcome import RESULT
from pipeline.report.run_page import write_report
from pipeline.tracking import journal
from pipeline.tracking.recorder import Recorder
from pipeline.train.job import Job
from pipeline.train.system_metrics import cluster_facts

# by which the registry compares models, unless a split selects them
TOP1 = "val/top1"


def record_circumstances(recorder: Recorder, job: Job) -> None:
    """Record the environment and the data of a run; Ray must be running."""
    changes = {"skip_steps": job.config.skip_steps, "lr_factors": job.config.lr_factors}
    tags = {name: ", ".join(given) for name, given in changes.items() if given}
    if job.weights:
        tags["initial weights"] = str(job.weights.loaded)
    tags |= cluster_facts() | {"workers": str(job.config.workers)}
    recorder.write_event("tags", tags=tags)
    data = job.config.data
    for dataset, split, context in (
        (job.train, data.train_split, "training"),
        (job.eval, data.eval_split, "evaluation"),
        (job.select, data.select_split, "selection"),
    ):
        if not dataset:
            continue
        locations = [subset.shards.location for subset in dataset.subsets]
        recorder.write_event(
            "dataset",
            name=f"{set_name(locations[0])}/{split}",
            digest=dataset.fingerprint,
            source=", ".join(locations),
            context=context,
            samples=dataset.samples,
        )


def record_result(recorder: Recorder, job: Job, chosen: Checkpoint, evaluation: Path) -> None:
    """End the record with the models, their evaluation, files, and the report page."""
    settings = job.config.record
    # the chosen one comes last: the registry takes the last one as the newest
    others = [c for c in job.checkpoints.all() if c.step != chosen.step]
    models = {"best": [chosen], "kept": [*others, chosen], "none": []}
    for checkpoint in models[settings.models]:
        is_chosen = checkpoint.step == chosen.step
        checkpoint = job.checkpoints.fetch(checkpoint)
        write_model(job.dir, checkpoint, settings.register, is_chosen=is_chosen)
    if settings.models != "none":
        write_evaluation(job.dir, evaluation, attached)
    for path in sorted(chosen.path.iterdir()):
        if not path.name.startswith(local.STATE):
            journal.write_artifact(job.dir, path, "checkpoint")
    journal.write_artifact(job.dir, job.dir / RESULT)
    write_files(job.dir, evaluation, status="FINISHED")
    recorder.finish("FINISHED")


def write_model(
    run_dir: Path, checkpoint: Checkpoint, register: str | None = None, *, is_chosen: bool = True
) -> None:
    """Record a checkpoint as a model with its metrics from training, and register it.

    Unless it is the one that the run reports, it does not compete for the alias of the best model:
    the best of many evaluations is better by luck.
    """
    about = {"checkpoint": checkpoint.path, "step": checkpoint.step}
    journal.write_event(run_dir, "model", **about)
    if checkpoint.metrics:
        # prefixed, because the run itself has a curve of each metric with a point at this step
        metrics = {f"checkpoint/{name}": value for name, value in checkpoint.metrics.items()}
        journal.write_event(
            run_dir, "evaluation", metrics=metrics, **about, **evaluation_data(run_dir)
        )
    if register:
        metric = local.SELECT if local.SELECT in checkpoint.metrics else TOP1
        value = checkpoint.metrics.get(metric, 0.0) if is_chosen else float("-inf")
        facts = {"name": register, "metric": metric, "value": value}
        journal.write_event(run_dir, "register", checkpoint=checkpoint.path, **facts)


def evaluation_data(run_dir: Path) -> dict[str, str]:
    """Name and digest of the evaluation data of a run, from its last event about it."""
    data = {"dataset": "unknown", "digest": "unknown"}
    for event in journal.read_events(run_dir):
        if event["event"] == "dataset" and event["context"] == "evaluation":
            data = {"dataset": event["name"], "digest": event["digest"]}
    return data


def write_evaluation(
    run_dir: Path, folder: Path, metrics: Callable[[Mapping], dict[str, float]]
) -> None:
    """Attach metrics of the result in a folder to its model."""
    result = json.loads((folder / evaluate.RESULT).read_text())
    journal.write_event(
        run_dir,
        "evaluation",
        checkpoint=Path(result["checkpoint"]),
        step=result["step"],
        metrics=metrics(result),
        dataset=f"{set_name(result['data'])}/{result['split']}",
        digest=result["fingerprint"],
    )


def attached(result: Mapping) -> dict[str, float]:
    """The metrics of an evaluation as they are attached to a model."""
    prefix = f"eval/{result['split']}"
    metrics = figures(result["protocols"], prefix)
    for name, values in result.get("real", {}).get("protocols", {}).items():
        metrics[f"{prefix}/{name}/real_top1"] = values["top1"]
    return metrics | figures(result.get("v2", {}).get("protocols", {}), "eval/v2")


def figures(protocols: Mapping[str, Mapping[str, float]], prefix: str) -> dict[str, float]:
    """The metrics to plot, by their names: PREFIX/ten/top1."""
    return {
        f"{prefix}/{protocol}/{name}": values[name]
        for protocol, values in protocols.items()
        for name in (*METRICS, "ece")
        if name in values
    }


def write_files(run_dir: Path, evaluation: Path, status: str | None = None) -> None:
    """Attach the files of an evaluation that people read, and the new report page."""
    for name in (evaluate.RESULT, "classes.csv", "predictions.parquet"):
        journal.write_artifact(run_dir, evaluation / name, f"evaluations/{evaluation.name}")
    journal.write_artifact(run_dir, write_report(run_dir, status=status))


def attach(run_dir: Path, checkpoint: Checkpoint, folder: Path) -> None:
    """Record an evaluation that was made after the run, and its model."""
    write_model(run_dir, checkpoint)
    write_evaluation(run_dir, folder, attached)
    write_files(run_dir, folder)


def attach_probe(run_dir: Path, checkpoint: Checkpoint, folder: Path) -> None:
    """Record a linear probe of a checkpoint, beside the probes of the training."""
    write_model(run_dir, checkpoint)
    write_evaluation(
        run_dir,
        folder,
        lambda r: {f"probe/{set_name(r['data'])}/linear": r["protocols"][CENTER]["top1"]},
    )
    journal.write_artifact(run_dir, folder / evaluate.RESULT, f"probes/{folder.name}")
