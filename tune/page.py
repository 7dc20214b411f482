"""The page of a search: one HTML file that needs nothing else, with the answer at the top."""

import html
from pathlib import Path

from support.console import duration
from tune import figures, summary
from tune.job import SearchJob
from tune.result import SearchResult

STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#f3f5f9;color:#1f2430;font:15px/1.5 system-ui,-apple-system,"Segoe UI",
"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:25px;margin:0 0 2px}h2{font-size:17px;margin:0 0 4px}
.sub{color:#5b6475;margin:0 0 18px}
.card{background:#fff;border:1px solid #e1e5ee;border-radius:10px;padding:18px 20px;margin:0 0 18px}
.answer{border-left:6px solid #d6246e}.answer p{margin:0 0 8px;font-size:16.5px}
.answer p:first-of-type{font-size:19px;font-weight:600}
.two{display:grid;grid-template-columns:1fr 1fr;gap:18px}.two .card{margin:0}
.two{margin:0 0 18px}@media(max-width:900px){.two{grid-template-columns:1fr}}
.why{color:#5b6475;margin:0 0 8px;font-size:13.5px}
svg{width:100%;height:auto;display:block}svg.legend{width:150px;display:inline-block;height:11px}
.tick{font-size:11.5px;fill:#3d4657}.axis{font-size:12.5px;fill:#1f2430;font-weight:600}
.note{font-size:11.5px;fill:#5b6475;font-style:italic}
.mark{font-size:12px;font-weight:700;fill:#111827;paint-order:stroke;stroke:#fff;stroke-width:3px}
.mark.best{fill:#d6246e}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid #e9ecf3;white-space:nowrap}
th{color:#5b6475;font-weight:600;font-size:13px}th:first-child,td:first-child{text-align:left}
tr.best td{background:#fdf0f6;font-weight:600}
pre{background:#1f2430;color:#eef1f7;padding:12px 14px;border-radius:8px;overflow:auto;
margin:10px 0 0;font-size:13.5px}
.tiles{display:flex;flex-wrap:wrap;gap:12px}.tile{flex:1 1 140px;background:#f6f8fc;
border-radius:8px;padding:10px 14px}.tile b{display:block;font-size:20px}
.tile span{color:#5b6475;font-size:13px}
.key{font-size:13px;color:#3d4657;margin:8px 0 0}
"""


def write_page(job: SearchJob, found: SearchResult, path: Path) -> None:
    """Write the page, whole or not at all."""
    aside = path.with_suffix(".tmp")
    aside.write_text(page(job, found), encoding="utf-8")
    aside.replace(path)


def page(job: SearchJob, found: SearchResult) -> str:
    """The page."""
    title = f"Search {job.name}"
    sub = (
        f"{job.config.trials} trials of preset {job.preset} over "
        f"{', '.join(job.space.dimensions)}; each {job.horizon:g} of the run; best in "
        f"{found.objective}"
    )
    body = "\n".join(
        (
            answer_card(job, found),
            f'<div class="two">{map_card(found)}{curves_card(found)}</div>',
            table_card(found),
            f'<div class="two">{seeds_card(found)}{importance_card(found)}</div>',
            cost_card(found),
            rule_card(job, found),
        )
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f'<body><main><h1>{text(title)}</h1><p class="sub">{text(sub)}</p>{body}</main></body>'
        f"</html>"
    )


def text(words: object) -> str:
    """Words as HTML."""
    return html.escape(str(words))


def card(title: str, why: str, inside: str, *, kind: str = "") -> str:
    """A box with a heading and a line on how to read it."""
    return (
        f'<section class="card {kind}"><h2>{text(title)}</h2><p class="why">{text(why)}</p>'
        f"{inside}</section>"
    )


def answer_card(job: SearchJob, found: SearchResult) -> str:
    """The three sentences, and the command to go on with."""
    sentences = "".join(f"<p>{text(sentence)}</p>" for sentence in summary.sentences(found))
    command = f"python -m pipeline train --preset-file {job.dir / 'best.json'}"
    return (
        f'<section class="card answer" id="answer">{sentences}<pre>{text(command)}</pre></section>'
    )


def map_card(found: SearchResult) -> str:
    """The map with its key."""
    low, high = figures.legend_ends(found)
    key = (
        f'<p class="key">{text(low)} {figures.legend(found)} {text(high)} &emsp; '
        f"&#9675; stopped, for being behind &emsp; &#10005; diverged</p>"
    )
    why = (
        "Light is good. The surface is a mean of the trials nearby, and fades where there are none."
    )
    return card(f"{found.objective} over the settings", why, figures.map_figure(found) + key)


def curves_card(found: SearchResult) -> str:
    """All trials over their length."""
    why = "The best is bold, the preset's own dashed; a hollow end was stopped, a cross diverged."
    metric = found.objective if found.objective.startswith("val/") else "val/top1"
    return card("Every trial", why, figures.curves_figure(found, metric, "curves"))


def table_card(found: SearchResult) -> str:
    """The best settings."""
    head = "".join(f"<th>{text(name)}</th>" for name in summary.heads(found))
    lines = []
    for group in summary.rows(found):
        kind = ' class="best"' if group is found.best else ""
        values = "".join(f"<td>{text(value)}</td>" for value in summary.cells(found, group))
        lines.append(f"<tr{kind}>{values}</tr>")
    why = (
        "Settings as the trials had them: a warm-up as a fraction is of a trial. The file for the "
        "command above has them carried to the real run."
    )
    return card("The best settings", why, f"<table><tr>{head}</tr>{''.join(lines)}</table>")


def seeds_card(found: SearchResult) -> str:
    """How far seeds lie apart."""
    figure = figures.seeds_figure(found)
    if not figure:
        figure = "<p>Every setting was run with one seed; --seeds 3 would tell luck from merit.</p>"
    why = (
        f"A dot for each seed, a bar at their mean. Differences below {found.tolerance:.2g} are "
        f"none ({found.tolerance_source})."
    )
    return card("Is it luck?", why, figure)


def importance_card(found: SearchResult) -> str:
    """What the settings explain."""
    inside = figures.importance_figure(found)
    if not found.importance:
        inside = "<p>Too few completed trials, or all are equal.</p>"
    why = "Share of the differences between trials that each setting explains (fANOVA)."
    return card("What matters", why, inside)


def cost_card(found: SearchResult) -> str:
    """What the search took."""
    tiles = [(str(number), f"trials {status}") for status, number in found.counts().items()]
    repeats = sum(bool(entry.repeat) for entry in found.entries)
    if repeats:
        tiles.append((str(repeats), "runs with further seeds"))
    tiles += [
        (f"{found.images:,}", "images trained on"),
        (f"{found.images / found.run_images:.2g}x", "the real run"),
        (duration(found.seconds), "of trials, end to end"),
        (f"{found.saved_images:,}", "images saved by stopping"),
    ]
    inside = "".join(
        f'<div class="tile"><b>{text(a)}</b><span>{text(b)}</span></div>' for a, b in tiles
    )
    return card("What it cost", "All trials together.", f'<div class="tiles">{inside}</div>')


def rule_card(job: SearchJob, found: SearchResult) -> str:
    """How the settings are carried to the real run, and how trials are stopped."""
    words = (
        f"<p>Settings are carried {text(job.rule())}.</p>"
        f"<p>Trials are compared fairly: each runs a complete schedule over its own length. "
        f"Stopping: {text(job.stopping())}. A trial whose rate is still high is behind because "
        f"of that, so trials are compared where their rates have fallen by the same factor.</p>"
    )
    return card("How it was done", "", words)
