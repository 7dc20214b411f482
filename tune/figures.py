"""The figures of a search: the map over two settings, the curves, the seeds, the importance."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.tracking.journal import RECORDS, read_lines
from tune import chart
from tune.chart import Axis, Frame
from tune.config import OBJECTIVES
from tune.dimension import Range
from tune.job import shown
from tune.result import Group, SearchResult
from tune.trial_log import DIVERGED, DONE, STOPPED, Entry

# cells along a side of the map, and how far a trial is seen, as a share of the side
CELLS, REACH = 36, 0.13
# the colours of the map end at least this many tolerances below the best
DEPTH = 3.0
BEST, OWN, BAD = "#d6246e", "#111827", "#b42318"


def axes_of(found: SearchResult) -> tuple[str, str] | None:
    """The two dimensions of the map: learning rate and warm-up if they were searched."""
    names = list(found.job.space.dimensions)
    first = [name for name in ("optim.lr", "optim.warmup") if name in names]
    names = first + [name for name in names if name not in first]
    return (names[0], names[1]) if len(names) > 1 else None


def depth_of(found: SearchResult) -> float:
    """How far below the best the colours of the map end.

    That three quarters of the settings are told apart, and nothing that is the same is.
    """
    best = found.best.mean(found.objective)
    below = sorted(abs(best - group.mean(found.objective)) for group in found.groups)
    return max(DEPTH * found.tolerance, below[len(below) * 3 // 4]) or 1.0


def color_share(found: SearchResult, value: float) -> float:
    """Where a value of the objective lies between the worst that is told apart and the best."""
    sign = 1 if OBJECTIVES[found.objective] else -1
    behind = sign * (found.best.mean(found.objective) - value)
    return 1 - min(max(behind / depth_of(found), 0.0), 1.0)


def map_figure(found: SearchResult) -> str:
    """The objective over two settings: a smooth surface near the trials, and the trials."""
    names = axes_of(found)
    dimensions = found.job.space.dimensions
    if not names:
        return single_figure(found)
    frame = Frame(
        x=Axis.of(names[0], dimensions[names[0]]), y=Axis.of(names[1], dimensions[names[1]])
    )

    def place(sample: Mapping[str, object]) -> tuple[float, float] | None:
        known = all(name in sample for name in names)
        inside = known and all(
            isinstance(dimensions[n], Range) or sample[n] in dimensions[n].options for n in names
        )
        return (
            (frame.x.place(sample[names[0]]), frame.y.place(sample[names[1]])) if inside else None
        )

    marks = surface(found, frame, place)
    means = {group.number: group for group in found.groups}
    for entry in sorted(found.entries, key=lambda e: e.number == found.best.number):
        at = place(entry.sample)
        if at and not entry.repeat:
            x, y = frame.px(at[0]), frame.py(at[1])
            marks += mark(found, entry, means.get(entry.number), x, y)
    return frame.drawn(marks, "map")


def surface(found: SearchResult, frame: Frame, place) -> list[str]:  # noqa: ANN001
    """Cells coloured by the mean of the trials near them, fainter where there are none."""
    known = [(place(group.sample), group.mean(found.objective)) for group in found.groups]
    points = [(at, value) for at, value in known if at]
    width = (frame.px(1) - frame.px(0)) / CELLS
    height = (frame.py(0) - frame.py(1)) / CELLS
    cells = []
    for column in range(CELLS):
        for row in range(CELLS):
            u, v = (column + 0.5) / CELLS, (row + 0.5) / CELLS
            weights = [
                math.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * REACH**2)) for (x, y), _ in points
            ]
            total = sum(weights)
            if total < 0.02:
                continue
            mean = sum(w * value for w, (_, value) in zip(weights, points, strict=True)) / total
            left, top = frame.px(column / CELLS), frame.py((row + 1) / CELLS)
            shade = chart.color(color_share(found, mean))
            opacity = round(min(1.0, 0.15 + total), 2)
            cells.append(
                chart.rect(
                    left,
                    top,
                    width + 0.6,
                    height + 0.6,
                    fill=shade,
                    fill_opacity=opacity,
                    shape_rendering="crispEdges",
                )
            )
    return cells


def mark(found: SearchResult, entry: Entry, group: Group | None, x: float, y: float) -> list[str]:
    """One trial on the map."""
    title = f"{entry.name}: {entry.status}; {shown(entry.sample)}"
    if entry.status == DIVERGED:
        return [chart.cross(x, y, 5, f"{title}; {entry.reason}", stroke=BAD, stroke_width=2.4)]
    if not group:
        values = ", ".join(f"{k} {v:.4f}" for k, v in entry.values.items() if k.startswith("val"))
        style = {"fill": "none", "stroke": "#fff", "stroke_width": 2}
        under = chart.dot(x, y, 5, "", fill="none", stroke=OWN, stroke_width=3.4)
        return [under, chart.dot(x, y, 5, f"{title} at step {entry.step}; {values}", **style)]
    text = f"{title}; {found.objective} {group.shown(found.objective)}"
    fill = chart.color(color_share(found, group.mean(found.objective)))
    marks = [chart.dot(x, y, 6.5, text, fill=fill, stroke="#fff", stroke_width=1.8)]
    best, own = entry.number == found.best.number, entry.number == 0
    if not best and not own:
        return marks
    words = " and ".join(["best"] * best + ["preset's own"] * own)
    ring = BEST if best else OWN
    marks.append(chart.dot(x, y, 10, text, fill="none", stroke=ring, stroke_width=3))
    kind = "mark best" if best else "mark"
    # the two labels keep out of each other's way, and inside the frame
    below = own and not best or y < 40
    marks.append(chart.label(min(x, 490), y + 24 if below else y - 15, words, cls=kind))
    return marks


def single_figure(found: SearchResult) -> str:
    """The objective over the only setting that was searched."""
    ((name, dimension),) = found.job.space.dimensions.items()
    values = [group.mean(found.objective) for group in found.groups]
    frame = Frame(x=Axis.of(name, dimension), y=value_axis(found.objective, values))
    marks = []
    for group in found.groups:
        if name in group.sample and dimension.contains(group.sample[name]):
            at = (
                frame.px(frame.x.place(group.sample[name])),
                frame.py(frame.y.place(group.mean(found.objective))),
            )
            fill = BEST if group is found.best else "#3b528b"
            marks.append(
                chart.dot(
                    *at, 6, f"{shown(group.sample)}: {group.shown(found.objective)}", fill=fill
                )
            )
    return frame.drawn(marks, "map")


def value_axis(name: str, values: Sequence[float]) -> Axis:
    """An axis for a metric with a little air around its values."""
    low, high = min(values), max(values)
    air = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return Axis.linear(name, low - air, high + air)


def read_curves(found: SearchResult, metric: str) -> dict[str, list[tuple[float, float]]]:
    """Each trial's metric by share of the trial."""
    curves = {}
    for entry in found.entries:
        config = found.job.trial_config(entry.settings, entry.name, entry.repeat)
        total = config.steps(found.job.samples)
        path = Path(config.runs_dir) / config.name / RECORDS
        curves[entry.name] = [
            (record["step"] / total, record[metric])
            for record, _ in read_lines(path)
            if metric in record
        ]
    return curves


