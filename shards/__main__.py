"""Make, index, check and describe shard sets: `python -m shards build|index|verify|info`.

Exit status: 0 all is well, 1 it failed or faults were found, 2 the request cannot be met.
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from shards.build.config import BuildConfig

log = logging.getLogger("shards")


@dataclass(frozen=True, kw_only=True)
class Build:
    """Make a shard set from archives, folders of classes or other shards."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Archives, folders, s3:// or gs:// URIs; ILSVRC2012_img_val.tar needs its devkit beside it."""
    out: str
    """Folder or URI of the shard set. The same command goes on where a killed one was."""
    config: tyro.conf.OmitArgPrefixes[BuildConfig] = field(default_factory=BuildConfig)
    workers: int | None = None
    """Ray workers; 0 works in this process; None takes the cluster of RAY_ADDRESS or all cores."""
    dry_run: bool = False
    """Say how many shards and bytes it would be and how long it would take, from a sample."""

    def __call__(self) -> int:
        """Run the command."""
        if not self.sources:
            raise ValueError("no source given: python -m shards build SOURCE... --out DIR")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers ({self.workers}) must be at least 0; 0 is this process")
        if self.dry_run:
            from shards.build.estimate import estimate

            return _say(estimate(self.sources, self.config))
        from shards.build import pack
        from shards.build.progress import Meter

        meter = Meter(log.info)
        return _say(
            pack.build(self.sources, self.out, self.config, run=_run(self.workers), progress=meter)
        )


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
        """Run the command."""
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
        """Run the command."""
        from shards.check import verify

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
        """Run the command."""
        from shards.check import info

        described = info.describe(self.location)
        if self.html is not None:
            from shards.check import page

            page.write(self.html, described, self.location)
            log.info("wrote %s", self.html)
        return _say(described.to_json() if self.json else described)


Command = (
    Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[Index, tyro.conf.subcommand("index")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def _run(workers: int | None) -> Callable:
    """How tasks are run."""
    if workers == 0:
        from shards.build.pack import serial

        return serial
    from shards.build import ray_map

    ray_map.start(workers)
    return ray_map.ray_map


def _say(answer: object) -> int:
    sys.stdout.write(f"{answer}\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; gives the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    command = tyro.cli(Command, prog="python -m shards", description=__doc__, args=arguments)
    try:
        return command()
    except (ValueError, FileNotFoundError) as error:
        log.error("error: %s", error)
        return 2
    except OSError as error:
        log.error("failed: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("stopped; the same command goes on from here")
        return 1


if __name__ == "__main__":
    sys.exit(main())
