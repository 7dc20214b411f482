"""Settings of a build; nothing here imports what is slow, so that a command line is checked first.

Defaults stand here and nowhere else; the docstring under a field is its `--help`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "auto", "class-tars", "flat-tar", "imagenet-val", "devkit", "class-folders", "webdataset"
]
"""What a source is; "auto" looks."""


@dataclass(frozen=True, kw_only=True)
class TranscodeConfig:
    """What becomes of each image."""

    resize_short: int = 256
    """Shorter side in pixels after shrinking; nothing is enlarged; 0 leaves sizes as they are."""
    max_long: int | None = None
    """Longer side at most this many pixels, shrinking further where needed."""
    quality: int = 90
    """JPEG quality of the written images (4:2:0), 1 to 100."""
    keep_bytes: bool = False
    """Copy baseline RGB JPEGs that need no turning byte for byte, at their size and with their
    metadata; the others are converted at their size. The resize settings then have no effect."""
    min_side: int = 1
    """Leave out images with a side below this many pixels (timm's sets use 32 or 48)."""
    max_pixels: int = 178_956_970
    """Refuse images with more pixels than this: small files that decode to gigabytes."""

    def __post_init__(self) -> None:
        """Reject sizes that no image can have."""
        for name, least in (("resize_short", 0), ("min_side", 1), ("max_pixels", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least {least}")
        if self.max_long is not None and self.max_long < max(1, self.resize_short):
            raise ValueError(
                f"max_long ({self.max_long}) must be at least resize_short ({self.resize_short})"
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality ({self.quality}) must be 1 to 100")


@dataclass(frozen=True, kw_only=True)
class BuildConfig(TranscodeConfig):
    """How archives become shards."""

    classes: str | None = None
    """Class list that fixes the class numbers: a file with one WordNet id per line, or the name of
    a built-in list; None takes the classes of the sources, sorted."""
    min_per_class: int = 1
    """Leave out classes with fewer images than this."""
    small_classes: bool = False
    """Also take imagenet21k_small_classes of the processed archive."""
    val_per_class: int | None = None
    """Images of each class that go to the val split, at most half of it, drawn by content hash."""
    val_fraction: float | None = None
    """Share of images that goes to the val split, drawn by content hash. With neither this nor
    val_per_class: the sources' own val split, or 0.01 where they have none."""
    exclude: tuple[str, ...] = ()
    """Shard sets whose images are left out, by content and by near-identical look."""
    exclude_distance: int = 4
    """Bits of 63 in which the perceptual hash of an excluded image may differ, 0 to 7."""
    shard_samples: int | None = None
    """Images per shard; None makes shards of about 200 MB."""
    val_shards: int = 1
    """Val shards, at least."""
    seed: int = 0
    """Seed of the order of images over shards."""
    source_kind: Kind = "auto"
    """What the sources are; auto recognises each one."""
    keep_work: bool = False
    """Keep the spool and the laid-out archives beside the shards."""

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        super().__post_init__()
        for name, least in (("min_per_class", 1), ("val_shards", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least {least}")
        if self.shard_samples is not None and self.shard_samples < 1:
            raise ValueError(f"shard_samples ({self.shard_samples}) must be at least 1")
        if self.val_per_class is not None and self.val_fraction is not None:
            raise ValueError("val_per_class and val_fraction are two ways to draw val; give one")
        if self.val_per_class is not None and self.val_per_class < 0:
            raise ValueError(f"val_per_class ({self.val_per_class}) must be at least 0")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction ({self.val_fraction}) must be in [0, 1)")
        if not 0 <= self.exclude_distance <= 7:
            raise ValueError(f"exclude_distance ({self.exclude_distance}) must be 0 to 7")

    @property
    def transcode(self) -> TranscodeConfig:
        """The settings that decide the bytes of each image."""
        names = [field.name for field in dataclasses.fields(TranscodeConfig)]
        return TranscodeConfig(**{name: getattr(self, name) for name in names})
