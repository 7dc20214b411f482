"""What a search finds where the truth is known: thousands of them, simulated.

    python -m benchmarks.search [--searches 2000] [--seed 0] [--json FILE]

Nothing is trained and Ray is not started: a formula gives the loss of a run, and noise is added,
of its seed (the same for all runs of a block) and its own. The rungs, the surface and the pairs of
runs that confirm are those of a search as shipped. Prints a table, each row with what it requires,
and exits with 1 if a row does not hold. Its figures stand in docs/search-simulation.md.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from tune.dimension import Range
from tune.space import Space
from tune.surface import Run, Surface

LR, WARMUP = "optim.lr", "optim.warmup"
# the spaces of tune.space, the rate as a multiple of the preset's
SPACE = Space(
    name="warmup-lr",
    dimensions={
        LR: Range(low=0.3, high=10.0, log=True),
        WARMUP: Range(low=0.005, high=0.5, log=True),
    },
)
PRESET = {LR: 1.0, WARMUP: 0.04}
SLOPES = {LR: (-0.32, 0.2), WARMUP: (-0.5, 0.5)}
RUNGS, SEEDS = ((32, 1 / 256), (8, 1 / 64), (3, 1 / 16)), 4
LAST, REAL = RUNGS[-1][1], 1.0
COST_BEFORE = 32 * 0.25
# loss of a rate that is off by a factor of e; noise of a seed, which pairs take away; of a run
CURVE, BLOCK, NOISES = 0.03, 0.02, (0.003, 0.01)
LEVEL, GAIN_LEVEL = 0.9, 0.95
# intervals take several times as long as fits
INTERVAL_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class Bowl:
    """A quadratic in log rate and log warm-up, whose optimum moves with the horizon."""

    lr: float
    """Log of the best rate of the real run."""
    warmup: float
    lr_slope: float
    warmup_slope: float = -0.5
    curve: float = CURVE
    cliff: float = math.inf
    """How far above the best log rate the loss begins to rise steeply."""

    def best(self, horizon: float) -> np.ndarray:
        """Log rate and log warm-up of the optimum."""
        t = math.log(horizon)
        return np.array([self.lr + self.lr_slope * t, self.warmup + self.warmup_slope * t])

    def __call__(self, sample: Mapping, horizon: float) -> float:
        """Loss above the least."""
        rate, warmup = np.log([sample[LR], sample[WARMUP]]) - self.best(horizon)
        # a long warm-up allows a higher rate
        bowl = self.curve * (rate**2 + 0.5 * warmup**2 - 0.4 * rate * warmup)
        return bowl + 10 * self.curve * max(0.0, rate - self.cliff)


def bowls(random: np.random.Generator, **settings: float) -> Iterator[Bowl]:
    """Bowls with their optimum somewhere around the preset."""
    while True:
        lr, warmup = random.uniform(-0.7, 0.7), math.log(0.02) + random.uniform(0, math.log(10))
        yield Bowl(lr=lr, warmup=warmup, **settings)


def late_bloomer(sample: Mapping, horizon: float, share: float = 1.0) -> float:  # noqa: ARG001
    """Least for the longest warm-up, which looks worst for much of a run; at a share of it."""
    warmup = sample[WARMUP]
    area = share**2 / (2 * warmup) if share < warmup else share - warmup / 2
    top = 0.55 + 0.35 * math.log(warmup / 0.02) / math.log(24)
    return 1 - (top - 0.05 * math.log(sample[LR] / 1.5) ** 2) * (1 - math.exp(-4 * area))


Objective = Callable[[Mapping, float], float]


@dataclass(frozen=True, kw_only=True)
class Search:
    """One simulated search."""

    first: Mapping
    """The best trial of the first rung."""
    last: Mapping
    """The best trial of the last rung."""
    surface: Surface

    @classmethod
    def run(cls, truth: Objective, noise: float, random: np.random.Generator) -> "Search":
        """Run all rungs: the best of a rung go on, the preset is in each."""
        samples, runs, best = SPACE.spread(RUNGS[0][0], int(random.integers(2**31))), [], []
        for block, (number, horizon) in enumerate(RUNGS):
            others = [sample for sample in samples if sample != PRESET]
            samples = [PRESET, *others[: number - 1]]
            losses = np.array([truth(one, horizon) for one in samples])
            losses += random.normal(0, BLOCK) + random.normal(0, noise, len(samples))
            rows = zip(samples, losses.tolist(), strict=True)
            runs += [Run(horizon=horizon, block=block, sample=s, loss=loss) for s, loss in rows]
            samples = [samples[index] for index in np.argsort(losses)]
            best.append(samples[0])
        surface = Surface.fit(SPACE, runs, slopes=SLOPES, preset=PRESET)
        return cls(first=best[0], last=best[-1], surface=surface)

    def gain(
        self, truth: Objective, noise: float, random: np.random.Generator
    ) -> tuple[float, float, float]:
        """Gain of the settings found over the preset by fresh pairs; its interval; the truth."""
        found = self.surface.best(LAST)
        true = truth(PRESET, LAST) - truth(found, LAST)
        pairs = true + random.normal(0, noise * math.sqrt(2), SEEDS)
        reach = stats.t.ppf((1 + GAIN_LEVEL) / 2, SEEDS - 1) * stats.sem(pairs)
        return pairs.mean() - reach, pairs.mean() + reach, true


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of the table and what is required of it."""

    what: str
    figure: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def holds(self) -> bool:
        """Whether the requirement holds."""
        return self.least <= self.figure <= self.most

    def __str__(self) -> str:
        bound = f">= {self.least:.2f}" if self.least > -math.inf else f"<= {self.most:.2f}"
        bound = bound if math.isfinite(self.least) or math.isfinite(self.most) else ""
        return f"{self.what:<80}{self.figure:>8.3f}  {bound:<9}{'' if self.holds else 'FAILS'}"


