"""The answer of a search in files: the preset file, and a page that needs no other file.

    Answer -> sentences, charts, table, cost -> templates/search.html -> best.json, report.html

Trials are compared by how far each is behind the best of its rung, as the surface tells of any
settings. The preset, what was found and what diverged look the same in all charts.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from pipeline.tracking.journal import read_records
from support import chart
from support.chart import Chart
from support.curve import Curve, Line, clean
from support.files import write_bytes, write_json
from support.page import Table, render
from tune.answer import Answer
from tune.config import part
from tune.dimension import Choice, Dimension, Range
from tune.ladder import ranked
from tune.plan import Plan, cell, shown
from tune.space import Space
from tune.trial import DIVERGED, ENDED, Trial

BEST, PAGE = "best.json", "report.html"
# places along a side of the map, and along the line of the optimum
SIDE, LENGTHS = (np.arange(48) + 0.5) / 48, np.linspace(0, 1, 9)
GAP, ROW, LEFT = "behind the best", "", 66
INK, FOUND, SOFT, WHITE = chart.INK, chart.SERIES[4], chart.SOFT, "#fefefe"
NO_LINE = {"linestyle": "none"}
CROSS = {"marker": "x", "color": chart.BAD, "markersize": 7, "markeredgewidth": 2.2, **NO_LINE}


def write_answer(plan: Plan, trials: Sequence[Trial], folder: Path) -> Answer:
    """Find the answer, and write the preset file and the page into a folder."""
    answer = Answer(plan, trials)
    write_json(folder / BEST, answer.preset_file())
    write_page(answer, folder / PAGE)
    return answer


@chart.styled
def write_page(answer: Answer, path: Path) -> None:
    """Write the page, whole or not at all."""
    plan, (head, *rows) = answer.plan, answer.table()
    moving = [n for n, d in plan.space.dimensions.items() if isinstance(d, Range) and d.log]
    page = render(
        "tune/search.html",
        answer=answer,
        command=f"python -m pipeline train --preset-file {shlex.quote(str(path.with_name(BEST)))}",
        map=Map(answer),
        curves=dict(curves_chart(answer, rung) for rung in range(len(plan.rungs) + 1)),
        optima={name: optimum_chart(answer, name) for name in moving},
        pairs=pairs_chart(answer),
        table=Table(head=head, rows=rows),
        costs={f"trials {k}": f"{n:,}" for k, n in answer.counts().items()} | answer.spent(),
    )
    write_bytes(path, page.encode())


def told(answer: Answer, trial: Trial) -> str:
    """The hover text of a trial."""
    end = trial.outcome.reason or shown({answer.objective: trial.value(answer.objective)})
    return f"{trial.name}: {trial.status}; {shown(trial.sample)}; {end}"


def behind(answer: Answer) -> dict[str, float]:
    """How far each completed trial is behind the best of its rung, by name."""
    best, gaps = {}, {}
    for trial in ranked(answer.plan, answer.trials):
        value = answer.plan.config.sign * trial.value(answer.objective)
        gaps[trial.name] = value - best.setdefault(trial.rung, value)
    return gaps


def place(dimension: Dimension, value: object) -> float:
    """Place on an axis from 0 to 1, for values beyond a range at its end; nan if there is none."""
    if isinstance(dimension, Range):
        return math.nan if value is None else min(max(dimension.share(value), 0.0), 1.0)
    options = dimension.options
    return (options.index(value) + 0.5) / len(options) if value in options else math.nan


def set_axis(figure: Chart, axis: str, name: str, dimension: Dimension) -> None:
    """Label an axis from 0 to 1 with values of a dimension."""
    text, label = cell, name
    if isinstance(dimension, Choice):
        values = dimension.options
    else:
        values = chart.ticks(dimension.low, dimension.high, logarithmic=dimension.log)
        if name == "optim.warmup":
            text, label = chart.percentage, f"{name}, share of the run"
    places = [place(dimension, value) for value in values]
    content = {"lim": (0, 1), "ticks": places, "ticklabels": map(text, values), "label": label}
    figure.axes.set(**{f"{axis}{key}": value for key, value in content.items()})


class Map:
    """The trials over two settings, on what the surface predicts for the real run.

    Over one setting, or options alone: how far each is behind. Others have their best values.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer, self.best, dimensions = answer, answer.carried, answer.plan.space.dimensions
        names = sorted(dimensions, key=lambda name: name not in ("optim.lr", "optim.warmup"))[:2]
        plane = Space(name="map", dimensions={name: dimensions[name] for name in names})
        self.probes = [plane.at(point) for point in product(SIDE, repeat=len(names))]
        self.has_rows = all(isinstance(dimension, Choice) for dimension in dimensions.values())
        if self.has_rows:
            self.probes = [{name: one} for name, d in dimensions.items() for one in d.options]
        samples = [{**self.best, **probe} for probe in self.probes]
        self.excess, self.noise = answer.surface.excess(samples, 1.0), answer.surface.noise
        share = 1.0 if self.has_rows else 0.75  # steep edges take no part in the scale
        self.depth = max(4 * self.noise, float(np.quantile(self.excess, share))) or 1.0
        gap, self.axes = Range(low=-self.depth / 20, high=self.depth), plane.dimensions
        if self.has_rows:
            rows = dict.fromkeys(map(shown, reversed(self.probes)))
            self.axes = {GAP: gap, ROW: Choice(options=tuple(rows))}
        elif len(names) == 1:
            self.axes = {**plane.dimensions, GAP: gap}
        self.has_scale = GAP not in self.axes
        self.figure = Chart("map", height=480, left=210 if self.has_rows else LEFT, bottom=110)

    def svg(self) -> str:
        """The map as an <svg> element."""
        for axis, (name, dimension) in zip("xy", self.axes.items(), strict=True):
            set_axis(self.figure, axis, name, dimension)
        self._add_surface() if self.has_scale else self._add_line()
        self._add_trials()
        self._add_optima()
        self.figure.axes.legend(ncols=3, bbox_to_anchor=(0, -0.15))
        return self.figure.svg()

    def at(self, sample: Mapping[str, object], gap: float) -> Line:
        """Places of a sample that is so far behind; none if the map does not have it."""
        rows = [{ROW: shown({name: value})} for name, value in sample.items()]
        ones = [{**one, GAP: gap} for one in (rows if self.has_rows else [sample])]
        points = [tuple(place(d, one.get(n)) for n, d in self.axes.items()) for one in ones]
        return [point for point in points if not any(map(math.isnan, point))]

    def _add_surface(self) -> None:
        """Colour the map, and draw the edge of what is as good within the noise."""
        axes, excess = self.figure.axes, self.excess.reshape(len(SIDE), -1).T
        box = {"extent": (0, 1, 0, 1), "origin": "lower", "aspect": "auto", "interpolation": "none"}
        self.figure.mark(axes.imshow(chart.shades(1 - excess / self.depth), **box), "surface")
        axes.grid(visible=False)
        if excess.min() < self.noise < excess.max():
            edge = axes.contour(SIDE, SIDE, excess, [self.noise], colors=[WHITE])
            self.figure.mark(edge, "region", "inside, settings are as good within the noise")

    def _add_line(self) -> None:
        """Draw what the surface predicts for each value, and a band as wide as the noise."""
        span = self.figure.axes.axvspan if self.has_rows else self.figure.axes.axhspan
        ends = [place(self.axes[GAP], gap) for gap in (0.0, self.noise)]
        self.figure.mark(span(*ends, color=chart.WASH), "region", "within the noise")
        pairs = zip(self.probes, self.excess, strict=True)
        points = [point for probe, gap in pairs for point in self.at(probe, gap)]
        bar = {"marker": "|", "markersize": 18, "markeredgewidth": 3, **NO_LINE}
        self.figure.line(points, "surface", color=FOUND, **(bar if self.has_rows else {}))

    def _add_trials(self) -> None:
        """Draw the rungs without the preset: a later one, with smaller markers, on those before."""
        gaps = behind(self.answer)
        for number, rung in enumerate(self.answer.plan.rungs):
            look = {"marker": "osD^v"[number % 5], "markersize": 12 * 0.72**number}
            look |= {"markeredgecolor": WHITE, "color": SOFT, **NO_LINE}
            self.figure.axes.plot([], [], label=f"trial of {part(rung.horizon)}", **look)
            trials = [t for t in self.answer.trials if t.rung == number and t.sample]
            for trial in (trial for trial in trials if trial.status in ENDED):
                gap = gaps.get(trial.name, self.depth)
                if self.has_scale:
                    look["color"] = chart.shades(1 - gap / self.depth)
                style = CROSS if trial.status == DIVERGED else look
                points = self.at(trial.sample, gap)
                self.figure.line(points, "trial", [told(self.answer, trial)] * len(points), **style)

    def _add_optima(self) -> None:
        """Mark the preset, the best of the last rung, and that of the real run with intervals."""
        plan, surface = self.answer.plan, self.answer.surface
        for name, dimension in self.axes.items():
            if name in self.best and isinstance(dimension, Range):
                ends = [{**self.best, name: value} for value in surface.interval(name, 1.0)]
                line = [point for end in ends for point in self.at(end, 0.0)]
                self._on_top(line, "interval", f"{name}: 90 % interval", color=FOUND)
        ring = {"marker": "o", "color": FOUND, "markerfacecolor": "none", "markersize": 15}
        for name, sample, look in (
            ("the preset", plan.preset_sample(), {"marker": "s", "color": INK}),
            (f"best at {part(plan.rungs[-1].horizon)}", self.answer.found, {}),
            ("best of the real run", self.best, {"markerfacecolor": FOUND, "markersize": 9}),
        ):
            gap = float(surface.excess([{**self.best, **sample}], 1.0)[0])
            words, look = f"{name}: {shown(sample)}", {**ring, **look, **NO_LINE}
            self._on_top(self.at(sample, gap), "optimum", words, label=name, **look)

    def _on_top(self, points: Line, kind: str, title: str, **style: object) -> None:
        """Draw a line or markers with an edge that shows them on any colour."""
        edge = {"color": chart.PAPER, "linewidth": 5.0, "markeredgewidth": 5.4, "label": None}
        if points:
            self.figure.line(points, "edge", **{**style, **edge})
            self.figure.line(points, kind, title, linewidth=2.0, markeredgewidth=2.4, **style)


