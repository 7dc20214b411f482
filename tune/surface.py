"""The surface of the loss over the settings, fitted to the runs of all rungs.

    runs (settings, horizon, block, loss) -> Surface -> the best settings at any horizon, intervals

With x the settings as shares of their ranges, t = log horizon, and z the options of choices:

    loss = level of the block + h^g |L'(x - x0 - b t)|^2 + z (e + f t)

so the optimum x0 + b t moves with the horizon, and of a block, runs of one seed and horizon, only
the differences count. A choice of three or more numbers is ordered and has a coordinate in x, as a
range has; an option of any other choice has an effect of its own.

Shapes: B rows of parameters (x0, b, log diagonal of L, rest of L, g, levels, e, f), n runs or
samples, D coordinates, K options, P parameters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from scipy.optimize import least_squares

from tune.dimension import Range
from tune.space import Space

DRAWS, SWEEPS = 200, 30
# shares of draws below the ends of an interval, which is one of 90 %
ENDS = (0.05, 0.95)
# a slope without an entry, and the units of log that a linear range counts for in it
SLOPE, LINEAR_WIDTH = (0.0, 0.3), 4.0
# standard deviations of the priors that `Surface.fit` describes
CENTRE_SD, LOG_CURVE_SD, GROWTH_SD = 0.4, 1.0, 0.3
# a run has half the weight where its fitted excess is so many times the noise, or above that of so
# large a share of the runs: a loss is a quadratic only near its optimum, and yet the surface must
# not shrink to a few runs that it meets by chance
NEAR_NOISES, NEAR_SHARE = 3.0, 0.25
# the least noise, as a share of the spread of the losses
LEAST_NOISE = 0.001


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that ended with a loss (less is better) at a horizon, a share of the real run."""

    horizon: float
    block: int
    sample: Mapping[str, object]
    loss: float


