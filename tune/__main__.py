"""Command line of the search: `python -m tune search PRESET`, and `python -m tune report SEARCH`.

Slow modules are imported only after the settings have been read and checked.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import tyro

from pipeline.commands.train import preset_for
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS
from support.command import dispatch, first_value
from support.console import open_console, table
from tune.config import SearchConfig

if TYPE_CHECKING:
    from tune.answer import Answer

log = logging.getLogger("tune")

# to be set before Ray is imported: trials stay in the working directory, Ray Tune prints nothing,
# and Ctrl-C is handled here
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    # else trials would start one after the other; the driver limits them
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search for the best settings of a preset by rungs of short runs that grow longer."""

    interrupted: ClassVar[str] = "the same command with --resume continues the search"
    preset: tyro.conf.Fixed[str]
    config: SearchConfig
    base: TrainConfig
    resume: bool = False
    """Resume the search of that name; trials that have ended are kept."""
    plan: bool = False
    """Only show the rungs and the expected cost: images, GPU-hours, bytes, share of the run."""
    plan_gpu: str = "H100"
    """Kind of GPU for the GPU-hours, such as H100 or H100-PCIe."""
    plan_mfu: float | None = None
    """Share of the GPU's peak to assume for the GPU-hours; None estimates it."""
    verbose: bool = False
    """Show the output of Ray and the other libraries."""

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """Take the defaults from the preset that the arguments name."""
        flags = ("resume", "plan", "verbose")
        name, rest = first_value(arguments, SearchConfig(), flags=flags)
        if name:
            return cls(preset=name, config=SearchConfig(), base=cls.real(name, rest)), [name], rest
        if "--help" in arguments or "-h" in arguments:
            return cls(preset="", config=SearchConfig(), base=TrainConfig()), ["PRESET"], rest
        raise ValueError(f"search needs a PRESET; known: {', '.join(PRESETS)}")

    @classmethod
    def real(cls, name: str, arguments: Sequence[str]) -> TrainConfig:
        """Settings of the preset; of one without a size, for the weights of --base.init-from."""
        return preset_for(name, arguments, "--base.")

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
        """Run the search, or only show what it will cost."""
        from tune.prepare import described, make_plan

        how = {"gpu": self.plan_gpu, "mfu": self.plan_mfu}
        plan = make_plan(self.preset, self.base, self.config, **how)
        text = described(plan, **how)
        if self.plan:
            sys.stdout.write(f"{text}\n")
            return 0
        open_console(verbose=self.verbose)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from pipeline.run import prepared

        # each trial would find later what does not fit; in the folder of the search is no run
        job = prepared(plan.run.replace({"name": plan.name}))
        from tune.search import run_search

        log.info("%s\n", text)
        if not self.verbose:
            logging.getLogger("ray.tune").setLevel(logging.ERROR)
        answer = run_search(plan, weights=job.weights, resume=self.resume, verbose=self.verbose)
        log.info("\n%s", ending(answer, answer.plan.dir))
        return 0


@dataclass(frozen=True, kw_only=True)
class SearchElsewhere(Search):
    """A search on another machine, which alone may be able to read the initial weights."""

    @classmethod
    def real(cls, name: str, arguments: Sequence[str]) -> TrainConfig:
        """Settings of the preset; one without a size gets it there."""
        return preset_for(name, arguments, "--base.", read=False)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Compute the answer of a search again, and write its preset file and page."""

    search: tyro.conf.Positional[str]
    """Folder of the search, or its prefix in a store."""

    def __call__(self) -> int:
        """Write the preset file and the page."""
        open_console(verbose=False)
        from pipeline.checkpoint.run_folder import fetched_run
        from tune.page import write_answer
        from tune.plan import read_plan
        from tune.study import Study

        folder = fetched_run(self.search)
        plan = read_plan(folder)
        trials = Study.read(plan, folder).trials()
        log.info("%s", ending(write_answer(plan, trials, folder), folder))
        return 0


def ending(answer: "Answer", folder: Path) -> str:
    """The answer of a search for the console, and its files in a folder."""
    from tune.page import BEST, PAGE

    counts = ", ".join(f"{number} {status}" for status, number in answer.counts().items())
    return "\n".join(
        [
            f"{table(answer.table())}\n",
            f"trials      {counts}",
            f"page        {folder / PAGE}",
            f"train       python -m pipeline train --preset-file {folder / BEST}\n",
            *answer.sentences(),
        ]
    )


COMMANDS = {"search": Search, "report": Report}
ELSEWHERE = {Search: SearchElsewhere}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; entry point of the script `vit-tune`."""
    return dispatch("python -m tune", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
