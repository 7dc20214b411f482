"""Description of a shard set: counts, sizes, shapes, class frequencies, and what was left out."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from shards.build import report
from shards.check.histogram import Histogram, Tally
from shards.dataset import format, wordnet
from shards.dataset.format import ShardSet
from shards.dataset.sides import ShorterSides

# rows at most of a histogram as text
BARS = 12
CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split."""

    images: int
    shards: int
    shard_bytes: int
    image_bytes: int
    multi_label: int
    unreadable: int
    """Images of unknown size, in shards of other tools."""
    classes: int
    """Classes that have an image."""
    sides: str
    """Shorter sides of the images, and the sizes that suit training, in words."""

    @property
    def overhead(self) -> float:
        """Bytes of the tars beyond those of the images, as a share of the latter."""
        return self.shard_bytes / max(self.image_bytes, 1) - 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """Contents of a shard set."""

    location: str
    classes: int
    splits: Mapping[str, Split]
    short_side: Mapping[str, int]
    """Images by shorter side in pixels."""
    aspect: Mapping[str, int]
    """Images by width over height."""
    image_bytes: Mapping[str, int]
    """Images by bytes."""
    histograms: Mapping[str, Histogram]
    """The same quantities in fine bins, and `class_images`: classes by number of images."""
    frequency: tuple[int, ...]
    """Images per class over all splits, most frequent first, at evenly spaced ranks."""
    most: tuple[tuple[str, str, int], ...]
    """The largest classes: id, name, images."""
    least: tuple[tuple[str, str, int], ...]
    built: Mapping[str, Any]
    """The build's report; empty for shards made by other tools."""

    def to_json(self) -> str:
        """The description as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def __str__(self) -> str:
        """The description as text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from (f"WARNING: {warning}" for warning in self.built.get("warnings", ()))
        yield f"{self.location}: {self.classes:,} classes"
        for name, split in self.splits.items():
            yield (
                f"{name}: {split.images:,} images of {split.classes:,} classes in {split.shards:,} "
                f"shards, {split.shard_bytes / 1e9:,.2f} GB, "
                f"{split.image_bytes / max(split.images, 1) / 1e3:,.1f} KB per image, "
                f"{split.overhead:.1%} overhead, {split.multi_label:,} multi-label"
                + (f", {split.unreadable:,} unreadable" if split.unreadable else "")
            )
            yield f"{name}: {split.sides}"
        for title, bars in (
            ("shorter side, pixels", self.short_side),
            ("width / height", self.aspect),
            ("bytes per image", self.image_bytes),
        ):
            yield title
            yield from _bars(bars)
        for title, rows in (("largest classes", self.most), ("smallest classes", self.least)):
            yield title
            yield from (f"  {count:>9,}  {wnid}  {name}" for wnid, name, count in rows)
        if built := self.built:
            yield from built["sources"]
            yield f"source formats: {', '.join(f'{k} {v:,}' for k, v in built['modes'].items())}"
            yield f"{built['duplicates']:,} copies merged, {built['excluded']:,} excluded"
            yield from (f"left out, {why}: {count:,}" for why, count in built["left_out"].items())
            yield f"{built['quarantined_count']:,} of {built['files']:,} files gave no image"
            yield from (f"  {count:>9,}  {reason}" for reason, count in built["reasons"].items())
            yield from built["notes"]


def _bars(bars: Mapping[str, int]) -> Iterator[str]:
    total = max(sum(bars.values()), 1)
    width = max(map(len, bars), default=0)
    for label, count in bars.items():
        if count:
            share = count / total
            yield f"  {label:>{width}}  {count:>10,}  {share:6.1%}  {'#' * round(40 * share)}"


def describe(location: str) -> Description:
    """Describe a shard set from its indexes."""
    shard_set = format.open_set(location)
    counts = Counter[int]()
    tallies = {
        "short_side": Tally(8),
        "aspect": Tally(8, centred=True),  # square images are in one bin
        "image_bytes": Tally(4),
        "class_images": Tally(4, whole=True),
    }
    splits = {name: _split(shard_set, name, tallies, counts) for name in shard_set.manifest.splits}
    tallies["class_images"].add(np.array([*counts.values()], np.int64))
    classes = shard_set.manifest.classes
    ranked = sorted(range(len(classes)), key=lambda number: -counts[number])
    ranks = np.unique(np.linspace(0, len(ranked) - 1, CURVE_POINTS).astype(int)) if ranked else []
    saved = report.read(shard_set.fs, shard_set.root)
    return Description(
        location=shard_set.location,
        classes=len(classes),
        splits=splits,
        **{name: _labelled(tallies[name]) for name in ("short_side", "aspect", "image_bytes")},
        histograms={name: tally.histogram() for name, tally in tallies.items()},
        frequency=tuple(counts[ranked[rank]] for rank in ranks),
        most=tuple((classes[n], wordnet.name(classes[n]), counts[n]) for n in ranked[:5]),
        least=tuple((classes[n], wordnet.name(classes[n]), counts[n]) for n in ranked[-5:]),
        built=dataclasses.asdict(saved.report) if saved else {},
    )


def _split(
    shard_set: ShardSet,
    name: str,
    tallies: Mapping[str, Tally],
    counts: Counter[int],
) -> Split:
    """Describe a split, and add its images to the tallies and the counts by class."""
    images = image_bytes = multi_label = unreadable = 0
    split_counts = Counter[int]()
    shards = shard_set.manifest.splits[name]
    for shard in shards:
        table = shard_set.read_index(shard)
        width, height, size = (table[c].to_numpy() for c in ("width", "height", "size"))
        known = width > 0  # `index` gives an image that it cannot read no size
        unreadable += int((~known).sum())
        width, height = width[known], height[known]
        for key, values in (
            ("short_side", np.minimum(width, height)),
            ("aspect", width / height),
            ("image_bytes", size),
        ):
            tallies[key].add(values)
        images += len(size)
        image_bytes += int(size.sum())
        multi_label += int((pc.list_value_length(table["classes"]).to_numpy() > 1).sum())
        split_counts.update(pc.list_flatten(table["classes"]).to_pylist())
    counts.update(split_counts)
    sides = ShorterSides.sample(shard_set, name)
    return Split(
        images=images,
        shards=len(shards),
        shard_bytes=sum(shard.bytes for shard in shards),
        image_bytes=image_bytes,
        multi_label=multi_label,
        unreadable=unreadable,
        classes=len(split_counts),
        sides=f"{sides}; {sides.suited}",
    )


def _labelled(tally: Tally) -> dict[str, int]:
    bins = tally.histogram(BARS).bins
    return {f"{_rounded(low)} to {_rounded(high)}": number for low, high, number in bins}


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
