"""Events of a run, recorded along with its metrics: environment, data, models, evaluations.

    Job, checkpoints, evaluations -> events (pipeline.tracking.journal) -> MLflow and the report

The evaluation of a checkpoint in training, that of the result, and those of the commands `evaluate`
and `probe` are all one event, written by `pipeline.run_models.write_evaluation`.
`pipeline.tracking.mlflow_client.TrackingServer.apply` handles these events.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.checkpoint.local import Checkpoint
from pipeline.data.dataset import set_name
from pipeline.evaluation.config import CENTER, RESULT, EvaluateConfig
from pipeline.evaluation.figure_names import rule
from pipeline.evaluation.metrics import FIGURES, METRICS
from pipeline.outcome import DONE, FINISHED, OUTCOME_TAG
from pipeline.report.run_page import write_report
from pipeline.report.run_state import ended
from pipeline.run_models import record_models, write_evaluation, write_model
from pipeline.tracking import journal
from pipeline.tracking.recorder import Recorder
from pipeline.train.job import Job
from pipeline.train.system_metrics import cluster_facts

# ends of the 95 % interval of the accuracy, which MLflow shows beside it
INTERVAL = ("top1_low", "top1_high")

log = logging.getLogger(__name__)


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
    settings, models = job.config.record, []
    if settings.models != "none":
        # the chosen one comes last: the registry takes the last one as the newest
        others = [one for one in record_models(job) if one.step != chosen.step]
        models = [*(others if settings.models == "kept" else ()), chosen]
    for checkpoint in models:
        is_chosen = checkpoint.step == chosen.step
        write_model(job.dir, checkpoint, settings.register, is_chosen=is_chosen)
    write_result(job.dir, evaluation, attached)
    journal.write_artifact(job.dir, job.dir / RESULT)
    record_models(job)  # what the reported one replaces goes
    write_files(job.dir, evaluation)
    recorder.end(FINISHED, tags={OUTCOME_TAG: DONE})


def record_end(
    recorder: Recorder, job: Job, status: str, tags: Mapping[str, str] | None = None
) -> None:
    """End the record of a run without a result, with its models and the page up to here."""
    artifacts = {}
    try:
        record_models(job, fetch=False)
    except Exception as error:  # noqa: BLE001 - it must not hide why the run ends
        log.warning("the record ends without its last model: %s", error)
    try:
        state = ended(status, (tags or {}).get(OUTCOME_TAG))
        artifacts = {write_report(job.dir, state=state): ""}
    except Exception as error:  # noqa: BLE001
        log.warning("the record ends without its page: %s", error)
    recorder.end(status, artifacts, tags)


def write_result(
    run_dir: Path, folder: Path, metrics: Callable[[Mapping], dict[str, float]]
) -> None:
    """Attach metrics of the result in a folder to the model that it is about.

    Those on ImageNet-V2 are attached with its name and digest.
    """
    result = json.loads((folder / RESULT).read_text())
    of_data = metrics({name: value for name, value in result.items() if name != "v2"})
    on_v2 = {name: value for name, value in metrics(result).items() if name not in of_data}
    for measured, about in ((of_data, result), (on_v2, result.get("v2"))):
        if not measured:
            continue
        write_evaluation(
            run_dir,
            measured,
            {
                "dataset": f"{set_name(about['data'])}/{about['split']}",
                "digest": about["fingerprint"],
            },
            checkpoint=Path(result["checkpoint"]),
            step=result["step"],
        )


def attached(result: Mapping) -> dict[str, float]:
    """The metrics of an evaluation as MLflow shows them."""
    prefix, average = f"eval/{result['split']}", result["average"]
    metrics, protocols = figures(result["protocols"], prefix, average), result["protocols"]
    for name, values in result.get("real", {}).get("protocols", {}).items():
        place = f"{prefix}/{rule(name, protocols[name]['views'], average)}"
        names = [each for each in ("top1", *INTERVAL) if each in values]
        metrics |= {f"{place}/real_{each}": values[each] for each in names}
    return metrics | figures(result.get("v2", {}).get("protocols", {}), "eval/v2", average)


def figures(
    protocols: Mapping[str, Mapping[str, float]], prefix: str, average: str
) -> dict[str, float]:
    """What MLflow has of each protocol: PREFIX/center/top1, PREFIX/ten-logits/top1."""
    names = (*METRICS, *INTERVAL, *FIGURES)
    return {
        f"{prefix}/{rule(protocol, values['views'], average)}/{name}": values[name]
        for protocol, values in protocols.items()
        for name in names
        if name in values
    }


def write_files(run_dir: Path, evaluation: Path) -> None:
    """Attach the files of an evaluation that people read, and the new report page."""
    for name in (RESULT, "classes.csv", "predictions.parquet"):
        journal.write_artifact(run_dir, evaluation / name, f"evaluations/{evaluation.name}")
    journal.write_artifact(run_dir, write_report(run_dir))


def attach(run_dir: Path, checkpoint: Checkpoint, folder: Path, variant: str = "") -> None:
    """Record an evaluation that was made after the run, and its model.

    The figures of a variant have its name after the first part: eval/sketch/val/center/top1.
    """
    write_model(run_dir, checkpoint)
    place = f"eval/{variant}/" if variant else "eval/"
    write_result(
        run_dir,
        folder,
        lambda r: {name.replace("eval/", place, 1): value for name, value in attached(r).items()},
    )
    write_files(run_dir, folder)


def variant(own: EvaluateConfig, used: EvaluateConfig) -> str:
    """What tells an evaluation from that of the run itself, whose settings are `own`; "" if none.

    It is the name of the shard set, and the values of other settings of model, images and
    precision: sketch, in1k-fp32-384.
    """
    before, now = own.flat(), used.flat()
    names = [name for name in now if name.startswith(("model.", "images.", "precision"))]
    values = [str(now[name]) for name in names if now[name] != before[name]]
    if used.data == own.data and not values:
        return ""
    return "-".join(re.sub(r"[^\w.]+", "-", text) for text in (set_name(used.data), *values))


def attach_probe(run_dir: Path, checkpoint: Checkpoint, folder: Path) -> None:
    """Record a linear probe of a checkpoint, beside the probes of the training."""
    write_model(run_dir, checkpoint)
    write_result(
        run_dir,
        folder,
        lambda r: {f"probe/{set_name(r['data'])}/linear": r["protocols"][CENTER]["top1"]},
    )
    journal.write_artifact(run_dir, folder / RESULT, f"probes/{folder.name}")
