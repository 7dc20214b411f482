"""The chart of calibration: how often predictions of a confidence are right."""

import math
from collections.abc import Mapping, Sequence

from support import chart
from support.chart import BOTTOM, HEIGHT, LEGEND_ROW, SERIES, SOFT, TOP, Chart

# diameters in pixels of the smallest dot and of one with all images; areas are as numbers of images
SMALLEST, LARGEST = 3.0, 34.0
# names in a row of the legend
COLUMNS = 3


@chart.styled
def calibration_chart(calibration: Mapping[str, Sequence[tuple[int, float, float]]]) -> str:
    """Draw each bin of confidence as a dot whose area shows its images; empty without images.

    `calibration` has the bins (images, confidence, accuracy) of each protocol. Nothing joins them:
    a line would give a bin of one image the weight of one of a thousand.
    """
    bins = {name: [row for row in rows if row[0]] for name, rows in calibration.items()}
    if not any(bins.values()):
        return ""
    legend = LEGEND_ROW * -(-(1 + len(bins)) // COLUMNS)
    figure = Chart("calibration", height=HEIGHT + legend, bottom=BOTTOM + legend)
    ideal = {"color": SOFT, "linestyle": chart.DASHES[1], "label": "ideal"}
    figure.line([(0.0, 0.0), (1.0, 1.0)], "line", "ideal", **ideal)
    for place, (name, rows) in enumerate(bins.items()):
        colour, total = SERIES[place % len(SERIES)], sum(images for images, _, _ in rows)
        figure.axes.plot([], [], marker="o", linestyle="none", color=colour, label=name)
        for images, confidence, accuracy in sorted(rows, reverse=True):  # small ones on top
            words = f"{name}: {confidence:.2f} sure, {accuracy:.2f} right, {images:,} images"
            size = max(SMALLEST, LARGEST * math.sqrt(images / total))
            look = {"color": colour, "markersize": size, "alpha": 0.6}
            figure.dots([(confidence, accuracy)], "dots", [words], **look)
    _finish(figure)
    return figure.svg()


def _finish(figure: Chart) -> None:
    """Both axes from 0 to 1, the same for all models, and the legend below."""
    axes = figure.axes
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel("confidence", loc="right")
    axes.xaxis.set_major_formatter(chart.percentage)
    axes.yaxis.set_major_formatter(chart.percentage)
    below = -BOTTOM / (HEIGHT - TOP - BOTTOM)
    axes.legend(ncols=COLUMNS, bbox_to_anchor=(0, below))
