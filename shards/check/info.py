"""What is in a shard set: counts, sizes, shapes, class frequencies, and what was left out."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.build import report
from shards.dataset import format, wordnet
from shards.dataset.format import ShardSet

SIDE_EDGES = (0, 32, 64, 128, 192, 224, 256, 320, 384, 512, 768, 1024, 2048)
ASPECT_EDGES = (0.0, 0.25, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 4.0)
BYTE_EDGES = tuple(1000 * kb for kb in (0, 2, 5, 10, 15, 20, 30, 40, 60, 100, 200, 500))
CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split."""

    images: int
    shards: int
    shard_bytes: int
    image_bytes: int
    multi_label: int
    classes: int
    """Classes that have an image."""

    @property
    def overhead(self) -> float:
        """Bytes of the tars beyond those of the images, as a share of the images."""
        return self.shard_bytes / max(self.image_bytes, 1) - 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is in a shard set."""

    location: str
    classes: int
    splits: Mapping[str, Split]
    short_side: Mapping[str, int]
    """Images by shorter side in pixels."""
    aspect: Mapping[str, int]
    """Images by width over height."""
    image_bytes: Mapping[str, int]
    """Images by bytes."""
    frequency: tuple[int, ...]
    """Images per class over all splits, most frequent first, at evenly spaced ranks."""
    most: tuple[tuple[str, str, int], ...]
    """The largest classes: id, name, images."""
    least: tuple[tuple[str, str, int], ...]
    built: Mapping[str, Any]
    """The build's report; empty for shards from elsewhere."""

    def to_json(self) -> str:
        """The description as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def __str__(self) -> str:
        """The description as text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.location}: {self.classes:,} classes"
        for name, split in self.splits.items():
            yield (
                f"{name}: {split.images:,} images of {split.classes:,} classes in {split.shards:,} "
                f"shards, {split.shard_bytes / 1e9:,.2f} GB, "
                f"{split.image_bytes / max(split.images, 1) / 1e3:,.1f} KB per image, "
                f"{split.overhead:.1%} overhead, {split.multi_label:,} multi-label"
            )
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
        if self.built:
            yield from self._left_out()

    def _left_out(self) -> Iterator[str]:
        made = self.built
        yield f"came as: {', '.join(f'{k} {v:,}' for k, v in made['modes'].items())}"
        yield f"{made['duplicates']:,} copies merged, {made['excluded']:,} excluded"
        yield f"{made['quarantined_count']:,} of {made['files']:,} files gave no image"
        yield from (f"  {count:>9,}  {reason}" for reason, count in made["reasons"].items())


def _bars(bars: Mapping[str, int]) -> Iterator[str]:
    total = max(sum(bars.values()), 1)
    width = max(map(len, bars))
    for label, count in bars.items():
        if count:
            share = count / total
            yield f"  {label:>{width}}  {count:>10,}  {share:6.1%}  {'#' * round(40 * share)}"


def describe(location: str) -> Description:
    """Read the indexes of a shard set."""
    given = format.open_set(location)
    shapes, counts = _Shapes(), Counter[int]()
    splits = {name: _split(given, name, shapes, counts) for name in given.manifest.splits}
    names = given.manifest.classes
    ranked = [(number, counts[number]) for number in range(len(names))]
    ranked.sort(key=lambda item: (-item[1], item[0]))
    at = np.unique(np.linspace(0, len(ranked) - 1, CURVE_POINTS).astype(int)) if ranked else []
    saved = report.read(given.fs, given.root)
    return Description(
        location=given.location,
        classes=len(names),
        splits=splits,
        short_side=_labelled(SIDE_EDGES, shapes.side),
        aspect=_labelled(ASPECT_EDGES, shapes.aspect),
        image_bytes=_labelled(BYTE_EDGES, shapes.bytes),
        frequency=tuple(ranked[place][1] for place in at),
        most=tuple((names[n], wordnet.name(names[n]), count) for n, count in ranked[:5]),
        least=tuple((names[n], wordnet.name(names[n]), count) for n, count in ranked[-5:]),
        built=dataclasses.asdict(saved.report) if saved else {},
    )


class _Shapes:
    """Histograms over all images."""

    def __init__(self) -> None:
        self.side = np.zeros(len(SIDE_EDGES), np.int64)
        self.aspect = np.zeros(len(ASPECT_EDGES), np.int64)
        self.bytes = np.zeros(len(BYTE_EDGES), np.int64)

    def add(self, width: np.ndarray, height: np.ndarray, size: np.ndarray) -> None:
        """Count images."""
        for counts, edges, values in (
            (self.side, SIDE_EDGES, np.minimum(width, height)),
            (self.aspect, ASPECT_EDGES, width / height),
            (self.bytes, BYTE_EDGES, size),
        ):
            counts += np.histogram(values, [*edges, np.inf])[0]


def _split(given: ShardSet, name: str, shapes: _Shapes, counts: Counter[int]) -> Split:
    images = size = multi = 0
    present: set[int] = set()
    shards = given.manifest.splits[name]
    for shard in shards:
        table = given.read_index(shard)
        width, height, sizes = (table[c].to_numpy() for c in ("width", "height", "size"))
        shapes.add(width, height, sizes)
        images, size = images + table.num_rows, size + int(sizes.sum())
        labels = table["classes"].to_pylist()
        multi += sum(len(one) > 1 for one in labels)
        found = Counter(number for one in labels for number in one)
        counts.update(found)
        present.update(found)
    return Split(
        images=images,
        shards=len(shards),
        shard_bytes=sum(shard.bytes for shard in shards),
        image_bytes=size,
        multi_label=multi,
        classes=len(present),
    )


def _labelled(edges: tuple[float, ...], counts: np.ndarray) -> dict[str, int]:
    names = [f"{low:g} to {high:g}" for low, high in zip(edges[:-1], edges[1:], strict=True)]
    names.append(f"{edges[-1]:g} and more")
    return dict(zip(names, counts.tolist(), strict=True))
