"""The result of a search in files: the preset file, and a page that needs no other file.

SearchResult -> sentences, table, figures -> templates/search.html -> report.html
"""

from pathlib import Path

from support.console import duration
from support.files import write_bytes, write_json
from support.page import Table, render
from tune import figures, summary
from tune.job import SearchJob
from tune.result import SearchResult, read_result

BEST, PAGE = "best.json", "report.html"


def write_result(job: SearchJob) -> SearchResult:
    """Compute the result from the trial log, and write the preset file and the page."""
    result = read_result(job)
    write_json(job.dir / BEST, summary.preset_file(result))
    write_page(job, result, job.dir / PAGE)
    return result


def write_page(job: SearchJob, result: SearchResult, path: Path) -> None:
    """Write the page, whole or not at all."""
    metric = result.objective if result.objective.startswith("val/") else "val/top1"
    head, *rows = summary.table_rows(result)
    page = render(
        "tune/search.html",
        job=job,
        result=result,
        sentences=summary.sentences(result),
        command=f"python -m pipeline train --preset-file {job.dir / BEST}",
        map=figures.map_figure(result),
        color_ends=[f"{value:.3f}" for value in figures.color_ends(result)],
        metric=metric,
        curves=figures.curves_figure(result, metric),
        table=Table(head=head, rows=rows, marked=(0,)),
        seeds=figures.seeds_figure(result),
        importance=figures.importance_figure(result),
        costs=costs(result),
    )
    write_bytes(path, page.encode())


def costs(result: SearchResult) -> dict[str, str]:
    """The cost of the search, by label."""
    repeats = sum(bool(entry.repeat) for entry in result.entries)
    return {
        **{f"trials {status}": f"{number:,}" for status, number in result.counts().items()},
        **({"runs with further seeds": f"{repeats:,}"} if repeats else {}),
        "images trained on": f"{result.images:,}",
        "the real run": f"{result.images / result.run_images:.2g}x",
        "of trials, end to end": duration(result.seconds),
        "images saved by stopping": f"{result.saved_images:,}",
    }
