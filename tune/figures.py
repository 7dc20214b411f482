"""The figures of a search as SVG: the map over two settings, the curves, the seeds, the importance.

All four show the same trials: the best is drawn alike in each of them, and so is the baseline.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.tracking.journal import RECORDS
from support import chart
from support.chart import Chart, Line
from support.files import read_lines
from tune.config import objectives
from tune.dimension import Choice, Dimension
from tune.job import shown
from tune.result import Group, SearchResult
from tune.trial_log import DIVERGED, DONE, STOPPED, Entry

# cells along a side of the map, and how far a trial is seen, as a share of the side
CELLS, REACH = 48, 0.13
# the colours of the map end at least this many tolerances below the best
DEPTH = 3.0
SIZE = {"height": 380, "left": 66}
BEST, BASELINE, OTHER = chart.SERIES[4], chart.INK, chart.SERIES[0]
DASHED = (0, (5, 2))


def map_figure(result: SearchResult) -> str:
    """The objective over two settings: a smooth surface near the trials, and the trials."""
    dimensions = map_dimensions(result)
    if len(dimensions) == 1:
        return single_figure(result)
    figure = Chart("map", **SIZE)
    figure.axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.axes.grid(visible=False)
    figure.axes.spines[:].set_visible(True)
    for axis, (name, dimension) in zip("xy", dimensions.items(), strict=True):
        set_dimension(figure, axis, name, dimension)
    places = {entry.key: place(dimensions, entry.sample) for entry in result.entries}
    groups = {group.number: group for group in result.groups}
    known = [
        (*places[number, 0], group.mean(result.objective))
        for number, group in groups.items()
        if places[number, 0]
    ]
    if known:
        box = {"extent": (0, 1, 0, 1), "origin": "lower", "aspect": "auto"}
        image = figure.axes.imshow(surface(result, np.array(known)), interpolation="none", **box)
        figure.mark(image, "surface")
    for entry in sorted(result.entries, key=lambda entry: entry.number == result.best.number):
        if places[entry.key] and not entry.repeat:
            add_trial(figure, result, entry, groups.get(entry.number), places[entry.key])
    return figure.svg()


def map_dimensions(result: SearchResult) -> dict[str, Dimension]:
    """The two dimensions of the map, learning rate and warm-up first; or the only one."""
    dimensions = result.job.space.dimensions
    first = [name for name in ("optim.lr", "optim.warmup") if name in dimensions]
    names = first + [name for name in dimensions if name not in first]
    return {name: dimensions[name] for name in names[:2]}


def set_dimension(figure: Chart, axis: str, name: str, dimension: Dimension) -> None:
    """Label an axis from 0 to 1 with values of a dimension."""
    if isinstance(dimension, Choice):
        values = {str(option): option for option in dimension.options}
    else:
        marks = chart.ticks(dimension.low, dimension.high, logarithmic=dimension.log)
        values = {chart.short(value): value for value in marks}
    places = [share_of(dimension, value) for value in values.values()]
    figure.axes.set(**{f"{axis}label": name, f"{axis}ticks": places, f"{axis}ticklabels": values})


def set_metric(figure: Chart, axis: str, name: str, values: Sequence[float]) -> None:
    """Label an axis with a metric, with a little air around its values."""
    low, high = min(values), max(values)
    air = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    figure.axes.set(**{f"{axis}label": name, f"{axis}lim": (low - air, high + air)})
    figure.axes.set(**{f"{axis}ticks": chart.ticks(low - air, high + air)})
    getattr(figure.axes, f"{axis}axis").set_major_formatter(lambda value, _: chart.short(value))


def share_of(dimension: Dimension, value: object) -> float:
    """Where a value lies on an axis from 0 to 1; a little outside at most."""
    if isinstance(dimension, Choice):
        return (dimension.options.index(value) + 0.5) / len(dimension.options)
    return min(max(dimension.share(value), -0.02), 1.02)


def place(
    dimensions: Mapping[str, Dimension], sample: Mapping[str, object]
) -> tuple[float, ...] | None:
    """Where a sample lies; None if it lacks a value, or has one that is no option."""
    for name, dimension in dimensions.items():
        option = not isinstance(dimension, Choice) or dimension.contains(sample.get(name))
        if name not in sample or not option:
            return None
    return tuple(share_of(dimension, sample[name]) for name, dimension in dimensions.items())


def surface(result: SearchResult, known: np.ndarray) -> np.ndarray:
    """Colours of the mean of the trials nearby, faint where there are none.

    Places and values of the trials (n, 3) -> (CELLS, CELLS, 4).
    """
    side = (np.arange(CELLS) + 0.5) / CELLS
    away = (side[None, :, None] - known[:, 0]) ** 2 + (side[:, None, None] - known[:, 1]) ** 2
    weights = np.exp(-away / (2 * REACH**2))  # (CELLS, CELLS, n)
    total = weights.sum(-1)
    colours = color(result, weights @ known[:, 2] / np.maximum(total, 1e-12))
    colours[..., 3] = np.minimum(1.0, total)
    return colours


def color_ends(result: SearchResult) -> tuple[float, float]:
    """The values of the objective at the dark and at the light end of the map's colours.

    They end so deep that three quarters of the settings are told apart, and no deeper than
    differences that count.
    """
    best, sign = result.best.mean(result.objective), 1 if objectives()[result.objective] else -1
    behind = sorted(abs(best - group.mean(result.objective)) for group in result.groups)
    depth = max(DEPTH * result.tolerance, behind[len(behind) * 3 // 4]) or 1.0
    return best - sign * depth, best


def color(result: SearchResult, values: float | np.ndarray) -> np.ndarray:
    """The map's colours of values of the objective: (...) -> (..., 4)."""
    worst, best = color_ends(result)
    return chart.shades((values - worst) / (best - worst))


