"""The models of a run in its record, which follow its evaluated checkpoints.

    checkpoint with metrics -> event "model", its metrics as "evaluation" -> MLflow's logged model
    its checkpoint is gone  -> event "prune"                              -> that model is deleted

What is recorded follows from the events alone, so a driver that was killed goes on where it was.
The weights of a model are in models/ of the run's folder for as long as the record has it: linked
from its checkpoint, or fetched from a store. So MLflow gets it even if its server comes back after
the run has deleted the checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint import local
from pipeline.checkpoint.checkpoints import has_weights
from pipeline.checkpoint.local import Checkpoint
from pipeline.tracking import journal
from pipeline.train.job import Job
from support.files import remove_folder

# by which the registry compares models, unless a split selects them
TOP1 = "val/top1"
# the data on which the metrics of a checkpoint were measured, by the beginning of their names
CONTEXTS = {"val": "evaluation", "select": "selection"}


def record_models(job: Job, *, fetch: bool = True) -> list[Checkpoint]:
    """Let the models of the record follow the checkpoints; returns the evaluated ones, sorted.

    With record.models "kept" each of these is a model. However it came to be one, it goes when the
    run has deleted its checkpoint, but not before a later model is there. From a store only the
    weights are fetched; with `fetch` False that is left to the thread that sends the models.
    """
    place = job.folder.models.folder
    found = [replace(one, path=place / one.path.name) for one in job.checkpoints.all()]
    evaluated = [checkpoint for checkpoint in found if checkpoint.metrics]
    for model in void(recorded(job.dir), found):
        prune(job.dir, model)
    for checkpoint in evaluated if job.config.record.models == "kept" else ():
        if fetch or not job.folder.uri:
            keep_weights(job, checkpoint)
        write_model(job.dir, checkpoint)
    for model in superseded(recorded(job.dir), found):
        prune(job.dir, model)
    drop_copies(job)
    return evaluated


def keep_weights(job: Job, checkpoint: Checkpoint) -> None:
    """Have the weights of a checkpoint at its path in the folder of the models."""
    source = job.checkpoints.folder / checkpoint.path.name
    if job.folder.uri:
        job.folder.models.fetch_weights(checkpoint)
    elif not has_weights(checkpoint.path, checkpoint.digest):
        local.link(source, checkpoint.path, only=local.MODEL)


def recorded(run_dir: Path) -> dict[str, dict]:
    """The event of each model that the record has, by the name of its checkpoint."""
    models = {}
    for event in journal.read_events(run_dir):
        name = Path(event.get("checkpoint", "")).name
        if event["event"] == "model":
            models[name] = event
        elif event["event"] == "prune":
            models.pop(name, None)
    return models


def void(models: Mapping[str, dict], found: Sequence[Checkpoint]) -> list[dict]:
    """The recorded models of steps that the run has taken back; `found` is sorted by step."""
    if not found:  # a place that cannot be seen proves nothing
        return []
    digests = {checkpoint.path.name: checkpoint.digest for checkpoint in found}
    return [
        model
        for name, model in models.items()
        if model["step"] > found[-1].step
        or (name in digests and model.get("weights", digests[name]) != digests[name])
    ]


def superseded(models: Mapping[str, dict], found: Sequence[Checkpoint]) -> list[dict]:
    """The recorded models whose checkpoint is gone, but for the newest model of all."""
    names = {checkpoint.path.name for checkpoint in found}
    newest = max((model["step"] for model in models.values()), default=0)
    return [
        model for name, model in models.items() if name not in names and model["step"] != newest
    ]


def prune(run_dir: Path, model: Mapping) -> None:
    """Record that a recorded model goes."""
    facts = about(run_dir, Path(model["checkpoint"]), model["step"])
    journal.write_event(run_dir, "prune", weights=model.get("weights"), **facts)


def about(run_dir: Path, checkpoint: Path, step: int) -> dict[str, object]:
    """The facts of an event about a checkpoint.

    One that comes again after its model went, because the run was taken back, is told from the one
    before: the journal keeps equal events once.
    """
    gone = [event for event in journal.read_events(run_dir) if event["event"] == "prune"]
    times = sum(Path(event["checkpoint"]).name == checkpoint.name for event in gone)
    return {"checkpoint": checkpoint, "step": step, **({"again": times} if times else {})}


def drop_copies(job: Job) -> None:
    """Remove the weights of which there is no model."""
    names = recorded(job.dir).keys()
    for path in job.folder.models.folder.glob("step-*"):
        if path.name not in names:
            remove_folder(path)


def write_model(
    run_dir: Path, checkpoint: Checkpoint, register: str | None = None, *, is_chosen: bool = True
) -> None:
    """Record a checkpoint as a model with its metrics from training, once, and register it.

    Unless it is the one that the run reports, it does not compete for the alias of the best model:
    the best of many evaluations is better by luck.
    """
    known, digest = recorded(run_dir).get(checkpoint.path.name, {}), checkpoint.digest
    if known.get("weights", digest) != digest:  # of a step that the run has taken back
        prune(run_dir, known)
    # the driver may have recorded it by the path of a copy
    path = Path(known["checkpoint"]) if known.get("weights") == digest else checkpoint.path
    facts = about(run_dir, path, checkpoint.step)
    name = f"{checkpoint.config['name']}-step-{checkpoint.step}"
    journal.write_event(run_dir, "model", name=name, weights=digest, **facts)
    at, step = moment(run_dir, checkpoint), checkpoint.step
    # the run may have got other data since: what counts is what it had then
    before = at or recorded(run_dir)[path.name]["time"]
    for prefix, context in CONTEXTS.items():
        names = [name for name in checkpoint.metrics if name.startswith(f"{prefix}/")]
        if metrics := {name: checkpoint.metrics[name] for name in names}:
            data = dataset(run_dir, context, before)
            write_evaluation(run_dir, metrics, data, at, checkpoint=path, step=step)
    if register:
        metric = local.SELECT if local.SELECT in checkpoint.metrics else TOP1
        facts |= {"metric": metric, "value": checkpoint.metrics.get(metric, 0.0)}
        measured = dataset(run_dir, CONTEXTS[metric.partition("/")[0]], before)
        facts |= {"name": register, "digest": measured["digest"], "competes": is_chosen}
        journal.write_event(run_dir, "register", **facts)


def write_evaluation(
    run_dir: Path,
    metrics: Mapping[str, float],
    data: Mapping[str, str],
    at: float | None = None,
    *,
    checkpoint: Path,
    step: int,
) -> None:
    """Attach metrics to the model of a checkpoint, or to the run alone if it is no model.

    Args:
        run_dir: Folder of the run.
        metrics: Values by the name that MLflow shows.
        data: Name ("dataset") and "digest" of the images on which they were measured.
        at: Time of the record with the same values, in seconds, if there is one: MLflow then has
            one point of the two.
        checkpoint: Folder of the checkpoint.
        step: Its step, at which MLflow shows the metrics.
    """
    facts = about(run_dir, checkpoint, step) | ({} if at is None else {"at": at})
    journal.write_event(run_dir, "evaluation", metrics=dict(metrics), **data, **facts)


def moment(run_dir: Path, checkpoint: Checkpoint) -> float | None:
    """Time of the record of its evaluation; None if there is none with the same values."""
    for record, _ in journal.read_records(run_dir):
        is_its = record["kind"] == "eval" and record["step"] == checkpoint.step
        if is_its and checkpoint.metrics.items() <= record.items():
            return record["time"]
    return None


def dataset(run_dir: Path, context: str, before: float) -> dict[str, str]:
    """Name and digest of data of the run, from the last event about it before a time."""
    data = {"dataset": "unknown", "digest": "unknown"}
    for event in journal.read_events(run_dir):
        if event["event"] != "dataset" or event["context"] != context:
            continue
        if event["time"] <= before:
            data = {"dataset": event["name"], "digest": event["digest"]}
    return data
