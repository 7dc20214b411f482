"""An answer in words: three sentences, a table, a preset file.

The sentences say what to use and what it reaches; how flat the optimum is; what this rests on and
what it cost.
"""

from collections.abc import Mapping

from pipeline.settings.config import TrainConfig
from support.console import duration, table
from tune.dimension import Range
from tune.job import shown
from tune.result import Group, SearchResult
from tune.transfer import share_of_run

# rows of the table
TABLE_ROWS = 8
# of all completed settings, this share as good as the best makes the optimum flat
FLAT = 1 / 3


def sentences(found: SearchResult) -> tuple[str, str, str]:
    """What to use, how flat the optimum is, and what this rests on."""
    return use(found), flatness(found), trust(found)


def use(found: SearchResult) -> str:
    """What to use, and what it reaches."""
    best, own, job = found.best, found.baseline, found.job
    where = f"at {job.horizon:g} of the run" if job.horizon < 1 else "over the whole run"
    score = f"{found.objective} {best.shown(found.objective)} {seeds(best)} {where}"
    if best is own:
        return (
            f"Keep the preset's own settings: {score}, and nothing else that was tried is better."
        )
    against = "the preset's own settings were not completed"
    if own:
        reached = f"{own.shown(found.objective)} {seeds(own)}"
        against = f"the preset's own settings reach {reached}"
        if own in found.near:
            against += ", which is no difference by the measure of the next sentence"
    return f"Use {wording(found)}: {score}; {against}."


def wording(found: SearchResult) -> str:
    """The settings for the real run in words."""
    job, settings = found.job, found.settings()
    run, before = job.run.replace(settings), job.run.flat()
    words = [
        f"{name} {cell(value)}"
        for name, value in settings.items()
        if not name.startswith("optim.warmup") and before[name] != value
    ]
    if "optim.warmup" in settings:
        words.append(warmup_words(run, job.samples))
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def warmup_words(run: TrainConfig, samples: int) -> str:
    """A warm-up in examples, steps and as a share of the run."""
    share = share_of_run(run, "warmup", samples)
    examples = share * run.epochs * samples
    steps = examples / run.global_batch
    return f"a warm-up of {examples:,.0f} examples ({steps:,.0f} steps, {share:.1%} of the run)"


def flatness(found: SearchResult) -> str:
    """How flat the optimum is, as far as the trials show it."""
    near, total = found.near, len(found.groups)
    same = f"{found.tolerance:.2g} ({found.tolerance_source})"
    if len(near) == 1:
        return (
            f"The optimum is sharp as far as {total} completed settings show: no other comes "
            f"within {same} of it."
        )
    spans = []
    for name, dimension in found.job.space.dimensions.items():
        values = [group.sample[name] for group in near if name in group.sample]
        if isinstance(dimension, Range) and values:
            spans.append(f"{name} from {min(values):.3g} to {max(values):.3g}")
        elif values:
            spans.append(f"{name} {' or '.join(sorted({str(value) for value in values}))}")
    kind = "flat" if len(near) >= FLAT * total else "neither flat nor sharp"
    shares = " (a share of a trial)" if "optim.warmup" in found.job.space.dimensions else ""
    return (
        f"The optimum is {kind}: {len(near)} of {total} completed settings are within {same} of "
        f"it, with {' and '.join(spans)}{shares}."
    )


def trust(found: SearchResult) -> str:
    """What the answer rests on, and what it cost."""
    edges = found.edges()
    edge = ""
    if edges:
        edge = f"; {' and '.join(edges)} of the best lies at the edge of what was tried"
    return f"It is carried {found.job.rule()}{edge}; the search cost {cost(found)}."


def cost(found: SearchResult) -> str:
    """What the search cost, in words."""
    share = found.images / found.run_images
    workers = found.job.config.workers
    return (
        f"{found.images:,} images, {share:.3g} times the real run, in {duration(found.seconds)} "
        f"of trials with {workers} worker{'s' if workers > 1 else ''} each"
    )


def rows(found: SearchResult) -> list[Group]:
    """The settings of the table: the best ones, and the preset's own."""
    groups = list(found.groups[:TABLE_ROWS])
    if found.baseline and found.baseline not in groups:
        groups.append(found.baseline)
    return groups


def heads(found: SearchResult) -> list[str]:
    """The columns of the table."""
    dimensions = found.job.space.dimensions
    return ["trial", *dimensions, *found.metrics, "seeds", "against own"]


def cells(found: SearchResult, group: Group) -> list[str]:
    """A row of the table."""
    own, gain = found.baseline, ""
    if own and group is not own:
        gain = f"{group.mean(found.objective) - own.mean(found.objective):+.4f}"
    return [
        "preset's own" if group is own else str(group.number),
        *(cell(group.sample.get(name, "")) for name in found.job.space.dimensions),
        *(group.shown(metric) for metric in found.metrics),
        str(len(group.runs)),
        gain,
    ]


def result_table(found: SearchResult) -> str:
    """The table for the console, with the trials by how they ended."""
    lines = table([heads(found), *(cells(found, group) for group in rows(found))])
    counted = ", ".join(f"{number} {status}" for status, number in found.counts().items())
    front = [group.number for group in found.front]
    if len(found.job.config.objective) > 1:
        counted += f"; no other beats {', '.join(map(str, front))} in all objectives"
    return f"{lines}\n\ntrials      {counted}"


def preset_file(found: SearchResult) -> Mapping[str, object]:
    """What `python -m pipeline train --preset-file` takes."""
    job = found.job
    return {
        "preset": job.preset,
        "settings": {**job.changes, **found.settings(), "name": f"{job.name}-best"},
        "found": {
            "search": job.name,
            "trial": found.best.number,
            "in the trial": shown(found.best.sample),
            "seeds": len(found.best.runs),
            found.objective: found.best.mean(found.objective),
            "carried": job.rule(),
            "text": " ".join(sentences(found)),
        },
    }


def seeds(group: Group) -> str:
    """Over how many seeds."""
    number = len(group.runs)
    return f"over {number} seeds" if number > 1 else "with one seed"


def cell(value: object) -> str:
    """A value for the table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
