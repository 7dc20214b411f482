"""Charts as SVG: a frame with two axes, and what is drawn into it.

    Axis: value -> share of the axis (0 to 1); Frame: shares -> pixels

The text that appears under the pointer is each mark's <title>; nothing needs a script.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tune.dimension import Choice, Dimension, Range

# dark to light through blue, green and yellow, evenly in lightness (stops of viridis)
STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
INK, FAINT = "#1f2430", "#c9ced8"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: where a value lies on it, and its ticks."""

    label: str
    place: Callable[[object], float]
    ticks: Sequence[tuple[float, str]]
    """Share of the axis and text of each tick."""

    @classmethod
    def linear(cls, label: str, low: float, high: float, *, percent: bool = False) -> "Axis":
        """Numbers from low to high."""
        span = (high - low) or 1.0
        step = 10 ** math.floor(math.log10(span))
        step = next(step * f for f in (0.1, 0.2, 0.5, 1, 2) if span / (step * f) <= 6)
        first = math.ceil(low / step - 1e-9)
        values = [i * step for i in range(first, first + 12) if i * step <= high + span * 1e-9]
        return cls(
            label=label,
            place=lambda value: (value - low) / span,
            ticks=[((v - low) / span, f"{v:.0%}" if percent else f"{v:.4g}") for v in values],
        )

    @classmethod
    def of(cls, name: str, dimension: Dimension) -> "Axis":
        """A dimension of a space."""
        if isinstance(dimension, Choice):
            count = len(dimension.options)
            centers = [((i + 0.5) / count, str(o)) for i, o in enumerate(dimension.options)]
            return cls(
                label=name,
                place=lambda value: (dimension.options.index(value) + 0.5) / count,
                ticks=centers,
            )
        values = log_ticks(dimension) if dimension.log else []
        if len(values) < 2:
            linear = cls.linear(name, dimension.low, dimension.high)
            values = [float(text) for _, text in linear.ticks]
        ticks = [(dimension.share(v), f"{v:g}") for v in values]
        return cls(label=name, place=dimension.share, ticks=ticks)


def log_ticks(dimension: Range) -> list[float]:
    """Values 1, 2 and 5 of each decade in a range, or only 1 where that is too many."""
    low, high = (math.floor(math.log10(end)) for end in (dimension.low, dimension.high))
    for factors in ((1, 2, 5), (1,)):
        values = [f * 10.0**d for d in range(low, high + 1) for f in factors]
        found = [v for v in values if dimension.low * 0.999 <= v <= dimension.high * 1.001]
        if len(found) <= 7:
            return [float(f"{v:.3g}") for v in found]
    return found


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A rectangle with two axes."""

    x: Axis
    y: Axis
    width: int = 560
    height: int = 400
    left: int = 62
    bottom: int = 46
    top: int = 14
    right: int = 24

    def px(self, share: float) -> float:
        """Pixels from the left of a share of the x axis; a little outside at most."""
        inner = self.width - self.left - self.right
        return round(self.left + min(max(share, -0.02), 1.02) * inner, 1)

    def py(self, share: float) -> float:
        """Pixels from the top of a share of the y axis; a little outside at most."""
        inner = self.height - self.top - self.bottom
        return round(self.height - self.bottom - min(max(share, -0.02), 1.02) * inner, 1)

    def drawn(self, inside: Sequence[str], name: str) -> str:
        """The chart: what is inside, under its axes."""
        low, high = self.py(0), self.py(1)
        parts = [f'<rect x="{self.px(0)}" y="{high}" width="{self.px(1) - self.px(0):.1f}" ']
        parts[0] += f'height="{low - high:.1f}" fill="#fbfcfe" stroke="{FAINT}"/>'
        parts += inside
        for share, text in self.x.ticks:
            at = self.px(share)
            parts.append(line(at, low, at, low + 5, stroke=INK))
            parts.append(label(at, low + 18, text))
        for share, text in self.y.ticks:
            at = self.py(share)
            parts.append(line(self.px(0) - 5, at, self.px(0), at, stroke=INK))
            parts.append(label(self.px(0) - 8, at + 4, text, anchor="end"))
        middle = (low + high) / 2
        parts.append(label(self.px(0.5), self.height - 6, self.x.label, cls="axis"))
        turned = f'transform="rotate(-90 13 {middle:.0f})"'
        parts.append(label(13, middle, self.y.label, cls="axis", more=turned))
        return (
            f'<svg id="{name}" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
        )


def color(share: float) -> str:
    """The colour of a share from 0 (dark) to 1 (light)."""
    place = min(max(share, 0.0), 1.0) * (len(STOPS) - 1)
    lower = min(int(place), len(STOPS) - 2)
    mixed = [
        round(a + (b - a) * (place - lower))
        for a, b in zip(STOPS[lower], STOPS[lower + 1], strict=True)
    ]
    return f"#{mixed[0]:02x}{mixed[1]:02x}{mixed[2]:02x}"


def line(x1: float, y1: float, x2: float, y2: float, **style: object) -> str:
    """A straight line."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"{attributes(style)}/>'


def polyline(points: Sequence[tuple[float, float]], title: str, **style: object) -> str:
    """A line through points, with a text under the pointer."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none"{attributes(style)}>{titled(title)}</polyline>'


def rect(x: float, y: float, width: float, height: float, **style: object) -> str:
    """A rectangle."""
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size}{attributes(style)}/>'


def dot(x: float, y: float, radius: float, title: str = "", **style: object) -> str:
    """A circle, with a text under the pointer."""
    return f'<circle cx="{x}" cy="{y}" r="{radius}"{attributes(style)}>{titled(title)}</circle>'


def cross(x: float, y: float, size: float, title: str, **style: object) -> str:
    """Two crossed strokes, with a text under the pointer."""
    path = f"M{x - size},{y - size}l{2 * size},{2 * size}m0,{-2 * size}l{-2 * size},{2 * size}"
    return f'<path d="{path}" fill="none"{attributes(style)}>{titled(title)}</path>'


def label(
    x: float, y: float, text: str, *, anchor: str = "middle", cls: str = "tick", more: str = ""
) -> str:
    """A text."""
    place = f'x="{x}" y="{y:.1f}" text-anchor="{anchor}" class="{cls}"'
    return f"<text {place} {more}>{html.escape(text)}</text>"


def titled(text: str) -> str:
    """What appears under the pointer."""
    return f"<title>{html.escape(text)}</title>" if text else ""


def attributes(style: dict[str, object]) -> str:
    """Attributes of an element, with - for _."""
    return "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
