"""The command that fits a new head to a frozen body: `python -m pipeline probe CHECKPOINT`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import tyro

from pipeline.commands.checkpoint import split_off
from pipeline.evaluation.config import LinearProbeConfig
from support.console import Progress, open_console
from support.settings import field_docs

log = logging.getLogger(__name__)

NEEDS_CHECKPOINT = (
    "probe needs a CHECKPOINT: the folder or URI of a run or of a checkpoint, or a file of "
    "weights, with or without a head"
)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Fit a linear head to the frozen body of a model; the same command resumes.

    The features of the train split and of the eval split are computed once. A tenth of the train
    split selects the strength of the regularisation; the eval split is only reported on. Body and
    head become a checkpoint, from which evaluate, export and train --init-from start.
    """

    checkpoint: tyro.conf.Fixed[str]
    config: LinearProbeConfig
    verbose: bool = False
    """Show the output of Ray and of the other libraries."""

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """Take the defaults from the checkpoint."""
        fields, *words = split_off(arguments, LinearProbeConfig(), cls.defaults, NEEDS_CHECKPOINT)
        return cls(**fields), *words

    @classmethod
    def defaults(cls, path: str) -> LinearProbeConfig:
        """Settings for a checkpoint, as far as its file states them."""
        from pipeline.checkpoint.run_folder import fetched_model
        from pipeline.evaluation.model import EvalModel

        return EvalModel.open(fetched_model(path), needs_head=False).probe()

    def __call__(self) -> int:
        """Probe, and show the result."""
        if not self.config.data:
            raise ValueError(
                f"{self.checkpoint} does not name the data to fit a head to; give --data: "
                f"{field_docs(LinearProbeConfig)['data']}"
            )
        open_console(verbose=self.verbose)
        from pipeline.checkpoint.run_folder import fetched_model, run_of
        from pipeline.cluster.session import ray_session
        from pipeline.evaluation.linear_probe import LinearProbe
        from pipeline.evaluation.model import EvalModel
        from pipeline.evaluation.result_table import result_table

        config = self.config.absolute()
        eval_model = EvalModel.open(fetched_model(self.checkpoint), needs_head=False)
        probe = LinearProbe.open(eval_model, config)
        if eval_model.run_dir and "://" in self.checkpoint and not config.out:
            probe.pull(run_of(self.checkpoint))
        with ray_session(extra_cpus=config.workers, verbose=self.verbose):
            result = probe.run(Progress)
        log.info("\n%s\n\nresult      %s", result_table(result), probe.folder)
        log.info("checkpoint  %s", result["probed"])
        if eval_model.run_dir:
            from pipeline.commands.evaluate import attach_and_send
            from pipeline.run_events import attach_probe

            kept = () if config.out else probe.kept
            attach_and_send(eval_model, self.checkpoint, probe.folder, kept, attach_probe)
        return 0


@dataclass(frozen=True, kw_only=True)
class ProbeElsewhere(Probe):
    """A probe on another machine, which alone may be able to read the checkpoint."""

    @classmethod
    def defaults(cls, path: str) -> LinearProbeConfig:
        """Leave the defaults that come from the checkpoint to the other machine."""
        return LinearProbeConfig()
