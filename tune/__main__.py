"""Command line of the search: `python -m tune search PRESET`, and `python -m tune report SEARCH`.

The slow imports wait until the settings have been read and checked.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tyro

from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS, find_preset
from support.command import dispatch, first_value
from support.console import open_console
from tune.config import SearchConfig

if TYPE_CHECKING:
    from tune.job import SearchJob
    from tune.result import SearchResult

log = logging.getLogger("tune")

# before Ray is imported: trials stay in this folder, nothing is printed between our lines, Ctrl-C
# is ours
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search for the best settings of a preset by many short runs; the preset's come first."""

    preset: tyro.conf.Fixed[str]
    config: SearchConfig
    base: TrainConfig
    resume: bool = False
    """Resume the search of that name: what has ended is kept."""
    verbose: bool = False
    """Show what Ray and the other libraries print."""

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """Defaults of the preset that the arguments name."""
        name, rest = first_value(arguments, SearchConfig(), flags=("resume", "verbose"))
        if name:
            return cls(preset=name, config=SearchConfig(), base=find_preset(name)), [name], rest
        if "--help" in arguments or "-h" in arguments:
            return cls(preset="", config=SearchConfig(), base=TrainConfig()), ["PRESET"], rest
        raise ValueError(f"search needs a PRESET; known: {', '.join(PRESETS)}")

    @property
    def description(self) -> str:
        """What a search ends with, and which spaces and presets there are."""
        from tune.space import SPACES

        return (
            f"{self.__doc__}\n\nIt ends with the best settings as a file for python -m pipeline "
            f"train --preset-file, and a page with the map, the curves and what it cost. The "
            f"settings of the preset are --base.SETTING.\n\nspaces: {', '.join(SPACES)}, or a "
            f'JSON file of {{"setting": "range"}}\n\npresets: {", ".join(PRESETS)}'
        )

    def __call__(self) -> int:
        """Search; 1 if trials failed."""
        open_console(verbose=self.verbose)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from tune.prepare import prepare_job

        job = prepare_job(self.preset, self.base, self.config)
        from tune.search import open_folder, run_search

        open_folder(job, resume=self.resume)
        log.info("%s\n", job.describe())
        if not self.verbose:
            logging.getLogger("ray.tune").setLevel(logging.ERROR)
        try:
            result = run_search(job, verbose=self.verbose)
        except KeyboardInterrupt:
            log.info("the search is resumed by --resume")
            raise
        log.info("\n%s", ending(job, result))
        num_failed = result.counts().get("failed", 0)
        if num_failed:
            log.error("error: %d trials failed; --resume tries them again", num_failed)
        return 1 if num_failed else 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Work out the result of a search again, and write its preset file and page."""

    search: tyro.conf.Positional[str]
    """Folder of the search."""

    def __call__(self) -> int:
        """Write preset file and page."""
        open_console(verbose=False)
        from tune.prepare import read_job
        from tune.report import write_result

        job = read_job(Path(self.search).absolute())
        log.info("%s", ending(job, write_result(job)))
        return 0


def ending(job: "SearchJob", result: "SearchResult") -> str:
    """What a search ends with on the console."""
    from tune.report import BEST, PAGE
    from tune.summary import cost, result_table, sentences

    facts = {
        "cost": cost(result),
        "page": job.dir / PAGE,
        "train": f"python -m pipeline train --preset-file {job.dir / BEST}",
    }
    lines = "\n".join(f"{name:<12}{fact}" for name, fact in facts.items())
    return f"{result_table(result)}\n{lines}\n\n{chr(10).join(sentences(result))}"


COMMANDS = {"search": Search, "report": Report}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. Entry point of the script `vit-tune`."""
    return dispatch("python -m tune", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
