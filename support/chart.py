"""Charts as SVG text for HTML pages, drawn by Matplotlib.

    points (x, y) by name -> line_chart -> <svg>: lines, extremes around them, spikes, and what they
                                           are at the place of the pointer
    amounts by label      -> bar_chart  -> <svg>
    anything else         -> Chart: axes to draw into, hover texts, svg()

The text contains no scripts, addresses or secrets, and equal input gives equal bytes. Its colours
are CSS variables from support/templates/style.css, which follow the page's dark mode. The name of
a chart is the id of its <svg> and must be unique on the page.
"""

import io
import itertools
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from support.curve import STRIPS, Band, Curve, Line, is_wide, readings
from support.number_text import exact, percentage, short
from support.svg import Mark, page_svg

# pixels of the viewBox; equal margins align the axes of all charts on a page
WIDTH, HEIGHT = 520, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 40
LEGEND_ROW, BAR_ROW, LETTER = 17, 24, 6.6
# lines with fewer points have dots; charts with more lines have no legend
MAX_DOTS, MAX_NAMES = 40, 30
MAX_LABEL = 40
# what lies above and below the strips under the pointer; lines are at 2
ABOVE, BELOW = 3, 2.5
# colours of light mode, each replaced by a CSS variable
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
    "font.family": "DejaVu Sans",  # for measuring; the reader sees the font of the page
    **dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), 11),
    **dict.fromkeys(("axes.labelpad", "xtick.major.pad", "ytick.major.pad"), 7),
    **dict.fromkeys(("axes.xmargin", "axes.ymargin", "xtick.major.size", "ytick.major.size"), 0),
    **dict.fromkeys((f"axes.spines.{side}" for side in ("left", "right", "top")), False),
    **dict.fromkeys(("xtick.bottom", "ytick.left"), False),
    **dict.fromkeys(("axes.labelcolor", "legend.labelcolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE),
    **{"text.color": INK, "text.parse_math": False},
    **{"axes.autolimit_mode": "round_numbers", "axes.axisbelow": True},
    **{"axes.grid": True, "axes.grid.axis": "y"},
    **{"legend.borderpad": 0, "legend.borderaxespad": 0, "legend.columnspacing": 1.5},
    **{"legend.frameon": False, "legend.handlelength": 1.3, "legend.handletextpad": 0.5},
    "legend.loc": "upper left",
    **{"lines.linewidth": 1.8, "lines.markersize": 4.6, "path.simplify": False},
    "svg.fonttype": "none",
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
        box = (left / WIDTH, bottom / height, across / WIDTH, up / height)
        self.axes = self.figure.add_axes(box)
        self.axes.patch.set_visible(False)
        self._marks: list[Mark] = []

    def mark(self, artist: Artist, kind: str, title: str | Sequence[str] = "") -> Artist:
        """Give an artist a CSS class, and a hover text or one text for each of its markers."""
        artist.set_gid(f"mark-{len(self._marks)}")
        artist.set_clip_on(False)
        self._marks.append((kind, title))
        return artist

    @styled
    def line(
        self, points: Line, kind: str, title: str | Sequence[str] = "", **style: object
    ) -> Artist:
        """Draw a line through points; `style` goes to Matplotlib's `plot`."""
        (line,) = self.axes.plot(*zip(*points, strict=True), **style)
        return self.mark(line, kind, title)

    def dots(
        self, points: Line, kind: str, titles: Sequence[str], *, marker: str = "o", **style: object
    ) -> Artist:
        """Draw a marker at each point, each with its hover text."""
        return self.line(points, kind, titles, marker=marker, linestyle="none", **style)

    def svg(self) -> str:
        """The chart as an <svg> element."""
        file = io.StringIO()
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}), warnings.catch_warnings():
            # the font of the page may have glyphs that the font for measuring lacks
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            self.figure.savefig(file, format="svg", metadata=NO_METADATA)
        return page_svg(file.getvalue(), self.name, self._marks, VARIABLES)