def described(entry: Entry) -> str:
    """The hover text of a trial."""
    return f"{entry.name}: {entry.status}; {shown(entry.sample)}"


def add_trial(
    figure: Chart, result: SearchResult, entry: Entry, group: Group | None, at: tuple[float, ...]
) -> None:
    """Draw one trial on the map."""
    text, hollow = described(entry), {"markerfacecolor": "none"}
    if entry.status == DIVERGED:
        text = f"{text}; {entry.reason}"
        styles = [{"marker": "x", "color": chart.BAD, "markersize": 9, "markeredgewidth": 2.4}]
    elif not group:
        values = ", ".join(f"{k} {v:.4f}" for k, v in entry.values.items() if k.startswith("val"))
        text = f"{text} at step {entry.step}; {values}"
        styles = [
            {"markeredgecolor": edge, "markeredgewidth": width, "markersize": 9, **hollow}
            for edge, width in ((chart.INK, 3.6), (chart.PAPER, 1.8))
        ]
    else:
        text = f"{text}; {result.objective} {group.shown(result.objective)}"
        fill = color(result, group.mean(result.objective))
        edge = {"markeredgecolor": chart.PAPER, "markeredgewidth": 1.8}
        styles = [{"color": fill, "markersize": 12, **edge}]
    best, baseline = group is result.best, group is not None and group is result.baseline
    if best or baseline:
        ring = BEST if best else BASELINE
        styles.append({"markeredgecolor": ring, "markeredgewidth": 2.8, "markersize": 19, **hollow})
        add_name(figure, " and ".join(["best"] * best + ["baseline"] * baseline), ring, at)
    for style in styles:
        figure.dots([at], "trial", [text], **style)


def add_name(figure: Chart, words: str, ink: str, at: tuple[float, ...]) -> None:
    """Write beside a trial: the best above and the baseline below, to keep clear of each other."""
    x, y = at
    below = y > 0.9 or (ink == BASELINE and y > 0.1)
    side = {"va": "top" if below else "bottom"}
    side["ha"] = "left" if x < 0.08 else "right" if x > 0.92 else "center"
    away = {"xytext": (0, -13 if below else 13), "textcoords": "offset points"}
    figure.mark(figure.axes.annotate(words, at, color=ink, **side, **away), "halo")