def curves_chart(answer: Answer, rung: int) -> tuple[str, str]:
    """A title and the losses of a rung or, after the last, the pairs; empty without journals."""
    plan, gaps, pairs = answer.plan, behind(answer), rung == len(answer.plan.rungs)
    title = f"{'Pairs' if pairs else f'Rung {rung + 1}'}, at {part(plan.horizon(rung))}"
    trials = [t for t in answer.trials if t.rung == rung and t.status in ENDED]
    lines = [(trial, line) for trial in trials if (line := curve(plan, trial))]
    values = [y for trial, line in lines if trial.status != DIVERGED for _, y in line]
    if not values:
        return title, ""
    low, high = np.quantile(values, (0.0, 0.98))  # a rate that is too high may start far above
    figure = Chart(f"curves-{rung + 1}", height=230, left=LEFT)
    figure.axes.set(xlim=(0, 1), ylim=(low - 0.05 * (high - low), high), ylabel="train/loss")
    figure.axes.xaxis.set_major_formatter(chart.percentage)
    # by rank, the best last; all pairs have the settings found
    styles = [{"color": SOFT, "linewidth": 1}, {"color": INK, "linestyle": chart.DASHES[1]}]
    styles.append({"color": FOUND, "linewidth": 2.6})
    ranks = {t.name: 1 if not t.sample else 2 * (pairs or gaps.get(t.name) == 0) for t in trials}
    for trial, line in sorted(lines, key=lambda pair: ranks[pair[0].name]):
        points = [(x, min(y, high)) for x, y in Curve.of(line).thinned().points]
        figure.line(points, "trial", told(answer, trial), **styles[ranks[trial.name]])
        if trial.status == DIVERGED:
            figure.line(points[-1:], "end", told(answer, trial), **CROSS)
    return title, figure.svg()


