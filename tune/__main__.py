"""Command line of the search: `python -m tune search PRESET`, and `python -m tune report SEARCH`.

Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted. The slow imports wait until the
settings have been read and checked.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS
from support.console import open_console
from tune.config import SearchConfig

if TYPE_CHECKING:
    from tune.job import SearchJob

log = logging.getLogger("tune")

USAGE = """\
usage: python -m tune COMMAND ...

  search PRESET [--space warmup-lr] [--trials N] ...   find settings for a run by many short ones
  search PRESET ... --resume                           go on with a search that was interrupted
  report SEARCH                                        work out the answer of a search again

presets: {presets}
spaces:  warmup-lr, warmup-lr-decay, augment, finetune, or a JSON file of {{"setting": "range"}}

python -m tune search PRESET --help lists every setting of the search, and those of the preset as
--base.SETTING. A search ends with the best settings as a file for
python -m pipeline train --preset-file, and a page with the map, the curves and what it cost.
"""
# before Ray is imported: trials stay in this folder, nothing between the lines, Ctrl-C is ours
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search for the best settings of a preset; the preset's own are tried first."""

    config: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)
    base: TrainConfig = field(default_factory=TrainConfig)
    resume: bool = False
    """Go on with the search of that name: what has ended is kept."""
    verbose: bool = False
    """Show what Ray and the other libraries say."""


def main(arguments: Sequence[str]) -> int:
    """Run a command; its exit status."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if command not in COMMANDS:
        return refuse(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
    if not rest or rest[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if rest else 2
    return COMMANDS[command](*rest)


def usage() -> str:
    """The help page."""
    return USAGE.format(presets=", ".join(PRESETS))


def refuse(message: str) -> int:
    """Say what is wrong with the input; the status for it."""
    sys.stderr.write(f"error: {message}\n")
    return 2


def search_command(preset: str, *settings: str) -> int:
    """`search PRESET`: read and check the settings, then search."""
    if preset not in PRESETS:
        return refuse(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    prog = f"python -m tune search {preset}"
    try:
        default = Search(base=PRESETS[preset]())
        parsed = tyro.cli(Search, args=settings, default=default, prog=prog)
    except ValueError as error:  # a rule between settings
        return refuse(str(error))
    return search(preset, parsed)


def search(preset: str, command: Search) -> int:
    """Carry out the command; its exit status."""
    open_console(verbose=command.verbose)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from tune.data import prepare_job

    try:
        job = prepare_job(preset, command.base, command.config)
        from tune.search import open_folder, run_search

        open_folder(job, resume=command.resume)
    except (ValueError, OSError) as error:
        return refuse(str(error))
    log.info("%s\n", job.describe())
    if not command.verbose:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        found = run_search(job, verbose=command.verbose)
    except KeyboardInterrupt:
        log.info("interrupted; the same command with --resume goes on")
        return 130
    except ValueError as error:
        log.error("error: %s", error)
        return 1
    log.info("\n%s", ending(job, found))
    failed = found.counts().get("failed", 0)
    if failed:
        log.error("error: %d trials failed; --resume tries them again", failed)
    return 1 if failed else 0


def report_command(folder: str, *rest: str) -> int:
    """`report SEARCH`: work out the answer again, and write preset file and page."""
    if rest:
        return refuse(f"report takes one folder of a search, not also {' '.join(rest)}")
    open_console(verbose=False)
    from tune.prepare import read_job
    from tune.report import conclude

    try:
        job = read_job(Path(folder).absolute())
        found = conclude(job)
    except (ValueError, OSError) as error:
        return refuse(str(error))
    log.info("%s", ending(job, found))
    return 0


def ending(job: "SearchJob", found: object) -> str:
    """What a search ends with on the console."""
    from tune.report import BEST, PAGE
    from tune.summary import cost, result_table, sentences

    facts = {
        "cost": cost(found),
        "page": job.dir / PAGE,
        "train": f"python -m pipeline train --preset-file {job.dir / BEST}",
    }
    lines = "\n".join(f"{name:<12}{fact}" for name, fact in facts.items())
    return f"{result_table(found)}\n{lines}\n\n{chr(10).join(sentences(found))}"


COMMANDS = {"search": search_command, "report": report_command}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
