"""What a build would make, from a sample of the sources: `--dry-run`. Nothing is written."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pyarrow import fs as pafs

from shards.build import archive, gunzip, source
from shards.build.archive import Part, RawSource
from shards.build.assign import SHARD_BYTES, TAR_OVERHEAD
from shards.build.config import BuildConfig
from shards.build.entry import Entry, entries
from shards.build.transcode import Unusable, transcode, unpacked
from shards.dataset import store, tar
from shards.dataset.classes import class_list
from support.console import duration

PARTS, IMAGES = 12, 20
_HEADER = 768  # of a member in the source: its header, and half a block of padding


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a build would make."""

    sources: tuple[str, ...]
    images: int
    bytes: int
    shards: int
    cpu_s: float
    sample: int
    unusable: int

    def __str__(self) -> str:
        """The estimate as a short text."""
        return "\n".join(
            [
                *self.sources,
                f"about {self.images:,} images in {self.shards:,} shards, "
                f"{self.bytes / 1e9:,.2f} GB",
                f"about {duration(self.cpu_s)} on one core like this",
                f"from a sample of {self.sample} files, {self.unusable} of them unusable; "
                "nothing was written",
            ]
        )


@dataclass
class _Sample:
    files: float = 0.0
    """Files that the sources may hold."""
    seen: int = 0
    usable: int = 0
    stored: int = 0
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)


def estimate(sources: Sequence[str], config: BuildConfig) -> Estimate:
    """Look at a few images of each source."""
    given = class_list(config.classes) if config.classes else None
    sample = _Sample()
    found = [archive.find(location) for location in sources]
    plain = [one.location for one in found if not one.is_gzip]
    if plain:
        context = source.Context(config.source_kind, given, pafs.LocalFileSystem(), "", {})
        # A devkit may be compressed; it is read whole.
        plain += [one.location for one in found if one.is_gzip and source.is_devkit(one)]
        for one in source.recognise(plain, context):
            sample.told.append(source.described(one, {part.wnid for part in one.parts} - {""}))
            _look_at_parts(one.fs, one.parts, config, sample)
    for one in found:
        if one.is_gzip and one.location not in plain:
            sample.told.append(f"{one.name}: gzip, seen by its first images only")
            _look_at_stream(one, config, sample)
    images = round(sample.files * sample.usable / max(sample.seen, 1))
    mean = sample.stored / max(sample.usable, 1) + TAR_OVERHEAD
    per_shard = config.shard_samples or max(1, round(SHARD_BYTES / mean))
    return Estimate(
        sources=tuple(sample.told),
        images=images,
        bytes=round(images * mean),
        shards=-(-images // per_shard),
        cpu_s=sample.files * sample.seconds / max(sample.seen, 1),
        sample=sample.seen,
        unusable=sample.seen - sample.usable,
    )


def _look_at_parts(
    system: pafs.FileSystem, parts: Sequence[Part], config: BuildConfig, sample: _Sample
) -> None:
    chosen = parts[:: max(1, -(-len(parts) // PARTS))]
    files = 0.0
    for part in chosen:
        sizes = list(_tried(itertools.islice(entries(system, [part]), IMAGES), config, sample))
        if part.layout == "folder":
            files += len(store.listing(system, part.path))
        elif sizes:
            per_file = sum(sizes) / len(sizes) + _HEADER * (2 if part.layout == "samples" else 1)
            files += part.bytes / per_file
    read = sum(part.bytes for part in chosen)
    sample.files += files * sum(part.bytes for part in parts) / max(read, 1)


def _look_at_stream(found: RawSource, config: BuildConfig, sample: _Sample) -> None:
    stream = gunzip.GzipStream(found)
    taken = _tried(itertools.islice(_members(stream), PARTS * IMAGES), config, sample)
    sizes = list(taken)
    if sizes:
        unpacked_size = (found.info.size or 0) * stream.ratio
        sample.files += unpacked_size / (sum(sizes) / len(sizes) + _HEADER)


def _members(stream: gunzip.GzipStream) -> Iterator[Entry]:
    """Images of a compressed archive, looking into its inner tars."""

    def ignored(_: int, __: str) -> None:
        """Damage is reported by a build."""

    for member in tar.walk(stream, 0, gunzip.UNKNOWN, "", ignored):
        inner = [member]
        if archive.inner_class(member):
            inner = tar.walk(stream, member.offset, member.offset + member.size, "", ignored)
        for one in inner:
            if one.kind == "file":
                yield Entry("", one.name, "", one.offset, one.size, stream(one.offset, one.size))


def _tried(found: Iterator[Entry], config: BuildConfig, sample: _Sample) -> Iterator[int]:
    """Process entries as a build would; yields the size of each."""
    for entry in found:
        start = time.perf_counter()
        sample.seen += 1
        try:
            if not entry.problem:
                data = unpacked(entry.data)
                sample.stored += len(transcode(data, config.transcode).jpeg or data)
                sample.usable += 1
        except Unusable:
            pass
        sample.seconds += time.perf_counter() - start
        yield entry.size
