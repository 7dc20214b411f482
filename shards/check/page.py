"""The description of a shard set as one self-contained HTML page (templates/info.html)."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence

from shards.build.transcode import opened
from shards.check.histogram import Histogram
from shards.check.info import Description
from shards.dataset import format, store, wordnet
from support.chart import SERIES, Chart, bar_chart, line_chart, styled, ticks
from support.number_text import percentage, short
from support.page import Cell, Table, render

SHEET_IMAGES, THUMB_SIDE = 48, 112
# a histogram with fewer bins that are not empty says no more than the range
MIN_BINS = 4
# with fewer ticks at 1, 2 and 5 times powers of ten, others are taken
MIN_TICKS = 4
# ratio of the largest to the smallest class above which their chart is logarithmic
SKEWED = 5


def write(path: str, description: Description, location: str) -> None:
    """Write the page about the shard set at `location` to a file or URI."""
    splits, built = description.splits.values(), description.built
    spread, size = description.histograms, sum(split.shard_bytes for split in splits)
    left_out = built and {
        f"of {built['files']:,} files gave no image": f"{built['quarantined_count']:,}",
        "copies merged": f"{built['duplicates']:,}",
        "images excluded": f"{built['excluded']:,}",
        "copies from another split": f"{built['crossing']:,}",
        **{f"left out, {reason}": f"{n:,}" for reason, n in built["left_out"].items()},
    }
    page = render(
        "shards.check/info.html",
        location=description.location,
        tiles={
            "images": f"{sum(split.images for split in splits):,}",
            "classes": f"{description.classes:,}",
            "shards": f"{sum(split.shards for split in splits):,}",
            **({"GB": f"{size / 1e9:,.1f}"} if size > 1e9 else {"MB": f"{size / 1e6:,.1f}"}),
        },
        splits=split_table(description),
        shapes=[
            ("Shorter side, pixels", *histogram(spread["short_side"], "side")),
            ("Width over height", *histogram(spread["aspect"], "aspect")),
            ("Bytes per image", *histogram(spread["image_bytes"], "bytes")),
        ],
        frequencies=[
            ("Images per class", *histogram(spread["class_images"], "classes", "classes")),
            ("Images per class, the largest class first", frequency_chart(description), ""),
        ],
        most=class_table(description.most),
        least=class_table(description.least),
        left_out=left_out,
        sources={
            "Source formats": bars("modes", built.get("modes", {})),
            "Gave no image, by reason": bars("reasons", built.get("reasons", {})),
        },
        warnings=built.get("warnings", ()),
        notes=[*built.get("sources", ()), *built.get("notes", ())],
        samples=samples(location),
    )
    store.write_bytes(*store.locate(path), page.encode())


def split_table(description: Description) -> Table:
    """One row per split."""
    head = ["split", "images", "classes", "shards", "GB", "KB/image", "overhead", "multi-label"]
    rows = [
        [
            *(name, f"{split.images:,}", f"{split.classes:,}", f"{split.shards:,}"),
            rounded(split.shard_bytes / 1e9),
            f"{split.image_bytes / max(split.images, 1) / 1e3:,.1f}",
            *(f"{split.overhead:.1%}", f"{split.multi_label:,}"),
        ]
        for name, split in description.splits.items()
    ]
    return Table(head=head, rows=rows)


def class_table(rows: Sequence[tuple[str, str, int]]) -> Table:
    """Number of images by class."""
    cells = [[Cell(name, "" if name == wnid else wnid), f"{count:,}"] for wnid, name, count in rows]
    return Table(head=["class", "images"], rows=cells)


def bars(name: str, counts: Mapping[str, int]) -> str:
    """A chart of counts and their shares of the total."""
    total = sum(counts.values())

    def count_and_share(count: int) -> str:
        return f"{count:,} ({count / total:.1%})" if count else "0"

    return bar_chart(counts, name=name, shown=count_and_share)


@styled
def histogram(told: Histogram, name: str, what: str = "images") -> tuple[str, str]:
    """Chart and caption of a quantity of images or classes; only a caption if it hardly differs."""
    ends = " to ".join(dict.fromkeys(rounded(end) for end in (told.smallest, told.largest)))
    bins, total = told.central, told.total
    if not varies(told):
        return "", f"{ends}, of all {what}." if total else ""
    chart = Chart(f"histogram-{name}", height=214, bottom=24)
    lows, highs, numbers = zip(*bins, strict=True)
    widths = [high - low for low, high in zip(lows, highs, strict=True)]
    shares = [number / total for number in numbers]
    bars = chart.axes.bar(lows, shares, widths, align="edge", color=SERIES[0])
    for bar, (low, high, number) in zip(bars, bins, strict=True):
        text = f"{between(low, high, told)}: {number:,} {what} ({number / total:.1%})"
        chart.mark(bar, "bar", text)
    few, more = (ticks(lows[0], highs[-1], logarithmic=each) for each in (True, False))
    places = few if len(few) >= MIN_TICKS else more
    chart.axes.set(xscale="log", xlim=(lows[0], highs[-1]), ylim=(0, None))
    chart.axes.set(xticks=places, xticklabels=map(short, places))
    chart.axes.minorticks_off()
    chart.axes.yaxis.set_major_formatter(percentage)
    outside = 1 - sum(shares)
    beyond = f"; {outside:.2%} are outside of the chart" if sum(numbers) < total else ""
    return chart.svg(), f"Share of the {what}. {ends}{beyond}."


def between(low: float, high: float, told: Histogram) -> str:
    """The range of a bin; of whole numbers, both ends are in it."""
    ends = (low, high - 1) if told.whole else (low, high)
    return " to ".join(dict.fromkeys(map(rounded, ends)))


def varies(told: Histogram) -> bool:
    """Whether there is more to show than a range."""
    return sum(number > 0 for *_, number in told.central) >= MIN_BINS


def rounded(value: float) -> str:
    """A number to three digits, or to the last digit before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def frequency_chart(description: Description) -> str:
    """A chart of images per class by rank; its axis is logarithmic if the classes differ much.

    There is none if they hardly differ.
    """
    counts = description.frequency
    if not varies(description.histograms["class_images"]):
        return ""
    step = (description.classes - 1) / max(len(counts) - 1, 1)
    lines = {"images": [(1 + round(step * place), n) for place, n in enumerate(counts)]}
    skewed = max(counts, default=0) > SKEWED * min(filter(None, counts), default=1)
    return line_chart(lines, name="frequency", label="rank of the class", logarithmic=skewed)


def samples(location: str) -> Iterator[tuple[str, str, str]]:
    """Thumbnail, class names and key of the first samples of shards spread over the set."""
    shard_set = format.open_set(location)
    shards = shard_set.manifest.shards
    per_shard = -(-SHEET_IMAGES // max(len(shards), 1))
    for shard in shards[:: -(-len(shards) // SHEET_IMAGES)]:
        path = shard_set.path(shard)
        with shard_set.fs.open_input_file(path) as file:
            for row in shard_set.read_index(shard).slice(0, per_shard).to_pylist():
                if not row["width"]:  # an image that cannot be read
                    continue
                wnids = (shard_set.manifest.classes[number] for number in row["classes"])
                names = "; ".join(wordnet.name(wnid).split(",")[0] for wnid in wnids)
                data = store.read_range(file, path, row["offset"], row["size"])
                yield thumbnail(data), names, row["key"]


def thumbnail(data: bytes) -> str:
    """A small JPEG of the image, in base64."""
    image = opened(data)
    image.thumbnail((2 * THUMB_SIDE, 2 * THUMB_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
