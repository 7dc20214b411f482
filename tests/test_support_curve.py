"""Lines of charts: thinned without losing an extreme, what stands out, what the pointer reads."""

import numpy as np
import pytest

from support.curve import MAX_POINTS, STRIPS, Curve, clean, is_wide, readings
from support.number_text import exact, short


def training(steps=20_000, spikes=()):
    """A loss that falls steeply at first, within its extremes; spikes of one interval."""
    draw = np.random.default_rng(0)
    x = 50.0 * np.arange(1, steps + 1)
    y = 2 + 8 * np.exp(-x / x[-1] * 12) + draw.normal(0, 0.02, steps)
    low, high = y - draw.gamma(9, 0.03, steps), y + draw.gamma(9, 0.03, steps)
    for place in spikes:
        high[place] = 9.31
    return Curve(x, y, low, high)


def test_thinned_lines_are_means_within_all_extremes():
    curve = training(spikes=[12_345])
    thin, size = curve.thinned(), -(-len(curve) // MAX_POINTS)
    assert len(thin) <= MAX_POINTS
    groups = [slice(first, first + size) for first in range(0, len(curve), size)]
    assert thin.y[:-1] == pytest.approx([curve.y[group].mean() for group in groups][:-1])
    assert thin.low.tolist() == [curve.low[group].min() for group in groups]
    assert thin.high.tolist() == [curve.high[group].max() for group in groups]
    assert thin.high[12_345 // size] == 9.31
    assert (thin.x[-1], thin.y[-1]) == (curve.x[-1], curve.y[-1])


def test_a_line_lies_within_its_band_where_the_band_has_points():
    line = [(3, 4.0), (1, 2.0), (2, 3.0), (4, np.nan)]
    curve = Curve.of(line, ([(1, 1.5), (3, np.inf)], [(1, 2.5), (2, 9.0)]))
    assert curve.points == [(1, 2.0), (2, 3.0), (3, 4.0)] and curve.is_band
    assert curve.low.tolist() == [1.5, 3.0, 4.0] and curve.high.tolist() == [2.5, 9.0, 4.0]
    assert not Curve.of(line).is_band and len(Curve.of([])) == 0
    assert Curve.of([(1, 2.0)], ([(1, -1.0)], []), logarithmic=True).low.tolist() == [2.0]


def test_values_that_cannot_be_drawn_are_left_out():
    assert clean([(0, 0.0), (1, -1.0), (2, 3.0), (3, np.inf)], logarithmic=True) == [(2, 3.0)]
    assert clean([(0, 0.0), (np.nan, 1.0), (2, 3.0)]) == [(0, 0.0), (2, 3.0)]


def test_spikes_stand_out_and_noise_and_the_first_descent_do_not():
    assert training().spikes() == [] == training(steps=15).spikes()
    assert training(spikes=[3000, 12_345, 19_999]).spikes() == [3000, 12_345, 19_999]
    # of one that lasts, the highest; of many, the highest few
    assert training(spikes=range(5000, 5005)).spikes() == [5000]
    assert len(training(spikes=range(5000, 20_000, 100)).spikes()) == 6


def test_an_axis_is_logarithmic_if_most_values_would_lie_at_its_bottom():
    flat, spiked = np.ones(100), np.ones(100)
    spiked[50] = 100
    x = np.arange(100.0)
    assert is_wide([Curve(x, flat, flat, spiked)]) and not is_wide([Curve(x, flat, flat, flat)])
    assert not is_wide([Curve(x, flat, flat - 1, spiked)])  # it has no place for 0


def test_every_point_is_read_once_with_the_extremes_around_it():
    curve, spike = training(spikes=[12_345]), 50 * 12_346
    ends = (0.0, float(curve.x[-1]))
    moments = {spike: "resumed"}
    told = list(readings({"train/loss": curve}, moments, ends, "step", short))
    assert len(told) == STRIPS
    edges = np.linspace(*ends, STRIPS + 1)
    assert [middle for middle, _ in told] == pytest.approx((edges[:-1] + edges[1:]) / 2)
    counts = np.histogram(curve.x, edges)[0]
    starts = np.cumsum([0, *counts[:-1]])
    for (_, text), start, count in zip(told, starts, counts, strict=True):
        part = slice(start, start + count)
        where, values, *more = text.split("\n")
        assert where == f"step {exact(curve.x[part][0])} to {exact(curve.x[part][-1])}"
        low, high = curve.low[part].min(), curve.high[part].max()
        assert (
            values == f"train/loss: {short(curve.y[part].mean())} ({short(low)} to {short(high)})"
        )
        assert more == (["resumed"] if curve.x[part][0] <= spike <= curve.x[part][-1] else [])
    assert sum("to 9.31)" in text for _, text in told) == 1


def test_a_single_point_is_read_with_its_own_place():
    line = Curve.of([(0, 1.0), (123_456, 0.5)])
    told = list(readings({"val/top1": line}, {}, (0.0, 123_456.0), "step", short))
    assert [text for _, text in told] == ["step 0\nval/top1: 1", "step 123,456\nval/top1: 0.5"]
    assert exact(0.125) == "0.125" and exact(1234567.0) == "1,234,567"
