"""Charts as SVG text for a page, drawn by Matplotlib.

    points (x, y) by name -> line_chart -> <svg>
    amounts by label      -> bar_chart  -> <svg>
    anything else         -> Chart: axes to draw into, hover texts, svg()

The text has no scripts, addresses or secrets, and the same input gives the same bytes. Its colours
are the variables of support/templates/style.css, which follow the page's dark mode. The name of a
chart is the id of its <svg> and must be unique on a page.
"""

import io
import itertools
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from support.svg import Mark, page_svg

Line = Sequence[tuple[float, float]]

# pixels of the viewBox; charts have the same margins, so that their axes are aligned on a page
WIDTH, HEIGHT = 520, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 40
LEGEND_ROW, BAR_ROW, LETTER = 17, 24, 6.6
# longer lines are averaged, shorter ones have dots with a hover text; more lines have no legend
MAX_POINTS, MAX_DOTS, MAX_NAMES = 600, 40, 30
MAX_LABEL = 40
# the colours of light mode, each in the place of a variable
INK, SOFT, LINE, PAPER = "#16202e", "#5b6b80", "#dfe5ec", "#ffffff"
WASH, BAD = "#f4f6f9", "#c92a2a"
SERIES = ("#2563eb", "#d97706", "#0f9d77", "#9333ea", "#db2777", "#0891b2")
VARIABLES = {
    **{INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", PAPER: "var(--paper)"},
    **{WASH: "var(--wash)", BAD: "var(--bad)"},
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
STYLE = {
    "axes.autolimit_mode": "round_numbers",
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": SOFT,
    "axes.labelpad": 7,
    "axes.labelsize": 11,
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    "font.family": "DejaVu Sans",  # for measuring; the reader sees the font of the page
    "font.size": 11,
    "grid.color": LINE,
    **{"legend.borderpad": 0, "legend.borderaxespad": 0, "legend.columnspacing": 1.5},
    **{"legend.frameon": False, "legend.handlelength": 1.3, "legend.handletextpad": 0.5},
    **{"legend.labelcolor": SOFT, "legend.loc": "upper left"},
    "lines.linewidth": 1.8,
    "lines.markersize": 4.6,
    "path.simplify": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    **{f"{axis}tick.color": SOFT for axis in "xy"},
    **{f"{axis}tick.labelsize": 11 for axis in "xy"},
    **{f"{axis}tick.major.pad": 7 for axis in "xy"},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    **{"xtick.bottom": False, "ytick.left": False},
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
styled = matplotlib.rc_context(STYLE)


class Chart:
    """A figure with one pair of axes; sizes are in pixels of the viewBox."""

    @styled
    def __init__(
        self,
        name: str,
        *,
        height: float = HEIGHT,
        left: float = LEFT,
        right: float = RIGHT,
        bottom: float = BOTTOM,
    ) -> None:
        self.name = name
        self.figure = Figure(figsize=(WIDTH / 72, height / 72))  # SVG has 72 points per inch
        self.figure.patch.set_visible(False)
        across, up = WIDTH - left - right, height - bottom - TOP
        self.axes = self.figure.add_axes(
            (left / WIDTH, bottom / height, across / WIDTH, up / height)
        )
        self.axes.patch.set_visible(False)
        self._marks: list[Mark] = []

    def mark(self, artist: Artist, kind: str, title: str | Sequence[str] = "") -> Artist:
        """Give an artist a CSS class and a hover text, or a text for each of its markers."""
        artist.set_gid(f"mark-{len(self._marks)}")
        artist.set_clip_on(False)
        self._marks.append((kind, title))
        return artist

    @styled
    def line(
        self, points: Line, kind: str, title: str | Sequence[str] = "", **style: object
    ) -> Artist:
        """Draw a line through points; the rest is style of Matplotlib's `plot`."""
        (line,) = self.axes.plot(*zip(*points, strict=True), **style)
        return self.mark(line, kind, title)

    def dots(
        self, points: Line, kind: str, titles: Sequence[str], *, marker: str = "o", **style: object
    ) -> Artist:
        """Draw a marker at each point, each with its hover text."""
        return self.line(points, kind, titles, marker=marker, linestyle="none", **style)

    def write_ticks(self, **shown: Callable[[float], str]) -> None:
        """Set how the ticks of an axis, x or y, are written."""
        for axis, write in shown.items():
            formatter = FuncFormatter(lambda value, _, write=write: write(value))
            getattr(self.axes, f"{axis}axis").set_major_formatter(formatter)

    def svg(self) -> str:
        """The chart as an <svg> element."""
        file = io.StringIO()
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}), warnings.catch_warnings():
            # the page has another font, which may know what the one for measuring does not
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            self.figure.savefig(file, format="svg", metadata=NO_METADATA)
        return page_svg(file.getvalue(), self.name, self._marks, VARIABLES)


@styled
def line_chart(
    lines: Mapping[str, Line],
    *,
    name: str,
    label: str = "",
    logarithmic: bool = False,
    percent: bool = False,
    reference: Collection[str] = (),
) -> str:
    """Lines and their legend; without any point to draw it is an empty text.

    Args:
        lines: Points of each line, by its name.
        name: Id of the chart.
        label: What the horizontal axis counts.
        logarithmic: Of the vertical axis; values that are not positive are left out.
        percent: Show shares as percentages.
        reference: Lines to compare the others with, faint and dashed.
    """
    kept = {key: thinned(clean(line, logarithmic)) for key, line in lines.items()}
    kept = {key: line for key, line in kept.items() if line}
    if not kept:
        return ""
    # the legend takes rows below the axes
    columns = max(1, int((WIDTH - LEFT) / (max(map(len, kept)) * LETTER + 36)))
    rows = -(-len(kept) // columns) if 1 < len(kept) <= MAX_NAMES else 0
    chart = Chart(name, height=HEIGHT + LEGEND_ROW * rows, bottom=BOTTOM + LEGEND_ROW * rows)
    shown = percentage if percent else short
    _add_lines(chart, kept, shown, reference)
    _set_scales(chart, [point for line in kept.values() for point in line], logarithmic)
    chart.write_ticks(x=short, y=shown)
    hint = f"{len(kept)} lines, named under the pointer; " if len(kept) > MAX_NAMES else ""
    chart.axes.set_xlabel(hint + label, loc="right")
    if rows:
        below = -BOTTOM / (HEIGHT - TOP - BOTTOM)
        chart.axes.legend(ncols=columns, bbox_to_anchor=(0, below))
    return chart.svg()


@styled
def bar_chart(bars: Mapping[str, float], *, name: str, shown: Callable[[float], str]) -> str:
    """Horizontal bars with their amounts; an empty text if there is nothing but zeros."""
    if not any(bars.values()):
        return ""
    texts = [shown(value) for value in bars.values()]
    labels = [key if len(key) <= MAX_LABEL else f"{key[: MAX_LABEL - 3]}..." for key in bars]
    left, right = (LETTER * max(map(len, words)) + 14 for words in (labels, texts))
    height = BAR_ROW * len(bars) + 2 * TOP
    chart = Chart(name, height=height, left=left, right=right, bottom=TOP)
    rects = chart.axes.barh(range(len(bars)), list(bars.values()), height=0.66, color=SERIES[0])
    for rect, key, text in zip(rects, bars, texts, strict=True):
        chart.mark(rect, "bar", f"{key}: {text}")
    chart.axes.bar_label(rects, texts, padding=6, color=SOFT)
    chart.axes.set(yticks=range(len(bars)), yticklabels=labels, xticks=[])
    chart.axes.set(xlim=(0, max(bars.values())), ylim=(len(bars) - 0.5, -0.5))
    chart.axes.grid(visible=False)
    chart.axes.spines.bottom.set_visible(False)
    return chart.svg()


def clean(line: Line, logarithmic: bool = False) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [
        (x, y)
        for x, y in line
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not logarithmic)
    ]


def thinned(line: Line) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: means of groups of neighbours, and the last point as it is."""
    size = -(-len(line) // MAX_POINTS)
    if size <= 1:
        return list(line)
    groups = [line[first : first + size] for first in range(0, len(line), size)]
    means = [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]
    return [*means[:-1], line[-1]]


def ticks(low: float, high: float, *, logarithmic: bool = False) -> list[float]:
    """A few round numbers in [low, high]; 1, 2 and 5 of each decade on a logarithmic axis."""
    locators = [MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])]
    if logarithmic:
        locators = [LogLocator(subs=(1, 2, 5)), LogLocator(subs=(1,)), *locators]
    for locator in locators:
        values = [float(f"{value:.12g}") for value in locator.tick_values(low, high)]
        values = [v for v in values if low * 0.999 <= v <= high * 1.001]
        if 2 <= len(values) <= 8:
            break
    return values


def shades(shares: np.ndarray) -> np.ndarray:
    """Colours from dark (0) to light (1), evenly in lightness: (...) -> (..., 4)."""
    return matplotlib.colormaps["viridis"](np.clip(shares, 0.0, 1.0))


def short(value: float) -> str:
    """A number: 0.25, 250, 12.5k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.5g}{unit}"
    return f"{value:.5g}"