@styled
def line_chart(
    lines: Mapping[str, Line],
    *,
    name: str,
    label: str = "",
    logarithmic: bool | None = False,
    percent: bool = False,
    reference: Collection[str] = (),
    bands: Mapping[str, Band] | None = None,
    moments: Mapping[float, str] | None = None,
    until: float | None = None,
) -> str:
    """Draw lines and their legend; an empty string if there are no points.

    Args:
        lines: Points of each line, by its name.
        name: Id of the chart.
        label: What the horizontal axis shows.
        logarithmic: Whether the vertical axis is, which omits values that are not positive; None
            lets the values decide.
        percent: Whether shares are shown as percentages.
        reference: Lines that are faint and dashed.
        bands: Minima and maxima around some of the lines; maxima that stand out are marked. A line
            that is thinned always lies within the extremes of what it stands for.
        moments: Texts of vertical lines, by their place on the horizontal axis.
        until: End of the horizontal axis, at least, so that several charts have the same one.
    """
    bands, moments = bands or {}, moments or {}
    curves = {
        key: Curve.of(line, bands.get(key), logarithmic=logarithmic is True)
        for key, line in lines.items()
    }
    if not (curves := {key: curve for key, curve in curves.items() if len(curve)}):
        return ""
    if logarithmic is None:
        logarithmic = not percent and is_wide(list(curves.values()))
    drawn = {key: curve.thinned() for key, curve in curves.items()}
    # rows of the legend below the axes
    columns = max(1, int((WIDTH - LEFT) / (max(map(len, drawn)) * LETTER + 36)))
    rows = -(-len(drawn) // columns) if 1 < len(drawn) <= MAX_NAMES else 0
    chart = Chart(name, height=HEIGHT + LEGEND_ROW * rows, bottom=BOTTOM + LEGEND_ROW * rows)
    shown = percentage if percent else short
    _add_lines(chart, drawn, shown, reference)
    _set_scales(chart, list(drawn.values()), until, logarithmic=logarithmic)
    _add_spikes(chart, {key: curves[key] for key in curves if key in bands}, label, shown)
    for place, text in moments.items():
        line = chart.axes.axvline(place, color=SOFT, linewidth=1, linestyle=DASHES[1], zorder=1.5)
        chart.mark(line, "moment", text)
    if len(drawn) <= MAX_NAMES:
        _add_readings(chart, readings(curves, moments, chart.axes.get_xlim(), label, shown))
    chart.axes.xaxis.set_major_formatter(short)
    chart.axes.yaxis.set_major_formatter(shown)
    hint = f"{len(drawn)} lines, named under the pointer; " if len(drawn) > MAX_NAMES else ""
    chart.axes.set_xlabel(hint + label, loc="right")
    if rows:
        below = -BOTTOM / (HEIGHT - TOP - BOTTOM)
        chart.axes.legend(ncols=columns, bbox_to_anchor=(0, below))
    return chart.svg()


@styled
def bar_chart(bars: Mapping[str, float], *, name: str, shown: Callable[[float], str]) -> str:
    """Draw horizontal bars with their amounts; an empty string if all amounts are zero."""
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


def ticks(low: float, high: float, *, logarithmic: bool = False) -> list[float]:
    """A few round numbers in [low, high]; on a logarithmic axis 1, 2 and 5 of each decade."""
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
    """Colours from dark (0) to light (1), uniform in lightness: (...) -> (..., 4)."""
    return matplotlib.colormaps["viridis"](np.clip(shares, 0.0, 1.0))


def _add_lines(
    chart: Chart,
    curves: Mapping[str, Curve],
    shown: Callable[[float], str],
    reference: Collection[str],
) -> None:
    """Draw lines, each with its own colour or dash pattern, and dots on lines of few points."""
    styles = itertools.cycle(itertools.product(DASHES, SERIES))
    for key, curve in curves.items():
        dash, colour = (DASHES[1], SOFT) if key in reference else next(styles)
        if curve.is_band:
            around = [*zip(curve.x, curve.high, strict=True)]
            around += [*zip(curve.x, curve.low, strict=True)][::-1]
            (band,) = chart.axes.fill(*zip(*around, strict=True), color=colour, linewidth=0.5)
            chart.mark(band, "band")
        chart.line(curve.points, "line", key, label=key, linestyle=dash, color=colour)
        if len(curve) <= MAX_DOTS and key not in reference:
            titles = [f"{key}: {shown(y)} at {exact(x)}" for x, y in curve.points]
            chart.dots(curve.points, "dots", titles, color=colour, zorder=ABOVE)


def _add_spikes(
    chart: Chart, curves: Mapping[str, Curve], label: str, shown: Callable[[float], str]
) -> None:
    """Mark the maxima that stand out, each with its place and the mean around it."""
    for key, curve in curves.items():
        points, titles = [], []
        for x, y, high in ((curve.x[n], curve.y[n], curve.high[n]) for n in curve.spikes()):
            points.append((x, high))
            titles.append(f"{key}: {shown(high)} at {label} {exact(x)}, mean {shown(y)}")
        if points:
            chart.dots(points, "spike", titles, color=BAD, zorder=ABOVE)


def _add_readings(chart: Chart, told: Iterable[tuple[float, str]]) -> None:
    """Cover the chart with strips that are seen under the pointer, and say what is there."""
    box, (places, titles) = chart.axes.get_window_extent(), zip(*told, strict=True)
    across, up = box.width / STRIPS / 2, box.height / 2
    strip = Path([(-across, -up), (across, -up), (across, up), (-across, up), (-across, -up)])
    chart.dots(
        [(place, 0.5) for place in places],
        "strip",
        titles,
        marker=strip,
        markersize=box.height * 72 / chart.figure.dpi,
        markeredgewidth=0,
        color=SOFT,
        transform=chart.axes.get_xaxis_transform(),
        zorder=BELOW,
    )


def _set_scales(
    chart: Chart, curves: Sequence[Curve], until: float | None, *, logarithmic: bool
) -> None:
    """Fit the axes to the curves, with round limits on the vertical axis."""
    left, right = min(curve.x[0] for curve in curves), max(curve.x[-1] for curve in curves)
    low, high = min(curve.low.min() for curve in curves), max(curve.high.max() for curve in curves)
    left, right = min(left, 0.0), max(right, until or right)  # counts start at 0
    axes = chart.axes
    axes.set_xlim(left, right if left < right else left + 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        axes.set_yscale("log")
        axes.set_ylim(10.0**first, 10.0 ** max(last, first + 1))
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        return
    if low == high:  # show a constant line in the middle, and a share of 0 at the bottom
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 0.01)
    locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    axes.yaxis.set_major_locator(locator)
    axes.set_ylim(*locator.view_limits(low, high))
