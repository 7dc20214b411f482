"""The result of a search in words: three sentences, a table, a preset file.

The sentences state which settings to use and what they reach, how flat the optimum is, and how the
settings are carried to the real run and what the search cost.
"""

from collections.abc import Mapping

from support.console import duration, table
from tune.dimension import Range
from tune.job import shown
from tune.result import Group, SearchResult
from tune.transfer import share_of_run

# settings in the table, the best first
TABLE_ROWS = 8
# the optimum is flat if at least this share of the completed settings is as good as the best
FLAT = 1 / 3


def sentences(result: SearchResult) -> tuple[str, str, str]:
    """The recommendation, how flat the optimum is, and what the recommendation rests on."""
    return recommendation(result), flatness(result), basis(result)


def recommendation(result: SearchResult) -> str:
    """Which settings to use, and what they reach."""
    best, baseline, job = result.best, result.baseline, result.job
    length = f"at {job.horizon:g} of the run" if job.horizon < 1 else "over the whole run"
    score = f"{result.objective} {best.shown(result.objective)} {seeds(best)} {length}"
    if best is baseline:
        return f"Keep the preset's settings: {score}, and nothing else that was tried is better."
    comparison = "the preset's settings were not completed"
    if baseline:
        reached = f"{baseline.shown(result.objective)} {seeds(baseline)}"
        comparison = f"the preset's settings reach {reached}"
        if baseline in result.near:
            comparison += ", a difference within the tolerance of the next sentence"
    return f"Use {settings_text(result)}: {score}; {comparison}."


def settings_text(result: SearchResult) -> str:
    """The settings of the real run that differ from the preset's, in words."""
    job, settings = result.job, result.settings()
    run, before = job.run.replace(settings), job.run.flat()
    words = [
        f"{name} {cell(value)}"
        for name, value in settings.items()
        if not name.startswith("optim.warmup") and before[name] != value
    ]
    if "optim.warmup" in settings:
        share = share_of_run(run, "warmup", job.samples)
        examples = share * run.epochs * job.samples
        length = f"{examples / run.global_batch:,.0f} steps, {share:.1%} of the run"
        words.append(f"a warm-up of {examples:,.0f} examples ({length})")
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def flatness(result: SearchResult) -> str:
    """How flat the optimum is, as far as the trials show it."""
    near, total = result.near, len(result.groups)
    tolerance = f"{result.tolerance:.2g} ({result.tolerance_source})"
    if len(near) == 1:
        return (
            f"The optimum is sharp as far as {total} completed settings show: no other comes "
            f"within {tolerance} of it."
        )
    dimensions = result.job.space.dimensions
    spans = []
    for name, dimension in dimensions.items():
        values = [group.sample[name] for group in near if name in group.sample]
        if isinstance(dimension, Range) and values:
            spans.append(f"{name} from {min(values):.3g} to {max(values):.3g}")
        elif values:
            spans.append(f"{name} {' or '.join(sorted({str(value) for value in values}))}")
    kind = "flat" if len(near) >= FLAT * total else "neither flat nor sharp"
    unit = " (a share of a trial)" if "optim.warmup" in dimensions else ""
    return (
        f"The optimum is {kind}: {len(near)} of {total} completed settings are within {tolerance} "
        f"of it, with {' and '.join(spans)}{unit}."
    )


def basis(result: SearchResult) -> str:
    """How the settings are carried to the real run, and what the search cost."""
    edges = " and ".join(result.edges())
    warning = f"; {edges} of the best lies at the edge of its range" if edges else ""
    return f"The settings are carried {result.job.rule()}{warning}; the search cost {cost(result)}."


def cost(result: SearchResult) -> str:
    """What the search cost, in words."""
    share, workers = result.images / result.run_images, result.job.config.workers
    return (
        f"{result.images:,} images, {share:.3g} times the real run, in {duration(result.seconds)} "
        f"of trials with {workers} worker{'s' if workers > 1 else ''} each"
    )


def table_rows(result: SearchResult) -> list[list[str]]:
    """The column heads, then a row for each of the best settings and one for the baseline."""
    groups = list(result.groups[:TABLE_ROWS])
    if result.baseline and result.baseline not in groups:
        groups.append(result.baseline)
    heads = ["trial", *result.job.space.dimensions, *result.metrics, "seeds", "against baseline"]
    return [heads, *(table_row(result, group) for group in groups)]


def table_row(result: SearchResult, group: Group) -> list[str]:
    """The row of one group of runs."""
    baseline, gain = result.baseline, ""
    if baseline and group is not baseline:
        gain = f"{group.mean(result.objective) - baseline.mean(result.objective):+.4f}"
    return [
        "baseline" if group is baseline else str(group.number),
        *(cell(group.sample.get(name, "")) for name in result.job.space.dimensions),
        *(group.shown(metric) for metric in result.metrics),
        str(len(group.runs)),
        gain,
    ]


def result_table(result: SearchResult) -> str:
    """The table for the console, with the number of trials by how they ended."""
    counts = ", ".join(f"{number} {status}" for status, number in result.counts().items())
    if len(result.job.config.objective) > 1:
        front = ", ".join(str(group.number) for group in result.front)
        counts += f"; no other beats {front} in all objectives"
    return f"{table(table_rows(result))}\n\ntrials      {counts}"


def preset_file(result: SearchResult) -> Mapping[str, object]:
    """The content of the file for `python -m pipeline train --preset-file`."""
    job = result.job
    return {
        "preset": job.preset,
        "settings": {**job.changes, **result.settings(), "name": f"{job.name}-best"},
        "found": {
            "search": job.name,
            "trial": result.best.number,
            "in the trial": shown(result.best.sample),
            "seeds": len(result.best.runs),
            result.objective: result.best.mean(result.objective),
            "carried": job.rule(),
            "text": " ".join(sentences(result)),
        },
    }


def seeds(group: Group) -> str:
    """The number of seeds in words."""
    number = len(group.runs)
    return f"over {number} seeds" if number > 1 else "with one seed"


def cell(value: object) -> str:
    """A value for the table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
