"""The description of a shard set as one HTML page that stands alone.

Description, thumbnails of the shard set -> charts and tables -> templates/info.html
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from shards.build.transcode import opened
from shards.build.writer import read_range
from shards.check.info import Description
from shards.dataset import format, store, wordnet
from support.chart import bar_chart, line_chart
from support.page import Cell, Table, render

SHEET_IMAGES, THUMB_SIDE = 48, 112


def write(path: str, described: Description, location: str) -> None:
    """Write the page about the shard set at `location` to a file or URI."""
    images = sum(split.images for split in described.splits.values())
    gigabytes = sum(split.shard_bytes for split in described.splits.values()) / 1e9
    page = render(
        "shards.check/info.html",
        location=described.location,
        tiles={
            "images": f"{images:,}",
            "classes": f"{described.classes:,}",
            "shards": f"{sum(split.shards for split in described.splits.values()):,}",
            "GB": f"{gigabytes:,.2f}",
        },
        splits=split_table(described),
        shapes={
            "Shorter side, pixels": bars("side", described.short_side),
            "Width over height": bars("aspect", described.aspect),
            "Bytes per image": bars("bytes", described.image_bytes),
            "Images per class, most frequent first": frequency_chart(described),
        },
        most=class_table(described.most),
        least=class_table(described.least),
        left_out=left_out(described.built) if described.built else {},
        sources={
            "Came as": bars("modes", described.built.get("modes", {})),
            "Gave no image, by reason": bars("reasons", described.built.get("reasons", {})),
        },
        samples=samples(location),
    )
    system, inside = store.locate(path)
    store.write_bytes(system, inside, page.encode())


def split_table(described: Description) -> Table:
    """The splits side by side."""
    head = ["split", "images", "classes", "shards", "GB", "KB/image", "overhead", "multi-label"]
    rows = [
        [
            *(name, f"{split.images:,}", f"{split.classes:,}", f"{split.shards:,}"),
            f"{split.shard_bytes / 1e9:,.2f}",
            f"{split.image_bytes / max(split.images, 1) / 1e3:,.1f}",
            *(f"{split.overhead:.1%}", f"{split.multi_label:,}"),
        ]
        for name, split in described.splits.items()
    ]
    return Table(head=head, rows=rows)


def left_out(built: Mapping[str, Any]) -> dict[str, str]:
    """What the build left out, and how many of it."""
    return {
        f"of {built['files']:,} files gave no image": f"{built['quarantined_count']:,}",
        "copies merged": f"{built['duplicates']:,}",
        "images excluded": f"{built['excluded']:,}",
        "copies from another split": f"{built['crossing']:,}",
        **{f"left out, {reason}": f"{n:,}" for reason, n in built["left_out"].items()},
    }


def class_table(rows: Sequence[tuple[str, str, int]]) -> Table:
    """Classes by name and id, with their images."""
    cells = [[Cell(name, wnid), f"{count:,}"] for wnid, name, count in rows]
    return Table(head=["class", "images"], rows=cells)


def bars(name: str, counts: Mapping[str, int]) -> str:
    """A chart of counts and their shares."""
    total = sum(counts.values())

    def shown(count: int) -> str:
        return f"{count:,} ({count / total:.1%})" if count else "0"

    return bar_chart(counts, name=name, shown=shown)


def frequency_chart(described: Description) -> str:
    """Images per class by rank, of the classes that have any."""
    counts = described.frequency
    step = (described.classes - 1) / max(len(counts) - 1, 1)
    lines = {"images": [(1 + round(step * place), n) for place, n in enumerate(counts)]}
    return line_chart(lines, name="frequency", label="rank of the class", logarithmic=True)


def samples(location: str) -> Iterator[tuple[str, str, str]]:
    """Thumbnail, classes and key of the first samples of shards spread over the set."""
    given = format.open_set(location)
    shards = [shard for split in given.manifest.splits.values() for shard in split]
    each = -(-SHEET_IMAGES // max(len(shards), 1))
    for shard in shards[:: -(-len(shards) // SHEET_IMAGES)]:
        for row in given.read_index(shard).slice(0, each).to_pylist():
            data = read_range(given.fs, given.path(shard), row["offset"], row["size"])
            wnids = [given.manifest.classes[number] for number in row["classes"]]
            names = "; ".join(wordnet.name(wnid).split(",")[0] for wnid in wnids)
            yield thumbnail(data), names, row["key"]


def thumbnail(data: bytes) -> str:
    """A small JPEG in base64."""
    image: Image.Image = opened(data)
    image.thumbnail((2 * THUMB_SIDE, 2 * THUMB_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
