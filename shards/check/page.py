"""The description of a shard set as one HTML page: plots and a contact sheet, without scripts."""

import base64
import html
import io
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from shards.build.transcode import opened
from shards.build.writer import read_range
from shards.check.info import Description
from shards.dataset import format, store, wordnet

SHEET_IMAGES, THUMB_SIDE = 48, 112
WIDTH, BAR = 640, 20
_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:4px;width:112px;"
    "vertical-align:top;font-size:11px;overflow:hidden}svg text{font-size:12px}"
)


def write(path: str, described: Description, location: str) -> None:
    """Write the page to a file or URI."""
    text = "\n".join(_lines(described, location))
    system, inside = store.locate(path)
    store.write_bytes(system, inside, text.encode())


def _lines(described: Description, location: str) -> Iterator[str]:
    title = html.escape(described.location)
    yield f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    yield f"<h1>{title}</h1><p>{described.classes:,} classes</p>"
    yield "<table><tr><th>split<th>images<th>shards<th>GB<th>KB/image<th>overhead<th>multi-label"
    for name, split in described.splits.items():
        cells = (
            html.escape(name),
            f"{split.images:,}",
            f"{split.shards:,}",
            f"{split.shard_bytes / 1e9:,.2f}",
            f"{split.image_bytes / max(split.images, 1) / 1e3:,.1f}",
            f"{split.overhead:.1%}",
            f"{split.multi_label:,}",
        )
        yield "<tr>" + "".join(f"<td>{cell}" for cell in cells)
    yield "</table>"
    yield from _plot("Shorter side, pixels", described.short_side)
    yield from _plot("Width over height", described.aspect)
    yield from _plot("Bytes per image", described.image_bytes)
    yield from _curve("Images per class, most frequent first", described.frequency)
    if described.built:
        made = described.built
        yield from _plot("Came as", made["modes"])
        yield f"<p>{made['duplicates']:,} copies merged, {made['excluded']:,} images excluded, "
        yield f"{made['quarantined_count']:,} of {made['files']:,} files gave no image</p>"
        yield from _plot("Files without an image, by reason", made["reasons"])
    yield "<h2>Samples</h2>"
    yield from _sheet(location)


def _plot(title: str, bars: Mapping[str, int]) -> Iterator[str]:
    """Horizontal bars."""
    yield f"<h2>{html.escape(title)}</h2>"
    if not any(bars.values()):
        yield "<p>none</p>"
        return
    most, total = max(bars.values()), sum(bars.values())
    yield f'<svg width="{WIDTH}" height="{BAR * len(bars)}">'
    for row, (label, count) in enumerate(bars.items()):
        y, length = row * BAR, (WIDTH - 400) * count / most
        yield f'<text x="240" y="{y + 14}" text-anchor="end">{html.escape(label[:40])}</text>'
        yield f'<rect x="250" y="{y + 3}" width="{length:.1f}" height="14" fill="#47a"/>'
        share = f"{count:,} ({count / total:.1%})"
        yield f'<text x="{255 + length:.1f}" y="{y + 14}">{share}</text>'
    yield "</svg>"


def _curve(title: str, values: tuple[int, ...]) -> Iterator[str]:
    """A line over ranks, logarithmic upwards."""
    yield f"<h2>{html.escape(title)}</h2>"
    heights = np.log10(np.maximum(values, 1)) if values else np.zeros(1)
    top = max(float(heights.max()), 1e-9)
    points = " ".join(
        f"{WIDTH * place / max(len(heights) - 1, 1):.1f},{150 - 140 * height / top:.1f}"
        for place, height in enumerate(heights)
    )
    yield f'<svg width="{WIDTH}" height="160">'
    yield f'<polyline points="{points}" fill="none" stroke="#47a" stroke-width="2"/>'
    most, least = (values[0], values[-1]) if values else (0, 0)
    yield f'<text x="8" y="12">{most:,}</text>'
    yield f'<text x="{WIDTH - 8}" y="140" text-anchor="end">{least:,}</text></svg>'


def _sheet(location: str) -> Iterator[str]:
    """Thumbnails of the first samples of shards spread over the set."""
    given = format.open_set(location)
    shards = [shard for split in given.manifest.splits.values() for shard in split]
    each = -(-SHEET_IMAGES // max(len(shards), 1))
    for shard in shards[:: -(-len(shards) // SHEET_IMAGES)]:
        for row in given.read_index(shard).slice(0, each).to_pylist():
            data = read_range(given.fs, given.path(shard), row["offset"], row["size"])
            wnids = [given.manifest.classes[number] for number in row["classes"]]
            names = html.escape("; ".join(wordnet.name(wnid).split(",")[0] for wnid in wnids))
            yield (
                f'<figure><img src="data:image/jpeg;base64,{_thumb(data)}" width="{THUMB_SIDE}">'
                f"<figcaption>{names}<br>{html.escape(row['key'])}</figcaption></figure>"
            )


def _thumb(data: bytes) -> str:
    image: Image.Image = opened(data)
    image.thumbnail((THUMB_SIDE, THUMB_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
