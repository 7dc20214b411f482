"""The page of a comparison: one self-contained HTML file, without scripts.

Comparison -> curves over steps, images or hours, tables -> templates/compare.html -> a file

A chart has one line for each run. Hours are those in which the run ran, without the pauses between
its starts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.evaluation.metrics import METRICS
from pipeline.report.comparison import (
    CIRCUMSTANCES,
    MAY_CHANGE,
    PASSED_OVER,
    TESTED,
    Comparison,
    batch,
)
from pipeline.report.contender import Contender
from pipeline.report.run_data import Session
from pipeline.report.run_page import band, clock
from pipeline.tracking.journal import numbers
from support.chart import line_chart
from support.files import write_bytes
from support.page import render

Axis = Callable[[Mapping], float]
"""Where a record lies on the horizontal axis."""
AXES = ("steps", "images", "hours")
LOSS = {"train/loss": "Loss in training"}
OTHERS = {
    "lr": "Learning rate",
    "images_per_s": "Throughput, images/s",
    "wait": "Wait for data, share of step time, of the slowest worker",
    "grad_norm": "Gradient norm",
}
SHARES = ("wait",)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page, whole or not at all."""
    fixed, others = comparison.settings
    page = render(
        "pipeline.report/compare.html",
        title=", ".join(each.name for each in comparison.contenders[1:]),
        first=comparison.first.name,
        tests=comparison.tests,
        test_table=comparison.test_table,
        tested=TESTED,
        advice=comparison.advice,
        passed_over={PASSED_OVER: comparison.passed_over} if comparison.passed_over else {},
        figures=comparison.figures,
        panels={f"over {axis}": curves(comparison.runs, axis) for axis in AXES},
        settings={
            "Settings that differ": fixed,
            capital(MAY_CHANGE): others,
            capital(CIRCUMSTANCES): comparison.circumstances,
        },
        locations={each.name: each.location for each in comparison.contenders},
        started={e.name: clock(e.run.sessions[0].start) for e in comparison.runs if e.run.sessions},
    )
    write_bytes(path, page.encode())


def curves(runs: Sequence[Contender], axis: str) -> dict[str, str]:
    """Charts by title, each with one line for each run."""
    lines = {each.name: run_lines(each, axis) for each in runs}
    names = dict.fromkeys(name for each in lines.values() for name in each)
    charts = {}
    for number, (name, title) in enumerate(titles(names)):
        shown = {run: each[name] for run, each in lines.items() if name in each}
        charts[title] = line_chart(
            shown,
            name=f"{axis}-{number}",
            label=axis,
            logarithmic=None,
            percent=is_share(name),
            bands={run: band(lines[run], name) for run in shown if f"{name}_max" in lines[run]},
        )
    return charts


def titles(names: Mapping[str, None]) -> Iterator[tuple[str, str]]:
    """The curves that are drawn, and their titles."""
    evaluated = {
        f"{split}/{name}": capital(f"{metric.title} on {where}, one crop")
        for split, where in (("val", "the eval split"), ("select", "the split that selects"))
        for name, metric in METRICS.items()
    }
    probes = {n: n for n in names if n.startswith("probe/") and "seed" not in n}
    for name, title in (LOSS | evaluated | probes | OTHERS).items():
        if name in names:
            yield name, title


def capital(text: str) -> str:
    """A title, which begins with a capital letter."""
    return text[:1].upper() + text[1:]


def is_share(name: str) -> bool:
    """Whether a curve is of shares."""
    metric = METRICS.get(name.rpartition("/")[2])
    return name in SHARES or name.startswith("probe/") or bool(metric and metric.is_share)


def run_lines(run: Contender, axis: str) -> dict[str, list[tuple[float, float]]]:
    """The curves of a run by name, over an axis."""
    places: dict[str, Axis] = {
        "steps": lambda record: record["step"],
        "images": lambda record: record["step"] * batch(run.run),
        "hours": lambda record: hours_at(run.run.sessions, record["time"]),
    }
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in run.run.records:
        place = places[axis](record)
        for name, value in numbers(record).items():
            lines.setdefault(name, []).append((place, value))
    return lines


def hours_at(sessions: Sequence[Session], time: float) -> float:
    """Hours that a run had run by a point in time, without those between its starts."""
    return sum(max(0.0, min(each.end, time) - each.start) for each in sessions) / 3600
