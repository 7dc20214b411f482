"""One trial under Ray Tune: a run of the pipeline in a thread, followed by its records.

    tuner -> TrialActor -> pipeline.run.fit in a thread -> Ray Train workers
                  ^ records of the run, which its driver receives

Ray Train 2.60 cannot report to Tune through a class, and its callback for functions blocks the run
until Tune has answered. Here the thread that drives the run sees its records, and ends a run that
has diverged.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import ray.tune

from pipeline import run
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.outcome import Outcome as RunOutcome
from pipeline.settings.config import TrainConfig
from pipeline.tracking.journal import PLACE, read_records
from tune.plan import Plan
from tune.slots import shared
from tune.trial import DIVERGED, DONE, ENDED, FAILED, Outcome, Trial
from vit.registry import LOSSES

# a trial has diverged if its loss exceeds this multiple of the chance loss
FAR_ABOVE = 2.0
# seconds that a run has to end when it is told to; its processes are ended after that
STOP_S = 60.0
# what Ray Tune shows of the place of a trial
FACTS = ("rung", "place", "seed")
Fit = Callable[..., RunOutcome | None]


def tune_config(trial: Trial) -> dict[str, object]:
    """A trial as Ray Tune shows it: its name and place, and its sample by dotted name."""
    facts = {name: getattr(trial, name) for name in FACTS}
    return {"trial": trial.name, **facts, "preset": trial.sample is None, **(trial.sample or {})}


class TrialActor(ray.tune.Trainable):
    """Runs one trial after another; `step` waits for the end of the trial."""

    def setup(
        self, config: Mapping[str, object], plan: Plan, ended: Mapping[str, Outcome], fit: Fit
    ) -> None:
        """Start the first trial; `ended` are those that had ended before this start, by name."""
        self._plan, self._ended, self._fit = plan, ended, fit
        self._start(config)

    def reset_config(self, new_config: Mapping[str, object]) -> bool:
        """Start another trial in the same process, which saves its imports."""
        self.cleanup()
        self._start(new_config)
        return True

    def step(self) -> dict[str, object]:
        """How the trial ended, with its metrics."""
        outcome, config = self._future.result(), self._plan.config
        worst = {config.objective: config.sign * math.inf}
        return {**worst, **dataclasses.asdict(outcome), **outcome.values, "done": True}

    def cleanup(self) -> None:
        """End the trial if it is running, and wait for its end, but not for ever."""
        if self._follower:
            self._follower.stop()
        wait([self._future], timeout=STOP_S)

    def _start(self, facts: Mapping[str, object]) -> None:
        """Start the trial of `tune_config` on its slot."""
        self._follower, self._future = None, Future()
        if known := self._ended.get(facts["trial"]):
            self._future.set_result(known)
            return
        plan = self._plan
        sample = None if facts["preset"] else {n: facts[n] for n in plan.space.dimensions}
        trial = Trial(sample=sample, **{name: facts[name] for name in FACTS})
        batch = plan.tuned(sample, plan.horizon(trial.rung)).global_batch
        config = plan.trial_config(trial, shared(batch, facts["workers"]), facts["device"])
        self._follower = Follower(config, plan.config.objective)
        own = run.Trial(search=plan.folder, worker_cpus=facts["worker_cpus"])
        self._future = ThreadPoolExecutor(1, "trial").submit(self._follower.follow, self._fit, own)


class Follower:
    """Follows one run by its records, and ends it if it has diverged."""

    def __init__(self, config: TrainConfig, objective: str) -> None:
        self._config, self._objective = config, objective
        self._folder = RunFolder.of(config.runs_dir, config.name)
        self._limit = FAR_ABOVE * chance_loss(config)
        # why the run is to end, for it and for people
        self._stop_reason, self._explanation = None, ""
        # the run may have been interrupted: its records contain the time before that
        times = [record["time"] for record, _ in read_records(self._folder.path)]
        self._started = time.monotonic() - (times[-1] - times[0] if times else 0.0)

    def stop(self) -> None:
        """Let the run end at its next record."""
        self._stop_reason = self._stop_reason or "stopped"

    def on_record(self, record: Mapping[str, str | int | float]) -> str | None:
        """Take a record of the run; the return value is None, or the reason to end the run."""
        loss = record.get("train/loss", 0.0)
        if not loss <= self._limit:
            self._stop_reason = DIVERGED
            self._explanation = (
                f"mean loss {loss:.3g} up to step {record['step']}: above {self._limit:.3g}, "
                f"{FAR_ABOVE:g} times the loss of a model that guesses"
            )
        return self._stop_reason

    def follow(self, fit: Fit, own: run.Trial) -> Outcome:
        """Run it, and tell how it ended, from what it returned and from its records."""
        try:
            completed = fit(self._config, on_record=self.on_record, trial=own)
            status = DONE if completed else self._stop_reason
        except FloatingPointError as error:
            status, self._explanation = DIVERGED, str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the search tells it
            status, self._explanation = FAILED, f"{type(error).__name__}: {error}"
        last = {}
        for record, _ in read_records(self._folder.path):
            last |= record
        if status == DONE and self._objective not in last:
            has = ", ".join(name for name in last if "/" in name)
            status = FAILED
            self._explanation = f"the run has no metric {self._objective!r}; it has {has}"
        if status in ENDED:
            self._remove_checkpoints()
        step = int(last.get("step", 0))
        numbers = {name: value for name, value in last.items() if name not in PLACE}
        return Outcome(
            status=status if status in ENDED else FAILED,
            reason=self._explanation or ("" if status == DONE else "it was stopped"),
            values={k: v for k, v in numbers.items() if isinstance(v, int | float)},
            step=step,
            images=step * self._config.global_batch,
            seconds=round(time.monotonic() - self._started, 1),
            workers=self._config.workers,
            ended=time.time(),
        )

    def _remove_checkpoints(self) -> None:
        """Only the record of an ended trial is needed."""
        checkpoints = self._folder.checkpoints
        for checkpoint in checkpoints.all():
            checkpoints.delete(checkpoint)
        shutil.rmtree(self._folder.path / "ray", ignore_errors=True)


def chance_loss(config: TrainConfig) -> float:
    """Loss of a model with a new head on images of one class each; infinite if unknown."""
    if config.model.num_classes is None:
        return math.inf
    return LOSSES[config.loss.name].chance(config.model.num_classes, config.model.head_bias)
