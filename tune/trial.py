"""One trial under Ray Tune: a run of the pipeline in a thread, observed evaluation by evaluation.

    tuner -> TrialActor -> pipeline.run.fit in a thread -> Ray Train workers
                  ^ records of the run, which its driver receives

Ray Train 2.60 cannot report to Tune through a class, and its callback for functions blocks the run
until Tune has answered. Here Tune sees the records that the driver of the run receives anyway. The
run continues meanwhile; if Tune stops the trial, the run ends with a checkpoint.
"""

import math
import queue
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ray.tune

from pipeline import run
from pipeline.evaluation.config import CENTER
from pipeline.outcome import Outcome
from pipeline.settings.config import TrainConfig
from pipeline.tracking.journal import read_records
from tune.config import SearchConfig, objectives
from tune.stopper import RUNG, rung_of
from tune.trial_log import DIVERGED, DONE, FAILED, STOPPED
from vit.registry import LOSSES

# a trial has diverged if its loss exceeds this multiple of the chance loss
FAR_ABOVE = 2.0
Fit = Callable[..., Outcome | None]


@dataclass(frozen=True, kw_only=True)
class TrialSetup:
    """What all trials of a search share."""

    trial: run.Trial
    search: SearchConfig
    longest_warmup: float
    fit: Fit


@dataclass(frozen=True, kw_only=True)
class Task:
    """One trial."""

    number: int
    repeat: int
    config: TrainConfig
    total_steps: int
    warmup: float
    """The warm-up as a share of the trial."""
    judged: bool
    """Whether the stopper may stop it."""


class TrialActor(ray.tune.Trainable):
    """Runs one trial after another; each `step` waits for the next evaluation."""

    def setup(self, config: Mapping[str, object], setup: TrialSetup) -> None:
        """Start the first trial."""
        self._setup = setup
        self._start(config["task"])

    def reset_config(self, new_config: Mapping[str, object]) -> bool:
        """Start another trial in the same process, which saves its imports."""
        self.cleanup()
        self._start(new_config["task"])
        return True

    def step(self) -> dict[str, object]:
        """The result of the next evaluation; after the last one, how the trial ended."""
        return self._observer.results.get()

    def cleanup(self) -> None:
        """Stop the trial if it is running, and wait for its end."""
        self._observer.stop()
        self._thread.shutdown(wait=True)

    def _start(self, task: Task) -> None:
        self._observer = RunObserver(task, self._setup)
        self._thread = ThreadPoolExecutor(1, "trial")
        follow = {"on_record": self._observer.on_record, "trial": self._setup.trial}
        future = self._thread.submit(self._setup.fit, task.config, **follow)
        future.add_done_callback(self._observer.conclude)


class RunObserver:
    """Turns the records of a run into results for Tune, and stops the run."""

    def __init__(self, task: Task, setup: TrialSetup) -> None:
        self.results: queue.Queue[dict[str, object]] = queue.Queue()
        self._task, self._setup = task, setup
        self._stop_reason: str | None = None
        self._explanation = ""
        self._rung = 0
        self._last: dict[str, str | int | float] = {}
        self._dir = Path(task.config.runs_dir) / task.config.name
        self._limit = FAR_ABOVE * chance_loss(task.config)
        # the run may have been interrupted: its records contain the time before that
        times = [record["time"] for record, _ in read_records(self._dir)]
        self._started = time.monotonic() - (times[-1] - times[0] if times else 0.0)

    def stop(self) -> None:
        """Let the run end at its next record."""
        self._stop_reason = self._stop_reason or STOPPED

    def on_record(self, record: Mapping[str, str | int | float]) -> str | None:
        """Take a record of the run; the return value is None, or the reason to stop the run."""
        self._last |= record
        loss = record.get("train/loss", 0.0)
        if not loss <= self._limit:
            self._stop_reason = DIVERGED
            self._explanation = (
                f"loss {loss:.3g} in step {record['step']}: above {self._limit:.3g}, "
                f"{FAR_ABOVE:g} times the loss of a model that guesses"
            )
        if record["kind"] == "eval" and not self._stop_reason:
            self._rung = rung_of(
                self._setup.search,
                share=record["step"] / self._task.total_steps,
                warmup=self._task.warmup,
                longest=self._setup.longest_warmup,
            )
            self.results.put(self._result())
        return self._stop_reason

    def conclude(self, ended: Future) -> None:
        """Put the last result, which states how the run ended."""
        error = ended.exception()
        if isinstance(error, FloatingPointError):
            status, self._explanation = DIVERGED, str(error)
        elif error:
            status, self._explanation = FAILED, f"{type(error).__name__}: {error}"
        elif outcome := ended.result():
            # a run that was finished before its driver died sends no records
            status, scores = DONE, outcome.protocols[CENTER]
            self._last |= {"step": outcome.steps, "images_per_s": outcome.images_per_s}
            self._last |= {f"val/{name}": value for name, value in scores.items()}
        else:
            status = self._stop_reason
        if status != FAILED:  # only the record of an ended trial is needed
            for folder in ("checkpoints", "ray"):
                shutil.rmtree(self._dir / folder, ignore_errors=True)
        last = {"done": True, "status": status, "reason": self._explanation}
        self.results.put({**self._result(), **last})

    def _result(self) -> dict[str, object]:
        step = int(self._last.get("step", 0))
        values = {name: self._last[name] for name in objectives() if name in self._last}
        return {
            # before its first evaluation a trial is worse than any other
            **{name: -math.inf if more else math.inf for name, more in objectives().items()},
            **values,
            "values": values,
            "trained_steps": step,
            "images": step * self._task.config.global_batch,
            "seconds": time.monotonic() - self._started,
            RUNG: self._rung,
        }


def chance_loss(config: TrainConfig) -> float:
    """Loss of a model with a new head on images of one class each; infinite if unknown."""
    if config.model.num_classes is None:
        return math.inf
    return LOSSES[config.loss.name].chance(config.model.num_classes, config.model.head_bias)
