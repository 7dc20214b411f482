"""The commands that set runs beside each other: list, compare."""

import dataclasses
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from support.console import open_console, table
from support.redact import redact, redacted

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ListRuns:
    """List the runs of a folder or prefix, the one that changed last first.

    A run has the nearest preset and how many settings differ from it, its last rate, top-1 with
    split and crops, and its hours over all starts. A search is one row with all its trials.
    """

    runs_dir: tyro.conf.Positional[str] = "runs"
    """Folder or s3:// or gs:// prefix of the runs; that of the trials of a search is
    RUNS_DIR/SEARCH/trials."""
    price_per_hour: float | None = None
    """Price of one worker (one GPU) per hour, in place of record.price_per_hour of each run."""
    json: bool = False
    """Write JSON, with the names of the settings that differ, in place of the table."""

    def __call__(self) -> int:
        """Write the list; returns 0 even if a folder cannot be read, which is named."""
        open_console(verbose=False)
        from pipeline.report import run_list

        runs = run_list.list_runs(self.runs_dir)
        if self.json:
            costs = [{"cost": run.cost(self.price_per_hour)} for run in runs]
            rows = [{**dataclasses.asdict(r), **c} for r, c in zip(runs, costs, strict=True)]
            sys.stdout.write(f"{json.dumps(redacted(rows), indent=1)}\n")
            return 0
        if not runs:
            log.info("no runs in %s", self.runs_dir)
            return 0
        rows = run_list.rows(runs, time.time(), self.price_per_hour)
        log.info("%s", table(rows, run_list.WORDS))
        for run in runs:
            if run.problem:
                log.warning("%s cannot be read: %s", run.name, run.problem)
        return 0


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare runs or evaluations: curves, settings, figures, models on the same images.

    Writes a page without scripts, and the same tables here. Each is compared with the first. Models
    are tested on the images that both were evaluated on under the same crops; where there are none,
    the command that evaluates them is named.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders or URIs of two or more runs, or of evaluations (RUN/evaluations/NAME)."""
    out: str = "compare.html"
    """Page to write."""
    price_per_hour: float | None = None
    """Price of one worker (one GPU) per hour, in place of record.price_per_hour of each run."""

    def __call__(self) -> int:
        """Write the page and the tables."""
        open_console(verbose=False)
        out = Path(self.out).absolute()
        if not out.parent.is_dir() or out.is_dir():
            raise ValueError(
                f"--out ({redact(self.out)}) must be a file in a folder that exists, such as "
                f"compare.html"
            )
        from pipeline.report.compare_page import write_comparison
        from pipeline.report.comparison import Comparison

        comparison = Comparison.of(self.runs, self.price_per_hour)
        log.info("%s", comparison.text())
        write_comparison(comparison, out)
        log.info("\npage        %s", out)
        return 0