def curves_figure(found: SearchResult, metric: str, name: str) -> str:
    """All trials over the share of their length, with the part in which none is stopped."""
    curves = read_curves(found, metric)
    values = [v for points in curves.values() for _, v in points if math.isfinite(v)]
    frame = Frame(
        x=Axis.linear("share of the trial", 0.0, 1.0, percent=True),
        y=value_axis(metric, values or [0.0, 1.0]),
    )
    marks = gate(found, frame)
    order = sorted(found.entries, key=lambda e: (e.number == found.best.number, e.number == 0))
    for entry in order:
        points = [(frame.px(s), frame.py(frame.y.place(v))) for s, v in curves[entry.name]]
        if points:
            marks += curve(found, entry, points)
    return frame.drawn(marks, name)


def gate(found: SearchResult, frame: Frame) -> list[str]:
    """The stretch before the first rung."""
    if found.job.config.stopper == "none":
        return []
    right, top = frame.px(found.job.first_rung), frame.py(1)
    width, height = right - frame.px(0), frame.py(0) - top
    return [
        chart.rect(frame.px(0), top, width, height, fill="#e8ecf4"),
        chart.line(right, top, right, frame.py(0), stroke="#7a869a", stroke_dasharray="4 3"),
        chart.label(right - 6, top + 16, "no trial is stopped here", anchor="end", cls="note"),
    ]


