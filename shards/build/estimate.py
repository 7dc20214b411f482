"""What a build would make, estimated from a sample of the sources: `--dry-run`. Writes nothing."""

import itertools
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shards.build import pack, source
from shards.build.archive import Part, Source
from shards.build.assign import TAR_OVERHEAD, num_shards, temporary_bytes
from shards.build.config import BuildConfig, TranscodeConfig
from shards.build.entry import entries
from shards.build.gzip_reader import SPACING, WINDOW
from shards.build.transcode import Unusable, transcode, unpacked
from shards.build.unit import Unit, units
from shards.dataset import store
from support.console import duration

PARTS, IMAGES = 12, 20
_HEADER = 768  # of a member of an archive: its header, and half a block of padding


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a build would make and need."""

    sources: tuple[str, ...]
    images: int
    bytes: int
    shards: int
    spool_bytes: int
    temporary_bytes: int
    free_bytes: int | None
    """Room for the set; None in an object store."""
    cpu_s: float
    sample: int
    unusable: int

    def __str__(self) -> str:
        """The estimate as a short text."""
        peak = self.bytes + self.spool_bytes
        room = "" if self.free_bytes is None else f"; {self.free_bytes / 1e9:,.2f} GB are free"
        return "\n".join(
            (
                *self.sources,
                f"about {self.images:,} images in {self.shards:,} shards, "
                f"{self.bytes / 1e9:,.2f} GB",
                f"at most {peak / 1e9:,.2f} GB in --out while it runs{room}",
                f"{self.temporary_bytes / 1e9:,.2f} GB of temporary disk on this machine (TMPDIR)",
                f"about {duration(self.cpu_s)} on one core like this",
                f"from a sample of {self.sample} files, {self.unusable} of them unusable; "
                "nothing was written",
            )
        )


@dataclass
class _Sample:
    """Totals over the sampled files."""

    files: float = 0.0
    """Estimated number of files in the sources."""
    seen: int = 0
    usable: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0


def estimate(locations: Sequence[str], out: str, config: BuildConfig) -> Estimate:
    """Estimate a build from a few images of each source.

    Of a compressed archive only the first images are seen, and it is taken to be as large as its
    content, as archives of JPEGs nearly are.
    """
    sources = pack.recognise([source.find(location) for location in locations], config)
    pack.val_split(config, any(one.has_val for one in sources))
    sample, descriptions, points = _Sample(), [], 0
    for one in sources:
        found = list(itertools.islice(units([one]), 1 if one.raw.is_gzip else None))
        wnids = {part.wnid for unit in found for part in unit.parts} - {""}
        text = source.described(one, wnids)
        descriptions.append(f"{text} (its first images)" if one.raw.is_gzip else text)
        points += WINDOW * one.bytes // SPACING if one.raw.is_gzip else 0
        if found:
            _add(one, found, config.transcode, sample)
    images = round(sample.files * sample.usable / max(sample.seen, 1))
    mean = sample.stored_bytes / max(sample.usable, 1)
    system, root = store.locate(out)
    return Estimate(
        sources=tuple(descriptions),
        images=images,
        bytes=round(images * (mean + TAR_OVERHEAD)),
        shards=num_shards(images, mean + TAR_OVERHEAD, config),
        spool_bytes=round(images * mean) + points,
        temporary_bytes=temporary_bytes(images),
        free_bytes=_free(root) if store.is_local(system) else None,
        cpu_s=sample.files * sample.seconds / max(sample.seen, 1),
        sample=sample.seen,
        unusable=sample.seen - sample.usable,
    )


def _free(root: str) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    folder = Path(root)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _add(one: Source, found: Sequence[Unit], config: TranscodeConfig, sample: _Sample) -> None:
    """Add the first files of some parts of a source."""
    parts = [(unit, part) for unit in found for part in unit.parts]
    chosen, files = parts[:: max(1, -(-len(parts) // PARTS))], 0.0
    for unit, part in chosen:
        sizes = _process(one, replace(unit, parts=(part,), faults=()), config, sample)
        if part.layout == "folder":
            files += part.stop - part.start or len(store.listing(one.fs, part.path))
        elif sizes:
            overhead = _HEADER * (2 if part.layout == "samples" else 1)
            files += part.bytes / (sum(sizes) / len(sizes) + overhead)
    total = _bytes(parts) if found[-1].last else one.bytes
    sample.files += files * total / max(_bytes(chosen), 1)


def _bytes(parts: Sequence[tuple[Unit, Part]]) -> int:
    return sum(part.bytes for _, part in parts)


def _process(one: Source, unit: Unit, config: TranscodeConfig, sample: _Sample) -> list[int]:
    """Process files as a build would; returns the size of each."""
    sizes = []
    for entry in itertools.islice(entries(one, unit), IMAGES):
        start = time.perf_counter()
        sizes.append(entry.size)
        sample.seen += 1
        try:
            if not entry.problem:
                data = unpacked(entry.data)
                sample.stored_bytes += len(transcode(data, config).jpeg or data)
                sample.usable += 1
        except Unusable:
            pass
        sample.seconds += time.perf_counter() - start
    return sizes
