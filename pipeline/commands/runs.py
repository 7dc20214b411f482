"""The commands for runs and checkpoints that exist: rollback, report, track sync."""

import logging
from dataclasses import dataclass

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

        run_dir, home = fetched_run(self.run), run_of(self.run) if "://" in self.run else None
        given = {"price_per_hour": self.price_per_hour, "place": home and home.place}
        path = write_report(run_dir, **given)
        if home:
            home.push(path.name)
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
