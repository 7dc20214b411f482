"""The page of a search: one HTML file that needs nothing else, with the answer at the top.

SearchResult -> sentences, table, figures -> templates/search.html -> report.html
"""

from pathlib import Path

from support.console import duration
from support.files import write_bytes
from support.page import Table, render
from tune import figures, summary
from tune.job import SearchJob
from tune.result import SearchResult


def write_page(job: SearchJob, result: SearchResult, path: Path) -> None:
    """Write the page, whole or not at all."""
    metric = result.objective if result.objective.startswith("val/") else "val/top1"
    groups = summary.rows(result)
    page = render(
        "tune/search.html",
        job=job,
        result=result,
        sentences=summary.sentences(result),
        command=f"python -m pipeline train --preset-file {job.dir / 'best.json'}",
        map=figures.map_figure(result),
        color_ends=[f"{value:.3f}" for value in figures.color_ends(result)],
        metric=metric,
        curves=figures.curves_figure(result, metric),
        table=Table(
            head=summary.heads(result),
            rows=[summary.cells(result, group) for group in groups],
            marked=[row for row, group in enumerate(groups) if group is result.best],
        ),
        seeds=figures.seeds_figure(result),
        importance=figures.importance_figure(result),
        costs=costs(result),
    )
    write_bytes(path, page.encode())


def costs(result: SearchResult) -> dict[str, str]:
    """What the search took, by names."""
    repeats = sum(bool(entry.repeat) for entry in result.entries)
    return {
        **{f"trials {status}": f"{number:,}" for status, number in result.counts().items()},
        **({"runs with further seeds": f"{repeats:,}"} if repeats else {}),
        "images trained on": f"{result.images:,}",
        "the real run": f"{result.images / result.run_images:.2g}x",
        "of trials, end to end": duration(result.seconds),
        "images saved by stopping": f"{result.saved_images:,}",
    }
