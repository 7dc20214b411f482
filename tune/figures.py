"""The figures of a search as SVG: the map over two settings, the curves, the seeds, the importance.

The best and the baseline have the same colours in all figures.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pipeline.tracking.journal import read_records
from support import chart
from support.chart import Chart, Line
from tune.config import sign_of
from tune.dimension import Choice, Dimension, Range
from tune.job import shown
from tune.result import Group, SearchResult
from tune.trial_log import DIVERGED, DONE, STOPPED, Entry

Place = tuple[float, ...]
"""Position on the axes of the map, from 0 to 1."""

# cells along a side of the map, and the reach of a trial as a share of the side
CELLS, REACH = 48, 0.13
# the colours of the map cover at least this many tolerances below the best
DEPTH = 3.0
SIZE = {"height": 380, "left": 66}
BEST, BASELINE, OTHER = chart.SERIES[4], chart.INK, chart.SERIES[0]


def map_figure(result: SearchResult) -> str:
    """The objective over two settings: a smooth surface near the trials, and the trials.

    If only one setting was searched, the vertical axis is the objective.
    """
    objective, dimensions = result.objective, map_dimensions(result)
    figure = Chart("map", **SIZE)
    figure.axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.axes.grid(visible=False)
    figure.axes.spines[:].set_visible(True)
    for axis, (name, dimension) in zip("xy", dimensions.items(), strict=True):
        set_dimension(figure, axis, name, dimension)
    groups = {group.number: group for group in result.groups}
    trials = []
    for entry in sorted(result.entries, key=lambda entry: entry.number == result.best.number):
        group = groups.get(entry.number)
        reached = {objective: group.mean(objective)} if group else {}
        at = place(dimensions, {**entry.sample, **reached})
        if at and not entry.repeat:
            trials.append((at, entry, group))
    points = [(*at, group.mean(objective)) for at, _, group in trials if group]
    if points and objective not in dimensions:
        box = {"extent": (0, 1, 0, 1), "origin": "lower", "aspect": "auto"}
        image = figure.axes.imshow(surface(result, np.array(points)), interpolation="none", **box)
        figure.mark(image, "surface")
    for at, entry, group in trials:
        add_trial(figure, result, entry, group, at)
    return figure.svg()


def map_dimensions(result: SearchResult) -> dict[str, Dimension]:
    """The dimensions on the axes of the map: learning rate and warm-up if they were searched."""
    dimensions = result.job.space.dimensions
    first = [name for name in ("optim.lr", "optim.warmup") if name in dimensions]
    names = first + [name for name in dimensions if name not in first]
    if len(names) == 1:
        span = metric_range(group.mean(result.objective) for group in result.groups)
        return {**dimensions, result.objective: span}
    return {name: dimensions[name] for name in names[:2]}


def metric_range(values: Iterable[float]) -> Range:
    """The range of an axis for values of a metric, with a margin."""
    values = list(values) or [0.0, 1.0]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return Range(low=low - margin, high=high + margin)


def set_dimension(figure: Chart, axis: str, name: str, dimension: Dimension) -> None:
    """Label an axis from 0 to 1 with values of a dimension."""
    if isinstance(dimension, Choice):
        values = {str(option): option for option in dimension.options}
    else:
        marks = chart.ticks(dimension.low, dimension.high, logarithmic=dimension.log)
        values = {chart.short(value): value for value in marks}
    places = [share_of(dimension, value) for value in values.values()]
    figure.axes.set(**{f"{axis}label": name, f"{axis}ticks": places, f"{axis}ticklabels": values})


def share_of(dimension: Dimension, value: object) -> float:
    """Position of a value on an axis from 0 to 1; slightly outside for values out of range."""
    if isinstance(dimension, Choice):
        return (dimension.options.index(value) + 0.5) / len(dimension.options)
    return min(max(dimension.share(value), -0.02), 1.02)


def place(dimensions: Mapping[str, Dimension], sample: Mapping[str, object]) -> Place | None:
    """Position of a sample; None if it lacks a value, or has one that is not an option."""
    try:
        return tuple(share_of(dimension, sample[name]) for name, dimension in dimensions.items())
    except (KeyError, ValueError):
        return None


def surface(result: SearchResult, points: np.ndarray) -> np.ndarray:
    """Colours of the weighted mean of the trials nearby, faint where there are none.

    Positions and values of the trials (n, 3) -> (CELLS, CELLS, 4).
    """
    side = (np.arange(CELLS) + 0.5) / CELLS
    squared = (side[None, :, None] - points[:, 0]) ** 2 + (side[:, None, None] - points[:, 1]) ** 2
    weights = np.exp(-squared / (2 * REACH**2))  # (CELLS, CELLS, n)
    total = weights.sum(-1)
    colours = color(result, weights @ points[:, 2] / np.maximum(total, 1e-12))
    colours[..., 3] = np.minimum(1.0, total)
    return colours


def color_ends(result: SearchResult) -> tuple[float, float]:
    """The values of the objective at the dark and at the light end of the map's colours.

    They are so far apart that three quarters of the settings differ in colour, and DEPTH tolerances
    at least.
    """
    best, sign = result.best.mean(result.objective), sign_of(result.objective)
    behind = sorted(abs(best - group.mean(result.objective)) for group in result.groups)
    depth = max(DEPTH * result.tolerance, behind[len(behind) * 3 // 4]) or 1.0
    return best - sign * depth, best


def color(result: SearchResult, values: float | np.ndarray) -> np.ndarray:
    """The colours on the map for values of the objective: (...) -> (..., 4)."""
    worst, best = color_ends(result)
    return chart.shades((values - worst) / (best - worst))


def described(entry: Entry) -> str:
    """The hover text of a trial."""
    return f"{entry.name}: {entry.status}; {shown(entry.sample)}"


def add_trial(
    figure: Chart, result: SearchResult, entry: Entry, group: Group | None, at: Place
) -> None:
    """Draw one trial on the map."""
    text = described(entry)
    if entry.status == DIVERGED:
        text = f"{text}; {entry.reason}"
        style = {"marker": "x", "color": chart.BAD, "markersize": 9, "markeredgewidth": 2.4}
    elif not group:
        values = ", ".join(f"{k} {v:.4f}" for k, v in entry.values.items() if k.startswith("val"))
        text = f"{text} at step {entry.step}; {values}"
        style = {"color": chart.PAPER, "markeredgecolor": chart.INK, "markersize": 8}
        style["markeredgewidth"] = 1.6
    else:
        text = f"{text}; {result.objective} {group.shown(result.objective)}"
        style = {"color": color(result, group.mean(result.objective)), "markersize": 12}
        style |= {"markeredgecolor": chart.PAPER, "markeredgewidth": 1.8}
    figure.dots([at], "trial", [text], **style)
    names = ["best"] * (group is result.best) + ["baseline"] * (entry.number == 0)
    if group and names:
        ink = BEST if group is result.best else BASELINE
        ring = {"markerfacecolor": "none", "markersize": 19, "markeredgewidth": 2.8}
        figure.dots([at], "ring", [text], color=ink, **ring)
        add_name(figure, " and ".join(names), ink, at)


def add_name(figure: Chart, words: str, ink: str, at: Place) -> None:
    """Label a trial: the best above it and the baseline below it, so that labels do not overlap."""
    x, y = at
    below = y > 0.9 or (ink == BASELINE and y > 0.1)
    side = {"va": "top" if below else "bottom"}
    side["ha"] = "left" if x < 0.08 else "right" if x > 0.92 else "center"
    offset = {"xytext": (0, -13 if below else 13), "textcoords": "offset points"}
    figure.mark(figure.axes.annotate(words, at, color=ink, **side, **offset), "halo")


def read_curves(result: SearchResult, metric: str) -> dict[tuple[int, int], Line]:
    """Points (share of the trial, metric) of each trial, by the key of its entry."""
    curves = {}
    for entry in result.entries:
        config = result.job.trial_config(entry.settings, entry.name, entry.repeat)
        total = config.steps(result.job.samples)
        records = read_records(Path(config.runs_dir) / config.name)
        points = [(r["step"] / total, r[metric]) for r, _ in records if metric in r]
        curves[entry.key] = chart.clean(points)
    return curves


def curves_figure(result: SearchResult, metric: str) -> str:
    """The metric of all trials over the share of their length; marks where none is stopped."""
    curves, best = read_curves(result, metric), result.best.number
    span = metric_range(value for points in curves.values() for _, value in points)
    figure = Chart("curves", **SIZE)
    figure.axes.set(xlim=(0, 1), xlabel="share of the trial", ylim=(span.low, span.high))
    figure.axes.set(ylabel=metric)
    figure.axes.xaxis.set_major_formatter(chart.percentage)
    figure.axes.yaxis.set_major_formatter(chart.short)
    if result.job.config.stopper != "none":
        first = result.job.first_rung
        offset = {"xytext": (-6, -6), "textcoords": "offset points"}
        figure.axes.axvspan(0, first, color=chart.WASH)
        figure.axes.axvline(first, color=chart.SOFT, linewidth=1, linestyle=chart.DASHES[1])
        note = {"color": chart.SOFT, "ha": "right", "va": "top", **offset}
        figure.axes.annotate("no trial is stopped here", (first, span.high), **note)
    for entry in sorted(result.entries, key=lambda e: (e.number == best, e.number == 0)):
        if curves[entry.key]:
            add_curve(figure, entry, curves[entry.key], best=entry.number == best)
    return figure.svg()


def add_curve(figure: Chart, entry: Entry, points: Line, *, best: bool) -> None:
    """Draw the curve of one trial, with a marker that shows how it ended."""
    baseline = not entry.number
    ink = BEST if best else BASELINE if baseline else chart.SOFT
    width = 0.9 if entry.repeat else 2.8 if best else 2.2 if baseline else 1.2
    dash = chart.DASHES[1] if baseline and not best else "-"
    style = {"color": ink, "alpha": 1 if best or baseline else 0.6}
    figure.line(points, "trial", described(entry), linewidth=width, linestyle=dash, **style)
    ends = {
        STOPPED: {"markerfacecolor": chart.PAPER, "markersize": 7, "markeredgewidth": 1.8},
        DIVERGED: {"marker": "x", "color": chart.BAD, "markersize": 8, "markeredgewidth": 2.2},
        DONE: {"markersize": 5},
    }
    if entry.status in ends:
        figure.dots(points[-1:], "end", [described(entry)], **{**style, **ends[entry.status]})


def seeds_figure(result: SearchResult) -> str:
    """All seeds of the settings that were run with several; an empty text if there are none."""
    groups = [group for group in result.groups if len(group.runs) > 1]
    if not groups:
        return ""
    figure = Chart("seeds", height=34 * len(groups) + 60, left=SIZE["left"])
    span = metric_range(run[result.objective] for group in groups for run in group.runs)
    figure.axes.set(xlim=(span.low, span.high), xlabel=result.objective)
    figure.axes.xaxis.set_major_formatter(chart.short)
    names = [f"trial {group.number}" if group.number else "baseline" for group in groups]
    figure.axes.set(ylim=(len(groups) - 0.5, -0.5), yticks=range(len(groups)), yticklabels=names)
    for row, group in enumerate(groups):
        ink = BEST if group is result.best else OTHER if group.number else BASELINE
        mean = group.mean(result.objective)
        ends = [(mean, row - 0.3), (mean, row + 0.3)]
        figure.line(ends, "mean", f"mean {mean:.4f}", color=ink, linewidth=3)
        points = [(run[result.objective], row) for run in group.runs]
        titles = [f"{result.objective} {value:.4f}" for value, _ in points]
        figure.dots(points, "seed", titles, color=ink, alpha=0.55, markersize=10)
    return figure.svg()


def importance_figure(result: SearchResult) -> str:
    """A bar for each setting, the longest first; an empty text if the importance is unknown."""
    shares = sorted((result.importance or {}).items(), key=lambda pair: -pair[1])
    return chart.bar_chart(dict(shares), name="importance", shown="{:.0%}".format)
