"""The commands for runs and checkpoints that exist: rollback, report, track sync, export."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from support.console import open_console

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Take a run back to an earlier checkpoint; later checkpoints are deleted."""

    run: tyro.conf.Positional[str]
    """Folder or URI of the run."""
    step: int
    """Step of the checkpoint from which the run will go on."""

    def __call__(self) -> int:
        """Delete what comes after the step."""
        open_console(verbose=False)
        from pipeline.rollback import roll_back

        checkpoint = roll_back(self.run, self.step)
        log.info("the run goes on from %s with the next train command", checkpoint.path.name)
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the report about a run, report.html, into its folder."""

    run: tyro.conf.Positional[str]
    """Folder or URI of the run."""
    price_per_hour: float | None = None
    """Price of one worker (one GPU) per hour, to report the cost of the run."""

    def __call__(self) -> int:
        """Write the report."""
        open_console(verbose=False)
        from pipeline.checkpoint.run_folder import fetched_run, run_of
        from pipeline.report.run_page import write_report

        path = write_report(fetched_run(self.run), price_per_hour=self.price_per_hour)
        if "://" in self.run:
            run_of(self.run).push(path.name)
        log.info("report      %s", path)
        return 0


@dataclass(frozen=True, kw_only=True)
class TrackSync:
    """Send to MLflow the part of a run's record that it does not have yet."""

    run: tyro.conf.Positional[str]
    """Folder or URI of the run."""

    def __call__(self) -> int:
        """Send it; returns 1 if a part could not be sent."""
        open_console(verbose=False)
        from pipeline.checkpoint.run_folder import fetched_run
        from pipeline.tracking.mlflow_sync import sync

        return sync(fetched_run(self.run))


@dataclass(frozen=True, kw_only=True)
class TrackServe:
    """Serve MLflow's page and API, with the data in a folder or in an object store.

    One server at a time has a place. A cluster has such a server on its head, with its data in
    RUNS_DIR/mlflow; after the cluster is gone, serve that place to see the page.
    """

    place: tyro.conf.Positional[str]
    """Folder or URI of the database and of the artifacts."""
    port: int = 5000
    """Port; only this machine can reach it."""

    def __call__(self) -> int:
        """Serve until Ctrl-C."""
        open_console(verbose=False)
        from pipeline.launch.mlflow_server import serve

        return serve(self.place, self.port)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the weights of a checkpoint for another program."""

    checkpoint: tyro.conf.Positional[str]
    """Folder or URI of a run or of a checkpoint, or a file of weights."""
    file: tyro.conf.Positional[str]
    """File to write: .safetensors (timm's names), .npz (Google's names) or .pt (quantised)."""
    head: Literal["keep", "drop"] = "keep"
    """For .safetensors: drop leaves out the head, and the tanh layer before it, which timm lacks;
    timm computes features with the rest."""
    layout: Literal["vit", "big_vision"] = "vit"
    """For .npz: the layout of vision_transformer and AugReg, or that of big_vision."""
    quantise: Literal["int8-static", "int8-dynamic", "int8-weight", "float8"] = "int8-static"
    """For .pt: the scheme; int8-static calibrates on images of --data."""
    data: str | None = None
    """For .pt: shard set for the calibration; by default that of the checkpoint's run."""

    def __call__(self) -> int:
        """Write the file."""
        open_console(verbose=False)
        from pipeline.checkpoint.run_folder import fetched_model
        from pipeline.evaluation.export import export

        options = {"layout": self.layout, "scheme": self.quantise, "data": self.data}
        export(fetched_model(self.checkpoint), Path(self.file), head=self.head, **options)
        log.info("wrote       %s", self.file)
        return 0