def curve(plan: Plan, trial: Trial) -> Line:
    """Points (share of the trial, training loss) from its journal; none without one."""
    steps = plan.tuned(trial.sample, plan.horizon(trial.rung)).steps(plan.samples)
    path = plan.trial_folder(trial.name).path
    records = [record for record, _ in read_records(path) if "train/loss" in record]
    return clean([(record["step"] / steps, record["train/loss"]) for record in records])


def optimum_chart(answer: Answer, name: str) -> str:
    """The best value over the length of the run, and the best trial of each rung."""
    plan, surface, dimension = answer.plan, answer.surface, answer.plan.space.dimensions[name]
    horizons = sorted({*(rung.horizon for rung in plan.rungs), 1.0})
    if len(horizons) == 1:
        return ""
    across = Range(low=horizons[0], high=1.0, log=True)
    figure = Chart(f"optimum-{name}", height=230, left=LEFT)
    set_axis(figure, "y", name, dimension)
    ticks = [place(across, horizon) for horizon in horizons]
    figure.axes.set(xlim=(0, 1), xticks=ticks, xticklabels=map(part, horizons))
    lengths = [across.at(share) for share in LENGTHS]
    ends = [[place(dimension, v) for v in surface.interval(name, one)] for one in lengths]
    band = figure.axes.fill_between(LENGTHS, *zip(*ends, strict=True), color=FOUND, alpha=0.2)
    figure.mark(band, "interval", "90 % interval")
    line = [(place(across, one), place(dimension, surface.best(one)[name])) for one in lengths]
    figure.line(line, "optimum", "the best, by the surface", color=FOUND)
    gaps = behind(answer)
    best = [trial for trial in answer.trials if gaps.get(trial.name) == 0]
    for trial in (trial for trial in best if trial.rung < len(plan.rungs)):
        value = (trial.sample or plan.preset_sample()).get(name)
        point = place(across, plan.horizon(trial.rung)), place(dimension, value)
        figure.dots([point], "best", [told(answer, trial)], color=INK, markersize=7)
    return figure.svg()


