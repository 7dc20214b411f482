"""What a build would make, from a sample of the sources: `--dry-run`."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from shards import archive, classes, layout, pack, source, store, tar
from shards.archive import Part, Source
from shards.config import BuildConfig
from shards.entry import Entry, entries
from shards.picture import Unusable, picture, unpacked
from shards.placement import TAR_OVERHEAD
from shards.progress import duration

PARTS, IMAGES = 12, 20


@dataclass(frozen=True)
class Estimate:
    """What a build would make."""

    sources: tuple[str, ...]
    images: int
    bytes: int
    shards: int
    cpu_s: float
    unusable: float
    """Share of the sample that gives no image."""
    sample: int

    def __str__(self) -> str:
        """The estimate as a short text."""
        return "\n".join(
            [
                *self.sources,
                f"about {self.images:,} images in {self.shards:,} shards, "
                f"{self.bytes / 1e9:,.2f} GB",
                f"about {duration(self.cpu_s)} on one core, from a sample of {self.sample} files "
                f"({self.unusable:.1%} of them unusable)",
                "nothing was written",
            ]
        )