def least_of(level: float, number: int) -> float:
    """The least share that a level allows in so many draws: three standard errors below it."""
    return level - 3 * math.sqrt(level * (1 - level) / number)


def flat(number: int, random: np.random.Generator) -> Iterator[Row]:
    """No setting has an effect."""
    truth, gains = Bowl(lr=0, warmup=-3, lr_slope=0, curve=0), []
    for _ in range(number):
        gains.append(Search.run(truth, NOISES[1], random).gain(truth, NOISES[1], random))
    low, high, _ = np.array(gains).T
    yield Row(what="no effect: the preset is kept", figure=(low <= 0).mean(), least=0.95)
    covered = (low <= 0) & (high >= 0)
    yield Row(what="no effect: the gain's 95 % interval holds 0", figure=covered.mean(),
              least=least_of(GAIN_LEVEL, number))  # fmt: skip


def quadratic(
    number: int, random: np.random.Generator, noise: float, **settings: float
) -> Iterator[Row]:
    """A known optimum."""
    # with a cliff the truth has not the surface's form, and its interval is below its level;
    # with so much noise no fit could: by Cramer and Rao's bound the error of a slope of -0.1 is
    # more than a third of that of the best trial, even if the form is known
    shaped, known = "cliff" not in settings, noise <= NOISES[0]
    name = f"slope {settings['lr_slope']}, signal/noise {CURVE / noise:.0f}"
    name = name if shaped else f"cliff, {name}"
    errors, gains, within = [], [], []
    for count, truth in zip(range(number), bowls(random, **settings), strict=False):
        search = Search.run(truth, noise, random)
        gains.append(search.gain(truth, noise, random))
        for horizon in (LAST, REAL):
            best = truth.best(horizon)
            tried = (search.surface.best(horizon), search.first, search.last)
            errors.append([abs(math.log(sample[LR]) - best[0]) for sample in tried])
            if count % INTERVAL_EVERY == 0:
                for dimension, value in zip((LR, WARMUP), np.exp(best), strict=True):
                    low, high = search.surface.interval(dimension, horizon, LEVEL)
                    within.append(low <= value <= high)
    low, high, true = np.array(gains).T
    found = np.median(np.reshape(errors, (number, 2, 3)), axis=0)
    for (surface, first, last), where in zip(found, ("last rung", "real run"), strict=True):
        told = f"{name}, {where}: error in log lr"
        yield Row(what=told, figure=surface)
        yield Row(what=f"{told} / of best trial of first rung", figure=surface / first,
                  most=1 / 3 if known else math.inf)  # fmt: skip
        yield Row(what=f"{told} / of best trial of last rung", figure=surface / last)
    yield Row(what=f"{name}: the optimum's 90 % interval covers it", figure=np.mean(within),
              least=least_of(LEVEL, number // INTERVAL_EVERY) if shaped else -math.inf)  # fmt: skip
    covered = (low <= true) & (true <= high)
    yield Row(what=f"{name}: the gain's 95 % interval covers it", figure=covered.mean(),
              least=least_of(GAIN_LEVEL, number))  # fmt: skip
    yield Row(what=f"{name}: the gain is called real", figure=(low > 0).mean())


def bloomer(number: int, random: np.random.Generator, noise: float = NOISES[0]) -> Iterator[Row]:
    """A long warm-up that looks worse until late, in whole runs and in stopped ones."""
    longest, found = SPACE.dimensions[WARMUP].high, []
    for _ in range(number):
        search = Search.run(late_bloomer, noise, random)
        samples = [PRESET, *SPACE.spread(RUNGS[0][0] - 1, int(random.integers(2**31)))]
        found.append([search.surface.best(LAST)[WARMUP], *(
            asha(samples, keep, noise, random)[WARMUP] for keep in (2, 4))])  # fmt: skip
    shares = (np.array(found) > longest / 1.5).mean(0)
    what = "late bloomer: a warm-up within 1.5 of the best is found by"
    yield Row(what=f"{what} the search", figure=shares[0], least=0.95)
    yield Row(what=f"{what} ASHA, halving", figure=shares[1], most=0.1)
    yield Row(what=f"{what} ASHA, quartering", figure=shares[2], most=0.1)


def asha(
    samples: Sequence[Mapping], keep: int, noise: float, random: np.random.Generator
) -> Mapping:
    """The best of runs of which one in `keep` goes on at a quarter and at a half of the run."""
    for share in (1 / 4, 1 / 2, 1.0):
        losses = [late_bloomer(one, 1 / 16, share) + random.normal(0, noise) for one in samples]
        samples = [samples[i] for i in np.argsort(losses)[: max(1, len(samples) // keep)]]
    return samples[0]


def rows(number: int, seed: int) -> Iterator[Row]:
    """All rows of the table."""
    random = np.random.default_rng(seed)
    cost = sum(trials * horizon for trials, horizon in RUNGS)
    yield Row(what="cost before seeds, in real runs (before: 8)", figure=cost, most=2)
    yield from flat(number, random)
    for noise, cliff in ((NOISES[0], {}), (NOISES[1], {}), (NOISES[0], {"cliff": 0.7})):
        for slope in (-0.1, -0.32, -0.5):
            yield from quadratic(number, random, noise, lr_slope=slope, **cliff)
    yield from bloomer(number, random)


def main() -> int:
    """Simulate, print, and say by the exit status whether all rows hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=2000, help="simulated searches of a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    args = parser.parse_args()
    done = []
    for row in rows(args.searches, args.seed):
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
        done.append(row)
    if args.json:
        flat_rows = [{"what": row.what, "figure": row.figure, "holds": row.holds} for row in done]
        args.json.write_text(json.dumps(flat_rows, indent=1, default=float))
    return 0 if all(row.holds for row in done) else 1


if __name__ == "__main__":
    sys.exit(main())
