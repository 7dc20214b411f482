"""Small line charts as SVG text, for a page that stands alone.

[(x, y), ...] by name -> scales with round ticks -> one <svg>
"""

import html
import math
from collections.abc import Mapping, Sequence

# pixels
WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 34
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")
MAX_POINTS = 600

Line = Sequence[tuple[float, float]]


def chart(
    lines: Mapping[str, Line], *, label: str = "", logarithmic: bool = False, percent: bool = False
) -> str:
    """One chart; lines without points are left out, and without any line it is an empty text.

    Args:
        lines: Points of each line, by its name.
        label: What the horizontal axis counts.
        logarithmic: Of the vertical axis; values that are not positive are left out.
        percent: Show shares as percentages.
    """
    kept = {name: thinned(clean(line, logarithmic)) for name, line in lines.items()}
    kept = {name: line for name, line in kept.items() if line}
    if not kept:
        return ""
    xs = [x for line in kept.values() for x, _ in line]
    ys = [y for line in kept.values() for _, y in line]
    across = ticks(min(xs), max(xs), 5)
    up = decades(min(ys), max(ys)) if logarithmic else ticks(min(ys), max(ys), 4)
    low, high = min(min(ys), up[0]), max(max(ys), up[-1])
    place = math.log10 if logarithmic else float

    def x_at(x: float) -> float:
        span = (max(xs) - min(xs)) or 1.0
        return LEFT + (x - min(xs)) / span * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        span = (place(high) - place(low)) or 1.0
        return HEIGHT - BOTTOM - (place(y) - place(low)) / span * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for y in up:
        parts.append(f'<path class="grid" d="M{LEFT} {y_at(y):.1f}H{WIDTH - RIGHT}"/>')
        text = f"{y:.4g}" if not percent else f"{100 * y:.4g}%"
        parts.append(f'<text x="{LEFT - 6}" y="{y_at(y) + 4:.1f}" class="end">{text}</text>')
    for x in across:
        if min(xs) <= x <= max(xs):
            parts.append(
                f'<text x="{x_at(x):.1f}" y="{HEIGHT - BOTTOM + 16}" class="mid">{short(x)}</text>'
            )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" class="end">{html.escape(label)}</text>'
    )
    for colour, (name, line) in zip(cycle(COLOURS, len(kept)), kept.items(), strict=True):
        points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{points}" stroke="{colour}"/>')
        if len(line) <= 40:
            parts += [
                f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="2.2" fill="{colour}">'
                f"<title>{html.escape(name)}: {y:.6g} at {short(x)}</title></circle>"
                for x, y in line
            ]
    return "".join(parts) + "</svg>" + legend(list(kept))


def legend(names: Sequence[str]) -> str:
    """The names of the lines, if there are several."""
    if len(names) < 2:
        return ""
    pairs = zip(cycle(COLOURS, len(names)), names, strict=True)
    marks = (f'<span><i style="background:{c}"></i>{html.escape(n)}</span>' for c, n in pairs)
    return f'<p class="legend">{"".join(marks)}</p>'


def cycle(items: Sequence[str], count: int) -> list[str]:
    """`count` items, from the start again where there are fewer."""
    return [items[number % len(items)] for number in range(count)]


def clean(line: Line, logarithmic: bool) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [
        (x, y)
        for x, y in line
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not logarithmic)
    ]


def thinned(line: Line) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: means of groups of neighbours, and the last point as it is."""
    size = -(-len(line) // MAX_POINTS)
    if size <= 1:
        return list(line)
    groups = [line[first : first + size] for first in range(0, len(line), size)]
    means = [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]
    return [*means[:-1], line[-1]]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that cover [low, high], about `count` of them."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten that cover [low, high]."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """A number of steps: 250, 12.5k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
