"""A line of a chart and the extremes around it: thinned without losing a spike, and read off.

points, minima and maxima -> Curve -> thinned: what is drawn
                                   -> spikes: what stands out
                                   -> readings: what a chart says under the pointer
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from support.number_text import exact

Line = Sequence[tuple[float, float]]
Band = tuple[Line, Line]
"""Minima and maxima around a line, at points of the line."""

# lines with more points are drawn as the means of groups, within the extremes of each
MAX_POINTS = 600
# a point stands out from this many on each side of it if it is this many times as far above their
# median as half of them are from it, and this share of the median; the highest are marked
NEIGHBOURS, FAR, ABOVE, MAX_SPIKES = 10, 12.0, 0.25, 6
# a logarithmic axis is due if the highest value is this many times the median
WIDE = 20.0
STRIPS = 60


@dataclass(frozen=True)
class Curve:
    """Columns of numbers (n,), one row for each point."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, line: Line, band: Band | None = None, *, logarithmic: bool = False) -> Self:
        """The points that can be drawn: finite, and on a logarithmic axis positive.

        Where the band has no point, or one that cannot be drawn, it is as narrow as the line.
        """
        lows, highs = (dict(clean(side, logarithmic)) for side in band or ((), ()))
        rows = [(x, y, lows.get(x, y), highs.get(x, y)) for x, y in clean(line, logarithmic)]
        rows.sort(key=lambda row: row[0])
        return cls(*np.array(rows, float).reshape(-1, 4).T)

    def __len__(self) -> int:
        """Number of points."""
        return len(self.x)

    @property
    def is_band(self) -> bool:
        """Whether the extremes differ from the line anywhere."""
        return bool((self.low < self.high).any())

    @property
    def points(self) -> Line:
        """The line (x, y)."""
        return list(zip(self.x.tolist(), self.y.tolist(), strict=True))

    def thinned(self) -> Self:
        """At most `MAX_POINTS` points: mean and extremes of neighbours; the last y is unchanged."""
        size = -(-len(self) // MAX_POINTS)
        if size <= 1:
            return self
        firsts = np.arange(0, len(self), size)
        lasts = np.append(firsts[1:], len(self)) - 1
        means = np.add.reduceat(self.y, firsts) / (lasts - firsts + 1)
        means[-1] = self.y[-1]
        low, high = np.minimum.reduceat(self.low, firsts), np.maximum.reduceat(self.high, firsts)
        return type(self)(self.x[lasts], means, low, high)

    def spikes(self) -> list[int]:
        """Places of the highest maxima that stand out from those around them, in order.

        The steep descent of the first points of a training does not stand out: nothing of the first
        `NEIGHBOURS` does, and later the median is that of a window around the point.
        """
        size, number = 2 * NEIGHBOURS + 1, len(self)
        if number < size:
            return []
        windows = np.lib.stride_tricks.sliding_window_view(self.high, size)
        middles = np.median(windows, axis=1)
        usual = FAR * np.median(np.abs(windows - middles[:, None]), axis=1)
        usual = np.maximum(usual, ABOVE * np.abs(middles))
        places = np.arange(NEIGHBOURS, number)
        own = np.minimum(places - NEIGHBOURS, number - size)  # at the end, the last window
        found = places[self.high[places] - middles[own] > usual[own]]
        chosen: list[int] = []
        for place in sorted(found.tolist(), key=lambda place: -self.high[place]):
            if all(abs(place - other) > NEIGHBOURS for other in chosen):
                chosen.append(place)
        return sorted(chosen[:MAX_SPIKES])


def clean(line: Line, logarithmic: bool = False) -> list[tuple[float, float]]:
    """The points that can be drawn: finite, and on a logarithmic axis positive."""
    finite = [(x, y) for x, y in line if math.isfinite(x) and math.isfinite(y)]
    return [(x, y) for x, y in finite if y > 0 or not logarithmic]


def is_wide(curves: Sequence[Curve]) -> bool:
    """Whether a linear axis would press most of the values together at its bottom."""
    lowest = min(curve.low.min() for curve in curves)
    median = np.median(np.concatenate([curve.y for curve in curves]))
    return bool(lowest > 0 and max(curve.high.max() for curve in curves) > WIDE * median)


def readings(
    curves: Mapping[str, Curve],
    moments: Mapping[float, str],
    ends: tuple[float, float],
    label: str,
    shown: Callable[[float], str],
) -> Iterator[tuple[float, str]]:
    """Middle and text of each of `STRIPS` equal strips of an axis in which there is something."""
    edges = np.linspace(*ends, STRIPS + 1)
    edges[-1] = np.nextafter(edges[-1], math.inf)  # the last point belongs to the last strip
    places = {key: np.searchsorted(curve.x, edges) for key, curve in curves.items()}
    for number, (left, right) in enumerate(zip(edges, edges[1:], strict=False)):
        texts, xs = [], []
        for key, curve in curves.items():
            part = slice(*places[key][number : number + 2])
            if len(inside := curve.x[part]):
                low, high = curve.low[part].min(), curve.high[part].max()
                spread = f" ({shown(low)} to {shown(high)})" if low < high else ""
                texts.append(f"{key}: {shown(curve.y[part].mean())}{spread}")
                xs += [inside[0], inside[-1]]
        told = [(x, text) for x, text in moments.items() if left <= x < right]
        if xs or told:
            xs = xs or [x for x, _ in told]
            where = exact(min(xs)) + (f" to {exact(max(xs))}" if min(xs) < max(xs) else "")
            texts += [text for _, text in told]
            yield (left + right) / 2, "\n".join([f"{label} {where}".lstrip(), *texts])