class Axes:
    """The coordinates of a space's samples."""

    def __init__(self, space: Space) -> None:
        """Tell the dimensions with an order from those without."""
        self.space, self.ranges, self.options, self.free = space, {}, [], []
        for name, dimension in space.dimensions.items():
            if isinstance(dimension, Range):
                self.free += [] if dimension.whole else [len(self.ranges)]
                self.ranges[name] = dimension
            elif len(dimension.options) > 2 and {*map(type, dimension.options)} <= {int, float}:
                low, high = min(dimension.options), max(dimension.options)
                self.ranges[name] = Range(low=low, high=high, log=low > 0)
            else:
                self.options += [(name, option) for option in dimension.options]
        logs = [math.log(r.high / r.low) if r.log else LINEAR_WIDTH for r in self.ranges.values()]
        self.widths = dict(zip(self.ranges, logs, strict=True))

    def __call__(self, samples: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
        """The ordered values as shares (n, D), and 1 for each option that a sample has (n, K)."""
        x = [[r.share(sample[name]) for name, r in self.ranges.items()] for sample in samples]
        z = [[sample[name] == option for name, option in self.options] for sample in samples]
        return np.array(x, float), np.array(z, float)


def _parts(theta: np.ndarray, D: int) -> tuple[np.ndarray, ...]:
    """Of parameters (B, P): x0 and b (B, D), L (B, D, D), g (B, 1)."""
    ends = np.cumsum([D, D, D, D * (D - 1) // 2, 1])
    x0, b, diagonal, below, g, _ = np.split(theta, ends, axis=1)
    factor = np.zeros((len(theta), D, D), theta.dtype)
    factor[:, *np.diag_indices(D)] = np.exp(diagonal)
    factor[:, *np.tril_indices(D, -1)] = below
    return x0, b, factor, g


def _quadratic(theta: np.ndarray, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The quadratic part of the loss at x (n, D) and t (n,): (B, n)."""
    x0, b, factor, g = _parts(theta, x.shape[1])
    apart = x - x0[:, None] - b[:, None] * t[:, None]
    return np.exp(g * t) * ((apart @ factor) ** 2).sum(-1)


@dataclass(frozen=True)
class Design:
    """The runs as the formula sees them, and the prior of each parameter."""

    x: np.ndarray
    t: np.ndarray
    linear: np.ndarray  # factors of levels, e and f: (n, -)
    mean: np.ndarray
    deviation: np.ndarray

    def loss(self, theta: np.ndarray) -> np.ndarray:
        """Fitted losses (n,) of parameters (P,)."""
        linear = self.linear @ theta[-self.linear.shape[1] :]
        return _quadratic(theta[None], self.x, self.t)[0] + linear

    def slopes(self, theta: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Derivatives of what `solve` squares, of the runs and of the priors: (n + P, P)."""
        # by complex steps, exact to the last digits; one row for each parameter
        steps = theta + 1e-20j * np.eye(len(theta))[: -self.linear.shape[1]]
        runs = np.hstack([_quadratic(steps, self.x, self.t).imag.T * 1e20, self.linear])
        return np.vstack([np.sqrt(weight)[:, None] * runs, np.diag(1 / self.deviation)])

    def solve(self, theta: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Parameters of least squares for losses y, from a first guess."""

        def apart(theta: np.ndarray) -> np.ndarray:
            prior = (theta - self.mean) / self.deviation
            return np.append(np.sqrt(weight) * (self.loss(theta) - y), prior)

        slopes = partial(self.slopes, weight=weight)
        return least_squares(apart, theta, slopes, method="lm", x_scale="jac").x

    def fit(self, y: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Parameters, weights and noise, found in turns."""
        theta, noise, weight = self.mean, spread, np.full(len(y), spread**-2)
        for _ in range(20):
            theta, before = self.solve(theta, y, weight), noise
            excess, slopes = _quadratic(theta[None], self.x, self.t)[0], self.slopes(theta, weight)
            near = max(NEAR_NOISES * noise, np.quantile(excess, NEAR_SHARE))
            shape = 1 / (1 + (excess / near) ** 2)
            # what the fit leaves of each run's own error
            left = 1 - (slopes * np.linalg.pinv(slopes).T).sum(1)[: len(y)]
            squares = shape @ (y - self.loss(theta)) ** 2
            noise = max(math.sqrt(squares / (shape @ left)), LEAST_NOISE * spread)
            weight = shape / noise**2
            if abs(noise / before - 1) < 0.01:
                break
        return theta, weight, noise


def _prior(
    axes: Axes, slopes: Mapping, preset: Mapping, typical: np.ndarray, spread: float
) -> np.ndarray:
    """Means and deviations of the parameters: (2, P)."""
    D, K, curve = len(axes.ranges), len(axes.options), 2 * math.sqrt(spread)
    # a preset without a place in a range says nothing: its middle
    shares = [r.share(preset[n]) if n in preset else 0.5 for n, r in axes.ranges.items()]
    rows = [
        *[(min(max(share, 0.0), 1.0), CENTRE_SD) for share in shares],
        *[np.array(slopes.get(name, SLOPE)) / width for name, width in axes.widths.items()],
        *[(math.log(curve), LOG_CURVE_SD)] * D + [(0, curve)] * (D * (D - 1) // 2),
        (0, GROWTH_SD),
        *[(level, math.inf) for level in typical],
        # over all rungs an effect may change by its own size
        *[(0, spread)] * K + [(0, spread / 4)] * K,
    ]
    return np.array(rows, float).T


def least_runs(blocks: int, dimensions: int) -> int:
    """The fewest runs that a surface is fitted to."""
    return blocks + dimensions + 1


@dataclass(frozen=True)
class Surface:
    """The fitted surface: the best settings at any horizon, and how sure they are."""

    axes: Axes
    design: Design
    theta: np.ndarray
    weight: np.ndarray
    noise: float  # standard deviation of a run around the surface
    seed: int

    @classmethod
    def fit(
        cls,
        space: Space,
        runs: Sequence[Run],
        *,
        slopes: Mapping[str, tuple[float, float]],
        preset: Mapping[str, object],
        seed: int = 0,
    ) -> "Surface":
        """Fit to the runs that have a value for each dimension.

        Weak priors (mean and standard deviation) stand in where runs are few: at horizon 1 the
        optimum is the preset within 0.4 of the range; d log best / d log horizon is `slopes`,
        else 0 within 0.3; half a range away from the optimum the loss is higher by its spread
        within a factor of e, times the horizon to the power 0 within 0.3; options differ by 0
        within the spread. Raises ValueError if there are too few runs.
        """
        names = list(space.dimensions)
        runs = [run for run in runs if run.sample.keys() >= set(names)]
        # an order of their own: equal runs give equal intervals
        runs.sort(key=lambda r: (r.horizon, r.block, str([r.sample[n] for n in names]), r.loss))
        blocks = sorted({run.block for run in runs})
        if len(runs) < (least := least_runs(max(len(blocks), 1), len(names))):
            over = f"a surface over {', '.join(names)} takes at least {least}"
            raise ValueError(f"{len(runs)} runs ended, and {over}: run more trials")
        y, t = np.array([(run.loss, math.log(run.horizon)) for run in runs]).T
        levels = np.array([[run.block == block for block in blocks] for run in runs], float)
        typical = np.array([np.median(y[level > 0]) for level in levels.T])
        spread = max(1.5 * np.median(np.abs(y - levels @ typical)), 1e-12)
        axes = Axes(space)
        x, z = axes([run.sample for run in runs])
        prior = _prior(axes, slopes, preset, typical, spread)
        design = Design(x, t, np.hstack([levels, z, z * t[:, None]]), *prior)
        return cls(axes, design, *design.fit(y, spread), seed)

    @cached_property
    def draws(self) -> np.ndarray:
        """Parameters for losses and means of priors drawn anew: (B, P), by one Newton step."""
        inverse = np.linalg.pinv(self.design.slopes(self.theta, self.weight))
        errors = np.random.default_rng(self.seed).standard_normal((DRAWS, inverse.shape[1]))
        return self.theta + errors @ inverse.T

    @cached_property
    def candidates(self) -> tuple[list[dict[str, object]], np.ndarray, np.ndarray]:
        """Samples all over the space, with their coordinates."""
        samples = self.axes.space.candidates
        return samples, *self.axes(samples)

    def _loss(self, theta: np.ndarray, x: np.ndarray, z: np.ndarray, t: float) -> np.ndarray:
        """Loss above the level of a block: (B, n)."""
        effects, moves = np.split(theta[:, theta.shape[1] - 2 * z.shape[1] :], 2, axis=1)
        return _quadratic(theta, x, np.array([t])) + (effects + t * moves) @ z.T

    def _best(self, theta: np.ndarray, horizon: float) -> list[dict[str, object]]:
        """The best sample of each row of parameters."""
        t, (samples, x, z) = math.log(horizon), self.candidates
        best = self._loss(theta, x, z, t).argmin(1)
        x0, b, factor, _ = _parts(theta, x.shape[1])
        bend, at = factor @ factor.transpose(0, 2, 1), x[best]
        # from the best candidate down one coordinate after the other, within its range
        for j in self.axes.free * SWEEPS:
            down = np.einsum("bd,bd->b", bend[:, j], at - x0 - b * t) / bend[:, j, j]
            at[:, j] = np.clip(at[:, j] - down, 0, 1)
        ranges = list(self.axes.ranges.items())
        return [
            {**samples[i], **{ranges[j][0]: ranges[j][1].at(row[j]) for j in self.axes.free}}
            for i, row in zip(best, at, strict=True)
        ]

    def best(self, horizon: float) -> dict[str, object]:
        """The best sample of the space at a horizon."""
        return self._best(self.theta[None], horizon)[0]

    def excess(self, samples: Sequence[Mapping], horizon: float) -> np.ndarray:
        """Predicted loss of samples above that of the best at a horizon: (n,)."""
        x, z = self.axes([*samples, self.best(horizon)])
        (loss,) = self._loss(self.theta[None], x, z, math.log(horizon))
        return loss[:-1] - loss[-1]

    def region(self, horizon: float) -> list[dict[str, object]]:
        """The best and samples all over the space whose excess is within the noise."""
        samples = [self.best(horizon), *self.candidates[0]]
        within = self.excess(samples, horizon) <= self.noise
        return [sample for sample, good in zip(samples, within, strict=True) if good]

    def interval(self, name: str, horizon: float) -> tuple[float, float]:
        """90 % bootstrap interval of the best value of an ordered dimension at a horizon."""
        values = [sample[name] for sample in self._best(self.draws, horizon)]
        return tuple(np.quantile(values, ENDS).tolist())

    def slope(self, name: str) -> tuple[float, float, float]:
        """How log best moves with log horizon, for an ordered dimension; its 90 % interval."""
        column = len(self.axes.ranges) + list(self.axes.ranges).index(name)
        ends = np.quantile(self.draws[:, column], ENDS)
        return tuple(float(b * self.axes.widths[name]) for b in (self.theta[column], *ends))
