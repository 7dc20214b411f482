"""Command line of the search: `python -m tune search PRESET`, and `python -m tune report SEARCH`.

Slow modules are imported only after the settings have been read and checked.
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
    from tune.result import SearchResult

log = logging.getLogger("tune")

# to be set before Ray is imported: trials stay in the working directory, Ray Tune prints nothing,
# and Ctrl-C is handled here
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search for the best settings of a preset by many short runs; the preset's own come first."""

    preset: tyro.conf.Fixed[str]
    config: SearchConfig
    base: TrainConfig
    resume: bool = False
    """Resume the search of that name; trials that have ended are kept."""
    verbose: bool = False
    """Show the output of Ray and the other libraries."""

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """Take the defaults from the preset that the arguments name."""
        name, rest = first_value(arguments, SearchConfig(), flags=("resume", "verbose"))
        if name:
            return cls(preset=name, config=SearchConfig(), base=find_preset(name)), [name], rest
        if "--help" in arguments or "-h" in arguments:
            return cls(preset="", config=SearchConfig(), base=TrainConfig()), ["PRESET"], rest
        raise ValueError(f"search needs a PRESET; known: {', '.join(PRESETS)}")

    @property
    def description(self) -> str:
        """The output of a search, and the spaces and presets to choose from."""
        from tune.space import SPACES

        return (
            f"{self.__doc__}\n\nIt writes the best settings to a file for python -m pipeline "
            f"train --preset-file, and a page with the map, the curves and the cost. The settings "
            f"of the preset are --base.SETTING.\n\nspaces: {', '.join(SPACES)}, or a "
            f'JSON file of {{"setting": "range"}}\n\npresets: {", ".join(PRESETS)}'
        )

    def __call__(self) -> int:
        """Run the search; returns 1 if trials failed."""
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
            log.info("--resume continues the search")
            raise
        log.info("\n%s", ending(result))
        if num_failed := result.counts().get("failed", 0):
            log.error("error: %d trials failed; --resume runs them again", num_failed)
        return int(num_failed > 0)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Compute the result of a search again, and write its preset file and page."""

    search: tyro.conf.Positional[str]
    """Folder of the search."""

    def __call__(self) -> int:
        """Write the preset file and the page."""
        open_console(verbose=False)
        from tune.page import write_result
        from tune.prepare import read_job

        log.info("%s", ending(write_result(read_job(Path(self.search).absolute()))))
        return 0


def ending(result: "SearchResult") -> str:
    """The result of a search for the console."""
    from tune.page import BEST, PAGE
    from tune.summary import cost, result_table, sentences

    lines = [
        result_table(result),
        f"cost        {cost(result)}",
        f"page        {result.job.dir / PAGE}",
        f"train       python -m pipeline train --preset-file {result.job.dir / BEST}\n",
        *sentences(result),
    ]
    return "\n".join(lines)


COMMANDS = {"search": Search, "report": Report}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; entry point of the script `vit-tune`."""
    return dispatch("python -m tune", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