def curve(found: SearchResult, entry: Entry, points: list[tuple[float, float]]) -> list[str]:
    """One trial's curve and how it ended."""
    title = f"{entry.name}: {entry.status}; {shown(entry.sample)}"
    stroke, width, dash = "#8fa3c8", 1.4, "none"
    if entry.number == 0:
        stroke, width, dash = OWN, 2.2, "6 3"
    if entry.number == found.best.number:
        stroke, width = BEST, 2.8
    if entry.repeat:
        width = 0.9
    marks = [
        chart.polyline(points, title, stroke=stroke, stroke_width=width, stroke_dasharray=dash)
    ]
    x, y = points[-1]
    if entry.status == STOPPED:
        marks.append(chart.dot(x, y, 3.6, title, fill="#fff", stroke=stroke, stroke_width=1.8))
    elif entry.status == DIVERGED:
        marks.append(chart.cross(x, y, 4.5, title, stroke=BAD, stroke_width=2.2))
    elif entry.status == DONE:
        marks.append(chart.dot(x, y, 2.6, title, fill=stroke))
    return marks


def seeds_figure(found: SearchResult) -> str:
    """Every seed of the settings that were run with several."""
    groups = [group for group in found.groups if len(group.runs) > 1]
    if not groups:
        return ""
    values = [run[found.objective] for group in groups for run in group.runs]
    height = 34 * len(groups) + 60
    frame = Frame(
        x=value_axis(found.objective, values),
        y=Axis(
            label="",
            place=float,
            ticks=[
                (
                    1 - (i + 0.5) / len(groups),
                    "preset's own" if not g.number else f"trial {g.number}",
                )
                for i, g in enumerate(groups)
            ],
        ),
        height=height,
        left=92,
    )
    marks = []
    for i, group in enumerate(groups):
        y = frame.py(1 - (i + 0.5) / len(groups))
        fill = BEST if group is found.best else OWN if not group.number else "#3b528b"
        mean = frame.px(frame.x.place(group.mean(found.objective)))
        marks.append(chart.line(mean, y - 11, mean, y + 11, stroke=fill, stroke_width=3))
        for run in group.runs:
            x = frame.px(frame.x.place(run[found.objective]))
            text = f"{found.objective} {run[found.objective]:.4f}"
            marks.append(chart.dot(x, y, 5, text, fill=fill, fill_opacity=0.55))
    return frame.drawn(marks, "seeds")


def importance_figure(found: SearchResult) -> str:
    """A bar for each setting."""
    shares = sorted((found.importance or {}).items(), key=lambda pair: -pair[1])
    parts = []
    for row, (name, share) in enumerate(shares):
        y = 8 + 30 * row
        parts.append(chart.label(196, y + 15, name, anchor="end"))
        parts.append(chart.rect(204, y, 290 * share, 20, fill="#3b528b", rx=3))
        parts.append(chart.label(212 + 290 * share, y + 15, f"{share:.0%}", anchor="start"))
    height = 30 * len(shares) + 12
    return f'<svg id="importance" viewBox="0 0 560 {height}" role="img">{"".join(parts)}</svg>'


def legend(found: SearchResult) -> str:
    """What the colours of the map mean."""
    steps = 40
    bars = [
        chart.rect(i * 6, 0, 6, 12, fill=chart.color(i / (steps - 1)), shape_rendering="crispEdges")
        for i in range(steps)
    ]
    return f'<svg class="legend" viewBox="0 0 240 12">{"".join(bars)}</svg>'


def legend_ends(found: SearchResult) -> tuple[str, str]:
    """The values at the dark and at the light end of the map's colours."""
    best, depth = found.best.mean(found.objective), depth_of(found)
    sign = 1 if OBJECTIVES[found.objective] else -1
    return f"{best - sign * depth:.3f} or worse", f"{best:.3f}"
