"""What a build would make, estimated from a sample of the sources: `--dry-run`. Writes nothing."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from pyarrow import fs as pafs

from shards.build import archive, gunzip, source
from shards.build.archive import RawSource, Source
from shards.build.assign import TAR_OVERHEAD, num_shards
from shards.build.config import BuildConfig
from shards.build.entry import Entry, entries
from shards.build.transcode import Unusable, transcode, unpacked
from shards.dataset import store, tar
from shards.dataset.classes import class_list
from support.console import duration

PARTS, IMAGES = 12, 20
_HEADER = 768  # of a member of an archive: its header, and half a block of padding


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
        lines = (
            *self.sources,
            f"about {self.images:,} images in {self.shards:,} shards, {self.bytes / 1e9:,.2f} GB",
            f"about {duration(self.cpu_s)} on one core like this",
            f"from a sample of {self.sample} files, {self.unusable} of them unusable; "
            "nothing was written",
        )
        return "\n".join(lines)


@dataclass
class _Sample:
    """Totals over the sampled files."""

    files: float = 0.0
    """Estimated number of files in the sources."""
    seen: int = 0
    usable: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0
    descriptions: list[str] = field(default_factory=list)


def estimate(sources: Sequence[str], config: BuildConfig) -> Estimate:
    """Estimate a build from a few images of each source."""
    classes = class_list(config.classes) if config.classes else None
    sample = _Sample()
    raws = [archive.find(location) for location in sources]
    # A compressed archive is only read from its start, except a devkit, which is read whole.
    plain = [raw.location for raw in raws if not raw.is_gzip]
    if plain:
        context = source.Context(config.source_kind, classes, pafs.LocalFileSystem(), "")
        plain += [raw.location for raw in raws if raw.is_gzip and source.kind_of(raw) == "devkit"]
        for recognised in source.recognise(plain, context):
            wnids = {part.wnid for part in recognised.parts} - {""}
            sample.descriptions.append(source.described(recognised, wnids))
            _add_parts(recognised, config, sample)
    for raw in raws:
        if raw.location not in plain:
            sample.descriptions.append(f"{raw.name}: gzip, seen by its first images only")
            _add_stream(raw, config, sample)
    images = round(sample.files * sample.usable / max(sample.seen, 1))
    mean = sample.stored_bytes / max(sample.usable, 1) + TAR_OVERHEAD
    return Estimate(
        sources=tuple(sample.descriptions),
        images=images,
        bytes=round(images * mean),
        shards=num_shards(images, mean, config),
        cpu_s=sample.files * sample.seconds / max(sample.seen, 1),
        sample=sample.seen,
        unusable=sample.seen - sample.usable,
    )


def _add_parts(recognised: Source, config: BuildConfig, sample: _Sample) -> None:
    """Add the first files of some parts of a source."""
    parts, files = recognised.parts, 0.0
    chosen = parts[:: max(1, -(-len(parts) // PARTS))]
    for part in chosen:
        sizes = _process(islice(entries(recognised.fs, [part]), IMAGES), config, sample)
        if part.layout == "folder":
            files += len(store.listing(recognised.fs, part.path))
        elif sizes:
            overhead = _HEADER * (2 if part.layout == "samples" else 1)
            files += part.bytes / (sum(sizes) / len(sizes) + overhead)
    read = sum(part.bytes for part in chosen)
    sample.files += files * sum(part.bytes for part in parts) / max(read, 1)


def _add_stream(raw: RawSource, config: BuildConfig, sample: _Sample) -> None:
    """Add the first files of a compressed archive."""
    stream = gunzip.GzipStream(raw)
    sizes = _process(islice(_entries(stream), PARTS * IMAGES), config, sample)
    if sizes:
        unpacked_size = (raw.info.size or 0) * stream.ratio
        sample.files += unpacked_size / (sum(sizes) / len(sizes) + _HEADER)


def _entries(stream: gunzip.GzipStream) -> Iterator[Entry]:
    """Files of a compressed archive and of its inner tars."""
    for member in tar.walk(stream, 0, gunzip.UNKNOWN, "", archive.ignore_damage):
        files: Iterable[tar.Member] = [member]
        if archive.inner_class(member):
            stop = member.offset + member.size
            files = tar.walk(stream, member.offset, stop, "", archive.ignore_damage)
        for file in files:
            if file.kind == "file":
                data = stream(file.offset, file.size)
                yield Entry("", file.name, "", file.offset, file.size, data)


def _process(files: Iterable[Entry], config: BuildConfig, sample: _Sample) -> list[int]:
    """Process files as a build would; returns the size of each."""
    sizes = []
    for entry in files:
        start = time.perf_counter()
        sizes.append(entry.size)
        sample.seen += 1
        try:
            if not entry.problem:
                data = unpacked(entry.data)
                sample.stored_bytes += len(transcode(data, config.transcode).jpeg or data)
                sample.usable += 1
        except Unusable:
            pass
        sample.seconds += time.perf_counter() - start
    return sizes
