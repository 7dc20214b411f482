"""The end of a run that has trained to its last step: evaluation, result, and its record.

chosen checkpoint -> evaluation with many crops -> result.json -> the end of the record
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.checkpoint.local import SELECT, Checkpoint
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.evaluate import default_folder, evaluate_model
from pipeline.evaluation.model import EvalModel
from pipeline.outcome import DONE, FINISHED, OUTCOME_TAG, Outcome, training_rate
from pipeline.run_events import record_result
from pipeline.tracking.recorder import Recorder
from pipeline.train.job import Job
from support.console import Progress, log_stage


def evaluate_chosen(job: Job) -> tuple[Checkpoint, Path, dict]:
    """Evaluate the last checkpoint, or the selected one, with one crop and with many.

    Returns the checkpoint, the folder of the evaluation, and its result.
    """
    chosen = job.checkpoints.fetch(job.checkpoints.chosen())
    config, eval_model = job.config, EvalModel.open(chosen.path)
    settings = eval_model.evaluation(
        crops=(config.crops,),
        batch=config.eval_batch,
        workers=config.workers,
        compile=config.compile,
    )
    stage = f"evaluate {chosen.path.name}: {', '.join(settings.protocols)}"
    log_stage(job.num_stages, job.num_stages, stage)
    folder = default_folder(eval_model, settings, job.eval)
    result = evaluate_model(eval_model, settings, job.eval, folder, Progress("evaluate"))
    return chosen, folder, result


def finish(
    job: Job, recorder: Recorder, chosen: Checkpoint, folder: Path, result: Mapping
) -> Outcome:
    """Write and record the result of a run: the evaluation of a checkpoint, in a folder."""
    outcome = Outcome(
        steps=job.total_steps,
        images_per_s=training_rate(job.dir),
        checkpoint=job.checkpoints.location(chosen),
        protocols=result["protocols"],
        changes=result["changes"],
        evaluation=str(folder),
        chosen=reason(job, chosen),
    )
    outcome.write(job.dir)
    record_result(recorder, job, chosen, folder)
    return outcome


def reason(job: Job, chosen: Checkpoint) -> str:
    """Why a run reports this checkpoint, in words."""
    if not job.select:
        return "the last step"
    top1, split = chosen.metrics[SELECT], job.config.data.select_split
    return f"step {chosen.step:,}, the highest top-1 on {split}: {top1:.4f}"


def finish_trial(job: Job, recorder: Recorder, last: Checkpoint) -> Outcome:
    """End a trial; its result is the evaluation at the last step, at the end of the schedule."""
    metrics = {name.removeprefix("val/"): value for name, value in last.metrics.items()}
    outcome = Outcome(
        steps=last.step,
        images_per_s=training_rate(job.dir),
        checkpoint=job.checkpoints.location(last),
        protocols={CENTER: metrics},
    )
    outcome.write(job.dir)
    recorder.end(FINISHED, tags={OUTCOME_TAG: DONE})
    return outcome