def pairs_chart(answer: Answer) -> str:
    """A line for each pair, from the preset to what was found, and the mean gain."""
    if not (gain := answer.gain):
        return ""
    rows, mean = [f"pair {n + 1}" for n, _ in enumerate(gain.pairs)] + ["mean"], len(gain.pairs)
    figure = Chart("pairs", height=24 * len(rows) + 60, left=LEFT)
    figure.axes.set(ylim=(mean + 0.5, -0.5), yticks=range(len(rows)), yticklabels=rows)
    figure.axes.set(xlabel=f"gain in {answer.objective}, better to the right")
    figure.axes.axvline(0, color=INK, linestyle=chart.DASHES[1])
    for row, (pair, difference) in enumerate(zip(gain.pairs, gain.differences, strict=True)):
        words = "the preset {:.4f}, the settings found {:.4f}".format(*pair)
        figure.line([(0, row), (difference, row)], "pair", words, color=SOFT)
        figure.dots([(difference, row)], "found", [words], color=SOFT, markersize=8)
    if mean > 1:  # of one pair there is no interval
        line = [(end, mean) for end in gain.interval]
        figure.line(line, "interval", str(gain), color=FOUND, linewidth=3)
    figure.dots([(gain.mean, mean)], "mean", [str(gain)], color=FOUND, markersize=10)
    return figure.svg()
