"""Make, index, check and describe shard sets: `python -m shards build|index|verify|info`.

The exit status is also 1 where `verify` finds faults. The slow imports wait until the arguments
have been checked.
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
class Build:
    """Make a shard set from archives, folders of classes or other shards."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Archives, folders, s3:// or gs:// URIs; ILSVRC2012_img_val.tar needs its devkit beside it."""
    out: str
    """Folder or URI of the shard set. The same command resumes a build that was killed."""
    config: BuildConfig = field(default_factory=BuildConfig)
    workers: int | None = None
    """Ray workers; 0 works in this process; None takes the cluster of RAY_ADDRESS or all cores."""
    dry_run: bool = False
    """Estimate shards, bytes and time from a sample, and write nothing."""

    def __call__(self) -> int:
        """Build, or estimate."""
        if not self.sources:
            raise ValueError("no source given: python -m shards build SOURCE... --out DIR")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers ({self.workers}) must be at least 0; 0 is this process")
        if self.dry_run:
            from shards.build.estimate import estimate

            return _say(estimate(self.sources, self.config))
        from shards.build import pack
        from shards.build.progress import BuildProgress

        _open_log()
        run, progress = _run(self.workers), BuildProgress()
        return _say(pack.build(self.sources, self.out, self.config, run=run, progress=progress))


@dataclass(frozen=True, kw_only=True)
class Index:
    """Index the WebDataset shards that others wrote, so that the pipeline can train on them."""

    location: tyro.conf.Positional[str]
    """Folder or URI of the shards; the index is written beside them."""
    classes: str | None = None
    """What class numbers mean: a file with one WordNet id per line, or a built-in list; None takes
    it from keys such as n01440764_10026, where all agree."""
    label: str | None = None
    """Where labels are: cls, or json:FIELD; None looks."""
    workers: int | None = None
    """Ray workers; 0 works in this process; None takes the cluster of RAY_ADDRESS or all cores."""

    def __call__(self) -> int:
        """Write the index."""
        _open_log()
        from shards.check import index

        return _say(index.index(self.location, self.classes, self.label, run=_run(self.workers)))


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a shard set: structure, counts, hashes, labels, and that every image decodes."""

    location: tyro.conf.Positional[str]
    """Folder or URI of the shard set."""
    quick: bool = False
    """Leave out decoding."""
    repair: bool = False
    """Make shards with faults again; the sources must lie where they lay."""
    workers: int | None = None
    """Ray workers; 0 works in this process; None takes the cluster of RAY_ADDRESS or all cores."""

    def __call__(self) -> int:
        """Verify, and repair if asked to; 1 if faults are left."""
        from shards.check import verify

        _open_log()
        run = _run(self.workers)
        found = verify.verify(self.location, quick=self.quick, run=run)
        if found.faults and self.repair:
            _say(found)
            for name in verify.repair(self.location, found, run=run):
                log.info("made %s again", name)
            found = verify.verify(self.location, quick=self.quick, run=run)
        _say(found)
        return 1 if found.faults else 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """Describe a shard set: counts, sizes, shapes, classes, what was left out."""

    location: tyro.conf.Positional[str]
    """Folder or URI of the shard set."""
    json: bool = False
    """Write JSON to standard output."""
    html: str | None = None
    """Also write a page with plots and a contact sheet to this file."""

    def __call__(self) -> int:
        """Describe it."""
        _open_log()
        from shards.check import info

        described = info.describe(self.location)
        if self.html is not None:
            from shards.check import page

            page.write(self.html, described, self.location)
            log.info("wrote %s", self.html)
        return _say(described.to_json() if self.json else described)


COMMANDS = {"build": Build, "index": Index, "verify": Verify, "info": Info}


def _run(workers: int | None) -> Callable:
    """How tasks are run."""
    if workers == 0:
        from shards.build.pack import serial

        return serial
    from shards.build import ray_map

    ray_map.start(workers)
    return ray_map.ray_map


def _open_log() -> None:
    """Log to standard error: the answer of a command is on standard output."""
    open_console(verbose=False, stream=sys.stderr)


def _say(answer: object) -> int:
    sys.stdout.write(f"{redact(str(answer))}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. Entry point of the script `vit-shards`."""
    return dispatch("python -m shards", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