def percentage(value: float) -> str:
    """A share: 12.5%."""
    return f"{100 * value:.5g}%"


def _add_lines(
    chart: Chart,
    lines: Mapping[str, Line],
    shown: Callable[[float], str],
    reference: Collection[str],
) -> None:
    """Draw lines, each in its own colour or dash, with dots where there is room for them."""
    styles = itertools.cycle(itertools.product(DASHES, SERIES))
    for key, line in lines.items():
        dash, colour = (DASHES[1], SOFT) if key in reference else next(styles)
        chart.line(line, "line", key, label=key, linestyle=dash, color=colour)
        if len(line) <= MAX_DOTS and key not in reference:
            titles = [f"{key}: {shown(y)} at {short(x)}" for x, y in line]
            chart.dots(line, "dots", titles, color=colour)


def _set_scales(chart: Chart, points: Line, logarithmic: bool) -> None:
    """Fit the axes to the points, with round numbers on the vertical one."""
    (left, right), (low, high) = ((min(each), max(each)) for each in zip(*points, strict=True))
    axes = chart.axes
    left = min(left, 0.0)  # counts start at 0, on each of several charts
    axes.set_xlim(left, right if left < right else left + 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        axes.set_yscale("log")
        axes.set_ylim(10.0**first, 10.0 ** max(last, first + 1))
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        return
    if low == high:  # a level line lies in the middle, and a share of 0 has no room below it
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 0.01)
    locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    axes.yaxis.set_major_locator(locator)
    axes.set_ylim(*locator.view_limits(low, high))
