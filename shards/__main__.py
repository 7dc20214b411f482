"""Build, index, verify and describe shard sets: `python -m shards build|index|verify|info`.

Slow imports wait until the arguments are checked.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import tyro

from shards.build.config import BuildConfig
from support.command import dispatch
from support.console import open_console
from support.redact import redact

log = logging.getLogger("shards")


@dataclass(frozen=True, kw_only=True)
class _Parallel:
    """A command that runs its tasks on Ray or in this process."""

    workers: int | None = None
    """Processes that work; 0 uses this one alone; None uses the cluster of RAY_ADDRESS, or all
    cores of this machine."""

    def runner(self, inputs: Sequence[str], out: str | None = None) -> Callable:
        """Start Ray if it is needed, and return the function that runs tasks.

        ValueError if a node of the cluster does not see the inputs or the output.
        """
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers ({self.workers}) must be at least 0; 0 is this process")
        if self.workers == 0:
            from shards.build.progress import serial

            return serial
        from shards.build import nodes, ray_map

        ray_map.start(self.workers)
        nodes.check(inputs, out)
        return ray_map.ray_map


@dataclass(frozen=True, kw_only=True)
class Build(_Parallel):
    """Make a shard set from archives, folders of classes or other shards.

    A file that gives no image is listed in quarantine.parquet; a damaged source fails the build.
    """

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Archives, folders, s3:// or gs:// URIs. Validation images of ILSVRC2012 also need their
    labels: ILSVRC2012_devkit_t12.tar.gz, or LOC_val_solution.csv of Kaggle."""
    out: str
    """Folder or URI of the shard set. The same command resumes a build that was killed."""
    config: BuildConfig = field(default_factory=BuildConfig)
    dry_run: bool = False
    """Estimate shards, bytes, the disk that is needed and time from a sample, and write nothing."""

    def __call__(self) -> int:
        """Build, or estimate."""
        if not self.sources:
            raise ValueError("no source given: python -m shards build SOURCE... --out DIR")
        if self.dry_run:
            from shards.build.estimate import estimate

            return _write(estimate(self.sources, self.out, self.config))
        from shards.build import pack
        from shards.build.exclude import parse
        from shards.build.progress import BuildProgress

        excluded = (parse(text)[0] for text in self.config.exclude)
        run = self.runner((*self.sources, *excluded), self.out)
        progress = BuildProgress()
        return _write(pack.build(self.sources, self.out, self.config, run=run, progress=progress))


@dataclass(frozen=True, kw_only=True)
class Index(_Parallel):
    """Index WebDataset shards made by other tools, so that the pipeline can train on them."""

    location: tyro.conf.Positional[str]
    """Folder or URI of the shards; the index is written next to them."""
    classes: str | None = None
    """Class list that gives the class numbers their meaning: a file with one WordNet id per line,
    or the name of a built-in list; None takes the ids from keys such as n01440764_10026 if all
    keys agree."""
    label: str | None = None
    """Where labels are stored: cls, or json:FIELD; None detects it."""

    def __call__(self) -> int:
        """Write the index."""
        from shards.build.progress import BuildProgress
        from shards.check.index import index

        run, progress = self.runner([self.location], self.location), BuildProgress()
        return _write(index(self.location, self.classes, self.label, run, progress))


@dataclass(frozen=True, kw_only=True)
class Verify(_Parallel):
    """Check a shard set: structure, counts, hashes, labels, and that every image decodes.

    The exit status is 1 if faults remain.
    """

    location: tyro.conf.Positional[str]
    """Folder or URI of the shard set."""
    quick: bool = False
    """Do not decode the images."""
    repair: bool = False
    """Make faulty files again from the sources, which must be where they were. None is replaced
    unless all of them come out as the build made them."""

    def __call__(self) -> int:
        """Verify, and repair if requested; returns 1 if faults remain."""
        from shards.build.progress import BuildProgress
        from shards.build.repair import repair
        from shards.check.verify import verify

        run = self.runner([self.location])
        progress = BuildProgress()
        result = verify(self.location, quick=self.quick, run=run, progress=progress)
        for _ in range(2 if self.repair else 0):  # behind a damaged manifest may be more faults
            if result.faults:
                _write(result)
                for name in repair(self.location, {fault.shard for fault in result.faults}, run):
                    log.info("put back %s", name)
                result = verify(self.location, quick=self.quick, run=run, progress=progress)
        _write(result)
        return 1 if result.faults else 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """Describe a shard set: counts, sizes, shapes, classes, and what was left out."""

    location: tyro.conf.Positional[str]
    """Folder or URI of the shard set."""
    json: bool = False
    """Write JSON to standard output."""
    html: str | None = None
    """Also write a page with charts and sample images to this file."""

    def __call__(self) -> int:
        """Describe it."""
        from shards.check import info

        description = info.describe(self.location)
        if self.html is not None:
            from shards.check import page

            page.write(self.html, description, self.location)
            log.info("wrote %s", self.html)
        return _write(description.to_json() if self.json else description)


COMMANDS = {"build": Build, "index": Index, "verify": Verify, "info": Info}


def _write(result: object) -> int:
    """Write a result to standard output; returns exit status 0."""
    sys.stdout.write(f"{redact(str(result))}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. Entry point of the script `vit-shards`."""
    open_console(verbose=False, stream=sys.stderr)  # standard output is for the results
    return dispatch("python -m shards", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
