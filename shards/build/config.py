"""Settings of a build, without slow imports, so that a command line is checked at once."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from support.settings import Rule, Settings, below, setting

Kind = Literal[
    "auto", "class-tars", "flat-tar", "imagenet-val", "devkit", "class-folders", "webdataset"
]
"""Kinds of sources; "auto" recognises the kind."""


@dataclass(frozen=True, kw_only=True)
class TranscodeConfig(Settings):
    """How each image is processed."""

    resize_short: int = setting(256, common=True)
    """Shorter side in pixels after shrinking; nothing is enlarged; 0 leaves sizes as they are."""
    max_long: int | None = None
    """Longer side at most this many pixels, shrinking further if needed."""
    quality: int = 90
    """JPEG quality of the written images (4:2:0), 1 to 100."""
    keep_bytes: bool = False
    """Copy baseline RGB JPEGs that need no rotation byte for byte, at their size and with their
    metadata; the others are converted at their size. The resize settings then have no effect."""
    min_side: int = 1
    """Leave out images with a side below this many pixels (timm's sets use 32 or 48)."""
    max_pixels: int = 89_478_485
    """Refuse images with more pixels than this: small files that decode to gigabytes. Pillow warns
    above the same number, and no image of ImageNet is known to reach it."""

    def rules(self) -> Iterator[Rule]:
        """Sizes that an image can have."""
        yield from below(self, 0, "resize_short")
        yield from below(self, 1, "min_side", "max_pixels")
        if self.max_long is not None and self.max_long < max(1, self.resize_short):
            yield "max_long", f"must be at least resize_short ({self.resize_short})"
        if not 1 <= self.quality <= 100:
            yield "quality", "must be from 1 to 100"


@dataclass(frozen=True, kw_only=True)
class BuildConfig(TranscodeConfig):
    """How archives become shards."""

    classes: str | None = setting(None, common=True)
    """Class list that fixes the class numbers: a file with one WordNet id per line, or the name of
    a built-in list; None takes the classes of the sources, sorted."""
    min_per_class: int = setting(1, common=True)
    """Leave out classes with fewer images than this; 1 keeps every class that the sources name."""
    small_classes: bool = False
    """Also take imagenet21k_small_classes of the processed archive."""
    val_per_class: int | None = setting(None, common=True)
    """Images of each class that go to the val split, at most a quarter of it, drawn by content
    hash. An image of several classes counts in each."""
    val_fraction: float | None = None
    """Share of images that goes to the val split, drawn by content hash. With neither this nor
    val_per_class: the sources' own val split, or 0.01 if they have none."""
    minival_per_class: int | None = None
    """Training images of each class that go to a split "minival", at most a quarter of it, drawn as
    val is; for sources with a val split of their own, which is then free to be reported alone."""
    exclude: tuple[str, ...] = setting((), common=True)
    """Shard sets whose images are left out, by content and by near-identical look: SET takes the
    val split of a set, SET:train,val these splits, and SET:all every one. A val split that the
    sources have stays whole."""
    exclude_distance: int = 4
    """Bits of 63 in which the perceptual hashes of images that look alike may differ, 0 to 7: of an
    excluded one, and of those of train and a drawn val split, which are listed and stay."""
    shard_samples: int | None = setting(None, common=True)
    """Images per shard; None makes shards of about 200 MB."""
    val_shards: int = 1
    """Val shards, at least."""
    seed: int = 0
    """Seed of the order of images over shards."""
    allow_damaged_source: bool = False
    """Take what can be read if a source is damaged or a class gives no image; the report and the
    manifest tell what was wrong."""
    source_kind: Kind = "auto"
    """What the sources are, if that is not recognised."""
    keep_work: bool = False
    """Keep work/, the encoded images before they were put into shards."""

    def rules(self) -> Iterator[Rule]:
        """Counts and shares in range, and one way to draw the val split."""
        yield from super().rules()
        yield from below(self, 1, "min_per_class", "val_shards")
        yield from below(self, 0, "seed")
        yield from below(self, 1, "shard_samples")
        yield from below(self, 0, "val_per_class")
        yield from below(self, 1, "minival_per_class")
        if self.val_per_class is not None and self.val_fraction is not None:
            yield "val_fraction", "and val_per_class are two ways to draw val; give one"
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            yield "val_fraction", "must be at least 0 and below 1"
        if not 0 <= self.exclude_distance <= 7:
            yield "exclude_distance", "must be from 0 to 7"

    @property
    def drawn_split(self) -> str:
        """The split that is drawn, if one is."""
        return "minival" if self.minival_per_class else "val"

    @property
    def transcode(self) -> TranscodeConfig:
        """The settings that decide the bytes of each image."""
        names = [field.name for field in dataclasses.fields(TranscodeConfig)]
        return TranscodeConfig(**{name: getattr(self, name) for name in names})
