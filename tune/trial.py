"""One trial under Ray Tune: a run of the pipeline in a thread, followed evaluation by evaluation.

    tuner -> TrialActor -> pipeline.run.fit in a thread -> Ray Train workers
                  ^ records of the run, on the driver's side of it

Ray Train 2.60 cannot report to Tune through a class, and its callback for functions blocks the run
until Tune has answered. Here the records of the run, which come to its driver anyway, are what Tune
sees; the run goes on meanwhile, and when Tune stops the trial it ends with a checkpoint.
"""

import logging
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
from pipeline.tracking.journal import RECORDS
from support.files import read_lines
from tune.config import SearchConfig, objectives
from tune.stopper import RUNG, rung_of
from tune.trial_log import DIVERGED, DONE, FAILED, STOPPED
from vit.registry import LOSSES

log = logging.getLogger(__name__)

# a loss this many times the one of a model that knows nothing is far above its start
FAR_ABOVE = 2.0
Fit = Callable[..., Outcome | None]


@dataclass(frozen=True, kw_only=True)
class TrialSetup:
    """What all trials of a search share."""

    search_dir: Path
    worker_cpus: int
    search: SearchConfig
    longest_warmup: float
    fit: Fit = run.fit


@dataclass(frozen=True, kw_only=True)
class Task:
    """One trial."""

    number: int
    repeat: int
    config: TrainConfig
    total_steps: int
    warmup: float
    """Share of it that its warm-up takes."""
    judged: bool
    """Whether the stopper may stop it."""


class TrialActor(ray.tune.Trainable):
    """Runs one trial after the other; each `step` waits for the next evaluation."""

    def setup(self, config: Mapping[str, object], setup: TrialSetup) -> None:
        """Begin the first trial."""
        self._bench = setup
        self._begin(config["task"])

    def reset_config(self, new_config: Mapping[str, object]) -> bool:
        """Begin another trial in the same process, which has all its imports."""
        self._end()
        self._begin(new_config["task"])
        return True

    def step(self) -> dict[str, object]:
        """The next evaluation; after the last one how the trial ended."""
        return self._results.get()

    def cleanup(self) -> None:
        """Stop the trial, if it is at work."""
        self._end()

    def _begin(self, task: Task) -> None:
        self._following = RunObserver(task, self._bench)
        self._results = self._following.results
        self._thread = ThreadPoolExecutor(1, "trial")
        self._thread.submit(self._bench.fit, **self._following.call()).add_done_callback(
            self._following.conclude
        )

    def _end(self) -> None:
        self._following.stop()
        self._thread.shutdown(wait=True)


class RunObserver:
    """What is seen of a run from outside: results for Tune, and whether it is to stop."""

    def __init__(self, task: Task, setup: TrialSetup) -> None:
        self.results: queue.Queue[dict[str, object]] = queue.Queue()
        self._task, self._bench = task, setup
        self._word: str | None = None
        self._reason = ""
        self._rung = 0
        self._last: dict[str, float] = {}
        self._dir = Path(task.config.runs_dir) / task.config.name
        self._limit = FAR_ABOVE * chance_loss(task.config)
        self._since = time.monotonic() - seconds_before(self._dir / RECORDS)

    def call(self) -> dict[str, object]:
        """Arguments of `fit`."""
        return {
            "config": self._task.config,
            "on_record": self.on_record,
            "trial": run.Trial(
                search_dir=self._bench.search_dir, worker_cpus=self._bench.worker_cpus
            ),
        }

    def stop(self) -> None:
        """Let the run end at its next record."""
        self._word = self._word or STOPPED

    def on_record(self, record: Mapping[str, str | int | float]) -> str | None:
        """Follow a record of the run; a word ends the run."""
        self._last |= {k: v for k, v in record.items() if k in objectives() or k == "step"}
        loss = record.get("train/loss", 0.0)
        if not loss <= self._limit:
            self._word = DIVERGED
            self._reason = (
                f"loss {loss:.3g} in step {record['step']}: above {self._limit:.3g}, "
                f"{FAR_ABOVE:g} times that of a model that knows nothing"
            )
        if record["kind"] == "eval" and not self._word:
            self._rung = rung_of(
                self._bench.search,
                share=record["step"] / self._task.total_steps,
                warmup=self._task.warmup,
                longest=self._bench.longest_warmup,
            )
            self.results.put(self._result())
        return self._word

    def conclude(self, ended: Future) -> None:
        """Say how the run ended."""
        error = ended.exception()
        if isinstance(error, FloatingPointError):
            status, self._reason = DIVERGED, str(error)
        elif error:
            status, self._reason = FAILED, f"{type(error).__name__}: {error}"
        elif outcome := ended.result():
            status = DONE
            self._take(outcome)
        else:
            status = self._word
        if status != FAILED:  # what is kept is the record
            for folder in ("checkpoints", "ray"):
                shutil.rmtree(self._dir / folder, ignore_errors=True)
        self.results.put({**self._result(), "done": True, "status": status, "reason": self._reason})

    def _take(self, outcome: Outcome) -> None:
        """The figures of a run that is through; it may have been before its driver died."""
        scores = {f"val/{name}": value for name, value in outcome.protocols[CENTER].items()}
        figures = {"step": outcome.steps, "images_per_s": outcome.images_per_s, **scores}
        self._last |= {k: v for k, v in figures.items() if k in objectives() or k == "step"}

    def _result(self) -> dict[str, object]:
        step = int(self._last.get("step", 0))
        values = {name: self._last[name] for name in objectives() if name in self._last}
        return {
            # before its first evaluation a trial is worse than any other
            **{name: -math.inf if more else math.inf for name, more in objectives().items()},
            **values,
            "values": values,
            "number": self._task.number,
            "trained_steps": step,
            "images": step * self._task.config.global_batch,
            "seconds": time.monotonic() - self._since,
            RUNG: self._rung,
        }


def chance_loss(config: TrainConfig) -> float:
    """Loss of a model with a new head on images of one class each; infinite if unknown."""
    if config.model.num_classes is None:
        return math.inf
    return LOSSES[config.loss.name].chance(config.model.num_classes, config.model.head_bias)


def seconds_before(path: Path) -> float:
    """How long a run had been at work when it was interrupted, by its records."""
    times = [record["time"] for record, _ in read_lines(path)]
    return times[-1] - times[0] if times else 0.0
