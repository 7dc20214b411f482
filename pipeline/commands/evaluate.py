"""The command that evaluates a checkpoint: `python -m pipeline evaluate CHECKPOINT`."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tyro

from pipeline.commands.checkpoint import split_off
from pipeline.evaluation.config import EvaluateConfig
from support.console import Progress, open_console
from support.settings import field_docs

if TYPE_CHECKING:
    from pipeline.checkpoint.local import Checkpoint
    from pipeline.evaluation.model import EvalModel

log = logging.getLogger(__name__)

NEEDS_CHECKPOINT = (
    "evaluate needs a CHECKPOINT: the folder or URI of a run or of a checkpoint, or a file "
    "of weights"
)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a model with one crop and with many; the same command resumes."""

    checkpoint: tyro.conf.Fixed[str]
    config: EvaluateConfig
    verbose: bool = False
    """Show the output of Ray and of the other libraries."""

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """Take the defaults from the checkpoint."""
        fields, *words = split_off(
            arguments, EvaluateConfig(data=""), cls.defaults, NEEDS_CHECKPOINT
        )
        return cls(**fields), *words

    @classmethod
    def defaults(cls, path: str) -> EvaluateConfig:
        """Settings for a checkpoint, as far as its file states them."""
        from pipeline.checkpoint.run_folder import fetched_model
        from pipeline.evaluation.model import EvalModel

        return EvalModel.open(fetched_model(path)).evaluation()

    def __call__(self) -> int:
        """Evaluate, and add the result to the record of the run of the checkpoint."""
        if not self.config.data:
            raise ValueError(
                f"{self.checkpoint} does not name the data to evaluate on; give --data: "
                f"{field_docs(EvaluateConfig)['data']}"
            )
        open_console(verbose=self.verbose)
        from pipeline.checkpoint.run_folder import fetched_model
        from pipeline.cluster.session import ray_session
        from pipeline.evaluation import evaluate
        from pipeline.evaluation.model import EvalModel
        from pipeline.evaluation.result_table import result_table
        from shards.dataset.format import open_set

        config = self.config.absolute()
        eval_model = EvalModel.open(fetched_model(self.checkpoint))
        dataset = evaluate.open_dataset(config)
        if config.real and not Path(config.real).is_file():
            raise FileNotFoundError(f"--real {config.real} is not there; give ReaL's real.json")
        if config.v2:
            open_set(config.v2)
        folder = Path(config.out or evaluate.default_folder(eval_model, config, dataset))
        with ray_session(extra_cpus=config.workers, verbose=self.verbose):
            progress = Progress("evaluate")
            result = evaluate.evaluate_model(eval_model, config, dataset, folder, progress)
        log.info("\n%s\n\nresult      %s", result_table(result), folder)
        if eval_model.run_dir:
            from pipeline.run_events import attach, variant

            name = variant(eval_model.evaluation().absolute(), config)
            recorded = partial(attach, variant=name)
            attach_and_send(eval_model, self.checkpoint, folder, ("evaluations",), recorded)
        return 0


@dataclass(frozen=True, kw_only=True)
class EvaluateElsewhere(Evaluate):
    """An evaluation on another machine, which alone may be able to read the checkpoint."""

    @classmethod
    def defaults(cls, path: str) -> EvaluateConfig:
        """Leave the defaults that come from the checkpoint to the other machine."""
        return EvaluateConfig(data="")


def attach_and_send(
    eval_model: "EvalModel",
    location: str,
    folder: Path,
    names: Sequence[str],
    attach: Callable[[Path, "Checkpoint", Path], None],
) -> None:
    """Add a result to the record of the run at a location, and send it to MLflow.

    `names` are the files and folders of the run's folder to put into the store, if it is in one;
    `attach` records the result in `folder`, given the run's folder and the checkpoint.
    """
    from pipeline import run
    from pipeline.checkpoint.local import Checkpoint
    from pipeline.checkpoint.run_folder import run_of
    from pipeline.tracking import mlflow_sync
    from pipeline.tracking.journal import EVENTS
    from support.files import AlreadyLocked
    from support.lease import leased
    from vit.weights import MODEL_FILE

    if not (eval_model.run_dir / EVENTS).exists():
        return
    checkpoint = Checkpoint.open(eval_model.path, only=MODEL_FILE)
    home = run_of(location) if "://" in location else None
    try:
        with leased(home) if home else contextlib.nullcontext():
            if home:  # the run may have gone on meanwhile
                home.push(*names)
                home.pull()
            attach(eval_model.run_dir, checkpoint, folder)
            mlflow_sync.sync(eval_model.run_dir, home.models if home else None)
            if home:
                home.push(*run.FILES)
    except AlreadyLocked as error:  # the driver that trains the run sends its record itself
        log.info("the record of the run is that of another process now: %s", error)
