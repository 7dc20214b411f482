"""A page of HTML that stands alone: style, tables, tiles; no script, no file beside it.

Everything that is shown goes through `text`, which escapes it and removes secrets.
"""

import html
from collections.abc import Mapping, Sequence

from support.redact import redact

STYLE = """
:root { color-scheme: light dark; --ink: #16202e; --soft: #5b6b80; --line: #dfe5ec;
  --paper: #ffffff; --wash: #f4f6f9; --good: #087f5b; --bad: #c92a2a; --mark: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #93a1b5; --line: #2c3645;
  --paper: #131a24; --wash: #1b2431; --good: #38d9a9; --bad: #ff8787; --mark: #74a7ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 44px 0 12px; padding-bottom: 6px;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 14px; margin: 0 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 6px 0; } .soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px;
  margin: 24px 0 0; }
.tile { background: var(--wash); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 21px; line-height: 1.25; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 24px; }
figure { margin: 0; min-width: 0; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; } svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; } svg .grid { stroke: var(--line); fill: none; }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .diagonal { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
svg .bar { fill: var(--mark); opacity: .75; }
.legend { display: flex; gap: 16px; flex-wrap: wrap; font-size: 13px; color: var(--soft);
  margin: 2px 0 0 56px; }
.legend i { display: inline-block; width: 12px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.w { overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } .strong { font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr));
  gap: 14px; margin-bottom: 20px; }
.card { display: flex; gap: 14px; background: var(--wash); border-radius: 10px; padding: 12px; }
.card > img { height: 96px; max-width: 140px; object-fit: contain; border-radius: 6px; }
.card div { min-width: 0; font-size: 13px; flex: 1; } .card .crops { height: 34px; max-width: 100%;
  object-fit: cover; object-position: left; border-radius: 4px; display: block; margin: 3px 0 5px; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--mark); }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media print { details:not([open]) > *:not(summary) { display: block; } }
"""


def text(value: object) -> str:
    """A value as text of a page, without secrets."""
    return html.escape(redact(str(value)))


def document(title: str, body: Sequence[str]) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading with what is under it; nothing if that is empty."""
    inside = "".join(parts)
    return f"<h2>{text(title)}</h2>{inside}" if inside else ""


def tiles(values: Mapping[str, str]) -> str:
    """The few numbers that matter."""
    inside = (
        f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="tiles">{"".join(inside)}</div>'


def figures(charts: Mapping[str, str]) -> str:
    """Charts by their title, two in a row; empty ones are left out."""
    inside = "".join(
        f"<figure><h3>{text(title)}</h3>{svg}</figure>" for title, svg in charts.items() if svg
    )
    return f'<div class="grid2">{inside}</div>' if inside else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table of ready cells; the columns `words` hold text, the others numbers."""
    if not rows:
        return ""
    kinds = ["w" if number in words else "n" for number in range(len(head))]
    top = "".join(f'<th class="{k}">{text(c)}</th>' for k, c in zip(kinds, head, strict=True))
    lines = (
        "<tr>"
        + "".join(f'<td class="{k}">{c}</td>' for k, c in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def folded(summary: str, inside: str) -> str:
    """Something long behind a line."""
    return f"<details><summary>{text(summary)}</summary>{inside}</details>" if inside else ""


def picture(data: str, label: str, kind: str = "") -> str:
    """A JPEG, given in base64, within the page."""
    return f'<img class="{kind}" alt="{text(label)}" src="data:image/jpeg;base64,{data}">'
