"""Command line of the pipeline: `python -m pipeline train PRESET [--dotted.setting value]`.

Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted. The slow imports wait until the
settings have been read and checked.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.config import DIGITS, PRESETS, TrainConfig
from pipeline.console import open_console

log = logging.getLogger("pipeline")

USAGE = """\
usage: python -m pipeline COMMAND ...

  train PRESET [--dotted.setting value ...]   train, evaluate and record a run, or go on with one

presets:
{presets}

python -m pipeline train PRESET --help lists every setting with its value in that preset.
"""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train, evaluate and record a run; the same command goes on with one that was interrupted."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    verbose: bool = False
    """Show what Ray and the other libraries say."""


def main(arguments: Sequence[str]) -> int:
    """Run a command; its exit status."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if command != "train":
        return refuse(f"unknown command {command!r}; known: train")
    if not rest or rest[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if rest else 2
    preset, *settings = rest
    if preset not in PRESETS:
        return refuse(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    prog = f"python -m pipeline train {preset}"
    default = Train(config=PRESETS[preset]())
    try:
        parsed = tyro.cli(Train, args=settings, default=default, prog=prog)
    except ValueError as error:  # a rule between settings
        return refuse(str(error))
    return train(parsed)


def usage() -> str:
    """The help page, with the first line of each preset's docstring."""
    width = max(map(len, PRESETS))
    lines = (
        f"  {name:<{width}}  {(p.__doc__ or '').splitlines()[0]}" for name, p in PRESETS.items()
    )
    return USAGE.format(presets="\n".join(lines))


def refuse(message: str) -> int:
    """Say what is wrong with the input; the status for it."""
    sys.stderr.write(f"error: {message}\n")
    return 2


def train(command: Train) -> int:
    """Carry out the command; its exit status."""
    open_console(verbose=command.verbose)
    # before Ray is imported: workers stay in this folder, and no bars between the lines
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    from pipeline.job import prepare

    try:
        job = prepare(absolute(command.config))
    except (ValueError, FileNotFoundError) as error:
        return refuse(str(error))
    from pipeline.run import execute

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    try:
        outcome = execute(job, verbose=command.verbose)
    except KeyboardInterrupt:
        log.info("interrupted; the same command goes on from the last checkpoint")
        return 130
    log.info("\n%s", outcome.table(job))
    return 0


def absolute(config: TrainConfig) -> TrainConfig:
    """The config with absolute paths: workers run in other folders, on other machines."""
    paths = {"runs_dir": str(Path(config.runs_dir).absolute())}
    if config.data.dir != DIGITS and "://" not in config.data.dir:
        paths["data.dir"] = str(Path(config.data.dir).absolute())
    return config.replace(paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