def single_figure(result: SearchResult) -> str:
    """The objective over the only setting that was searched."""
    dimensions = result.job.space.dimensions
    figure = Chart("map", **SIZE)
    figure.axes.set_xlim(0, 1)
    set_dimension(figure, "x", *next(iter(dimensions.items())))
    set_metric(figure, "y", result.objective, [g.mean(result.objective) for g in result.groups])
    for group in result.groups:
        if at := place(dimensions, group.sample):
            point = (*at, group.mean(result.objective))
            text = f"{shown(group.sample)}: {group.shown(result.objective)}"
            ink = BEST if group is result.best else OTHER
            figure.dots([point], "trial", [text], color=ink, markersize=11)
    return figure.svg()


def read_curves(result: SearchResult, metric: str) -> dict[tuple[int, int], Line]:
    """Each trial's metric by share of the trial, by the key of its entry."""
    curves = {}
    for entry in result.entries:
        config = result.job.trial_config(entry.settings, entry.name, entry.repeat)
        total = config.steps(result.job.samples)
        records = [r for r, _ in read_lines(Path(config.runs_dir) / config.name / RECORDS)]
        points = [(r["step"] / total, r[metric]) for r in records if metric in r]
        curves[entry.key] = chart.clean(points)
    return curves


def curves_figure(result: SearchResult, metric: str) -> str:
    """All trials over the share of their length, with the part in which none is stopped."""
    curves = read_curves(result, metric)
    figure = Chart("curves", **SIZE)
    figure.axes.set(xlim=(0, 1), xlabel="share of the trial")
    figure.axes.xaxis.set_major_formatter(lambda value, _: chart.percentage(value))
    values = [value for points in curves.values() for _, value in points]
    set_metric(figure, "y", metric, values or [0.0, 1.0])
    if result.job.config.stopper != "none":
        first, top = result.job.first_rung, figure.axes.get_ylim()[1]
        figure.axes.axvspan(0, first, color=chart.WASH, zorder=0)
        figure.axes.axvline(first, color=chart.SOFT, linewidth=1, linestyle=DASHED)
        away = {"xytext": (-6, -6), "textcoords": "offset points", "ha": "right", "va": "top"}
        words = "no trial is stopped here"
        figure.axes.annotate(words, (first, top), color=chart.SOFT, **away)
    best = result.best.number
    for entry in sorted(result.entries, key=lambda e: (e.number == best, e.number == 0)):
        if curves[entry.key]:
            add_curve(figure, entry, curves[entry.key], best=entry.number == best)
    return figure.svg()


def add_curve(figure: Chart, entry: Entry, points: Line, *, best: bool) -> None:
    """Draw one trial's curve and how it ended."""
    baseline = not entry.number
    ink = BEST if best else BASELINE if baseline else chart.SOFT
    width = 0.9 if entry.repeat else 2.8 if best else 2.2 if baseline else 1.2
    dash = DASHED if baseline and not best else "-"
    style = {"color": ink, "zorder": 3, "alpha": 1 if best or baseline else 0.6}
    figure.line(points, "trial", described(entry), linewidth=width, linestyle=dash, **style)
    ends = {
        STOPPED: {"markerfacecolor": chart.PAPER, "markersize": 7, "markeredgewidth": 1.8},
        DIVERGED: {"marker": "x", "color": chart.BAD, "markersize": 8, "markeredgewidth": 2.2},
        DONE: {"markersize": 5},
    }
    if entry.status in ends:
        figure.dots(points[-1:], "end", [described(entry)], **{**style, **ends[entry.status]})


def seeds_figure(result: SearchResult) -> str:
    """Every seed of the settings that were run with several; an empty text if there are none."""
    groups = [group for group in result.groups if len(group.runs) > 1]
    if not groups:
        return ""
    figure = Chart("seeds", height=34 * len(groups) + 60, left=SIZE["left"])
    values = [run[result.objective] for group in groups for run in group.runs]
    set_metric(figure, "x", result.objective, values)
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
    """A bar for each setting, the longest first; an empty text if nothing is known."""
    shares = sorted((result.importance or {}).items(), key=lambda pair: -pair[1])
    return chart.bar_chart(dict(shares), name="importance", shown="{:.0%}".format)
