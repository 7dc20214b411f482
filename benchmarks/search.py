"""What a search finds where the truth is known: thousands of them, simulated.

    python -m benchmarks.search [--searches 2000] [--seed 0] [--json FILE]

Nothing is trained and Ray is not started: a formula gives the loss of a run, and noise is added,
of its seed (the same for all runs of a block) and its own. Which trials are run, the surface and
the answer are those of a search as shipped. Prints a table, each row with what it requires,
and exits with 1 if a row does not hold. Its figures stand in docs/search-simulation.md.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.settings.presets import find_preset
from tune import answer, ladder
from tune.answer import Answer
from tune.config import SearchConfig, cost
from tune.prepare import make_plan
from tune.trial import DONE, Outcome

LR, WARMUP = "optim.lr", "optim.warmup"
# the search of README with its defaults
NAME, CONFIG = "in21k-s16-30ep", SearchConfig()
PLAN = make_plan(NAME, find_preset(NAME), CONFIG)
PRESET = PLAN.preset_sample()
LAST, REAL = PLAN.rungs[-1].horizon, 1.0
# loss of a rate that is off by a factor of e; noise of a seed, which pairs take away; of a run
CURVE, BLOCK, NOISES = 0.03, 0.02, (0.003, 0.01)
# the level of the surface's intervals
LEVEL = 0.9
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
        lr = math.log(PRESET[LR]) + random.uniform(-0.7, 0.7)
        warmup = math.log(0.02) + random.uniform(0, math.log(10))
        yield Bowl(lr=lr, warmup=warmup, **settings)


def late_bloomer(sample: Mapping, horizon: float, share: float = 1.0) -> float:  # noqa: ARG001
    """Least for the longest warm-up, which looks worst for much of a run; at a share of it."""
    warmup = sample[WARMUP]
    area = share**2 / (2 * warmup) if share < warmup else share - warmup / 2
    top = 0.55 + 0.35 * math.log(warmup / 0.02) / math.log(24)
    return 1 - (top - 0.05 * math.log(sample[LR] / PRESET[LR] / 1.5) ** 2) * (
        1 - math.exp(-4 * area)
    )


Objective = Callable[[Mapping, float], float]


def search(truth: Objective, noise: float, random: np.random.Generator) -> Answer:
    """The answer of one simulated search."""
    config = CONFIG.replace({"seed": int(random.integers(2**31))})
    plan, trials = dataclasses.replace(PLAN, config=config), {}
    levels = defaultdict(partial(random.normal, 0, BLOCK))
    while new := [
        trial for trial in ladder.planned(plan, [*trials.values()]) if trial.name not in trials
    ]:
        for trial in new:
            loss = truth(trial.sample or PRESET, plan.horizon(trial.rung))
            loss += levels[trial.seed] + random.normal(0, noise)
            outcome = Outcome(status=DONE, values={"val/loss": float(loss)})
            trials[trial.name] = dataclasses.replace(trial, status=DONE, outcome=outcome)
    return Answer(plan, [*trials.values()])


def best_trial(found: Answer, rung: int) -> Mapping[str, object]:
    """The sample of the best trial of a rung."""
    trials = [trial for trial in found.trials if trial.rung == rung]
    return min(trials, key=lambda trial: trial.value("val/loss")).sample or PRESET


def true_gain(found: Answer, truth: Objective) -> float:
    """What the settings found gain over the preset without noise."""
    return truth(PRESET, LAST) - truth(found.found, LAST)


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
    truth = Bowl(lr=0, warmup=-3, lr_slope=0, curve=0)
    found = [search(truth, NOISES[1], random) for _ in range(number)]
    kept = np.mean([one.keeps for one in found])
    yield Row(what="no effect: the preset is kept", figure=kept, least=0.95)
    covered = [low <= 0 <= high for one in found for low, high in [one.gain.interval]]
    yield Row(what="no effect: the gain's 95 % interval holds 0", figure=np.mean(covered),
              least=least_of(answer.LEVEL, number))  # fmt: skip


def quadratic(
    number: int, random: np.random.Generator, noise: float, **settings: float
) -> Iterator[Row]:
    """A known optimum."""
    # with a cliff the truth has not the surface's form; with so much noise no fit could: by Cramer
    # and Rao's bound the error of a slope of -0.1 is more than a third of that of the best trial
    shaped, known = "cliff" not in settings, noise <= NOISES[0] and "cliff" not in settings
    name = f"slope {settings['lr_slope']}, signal/noise {CURVE / noise:.0f}"
    name = name if shaped else f"cliff, {name}"
    errors, within, covered, used = [], [], [], []
    for count, truth in zip(range(number), bowls(random, **settings), strict=False):
        found = search(truth, noise, random)
        low, high = found.gain.interval
        covered.append(low <= true_gain(found, truth) <= high)
        used.append(not found.keeps)
        for horizon in (LAST, REAL):
            best, surface = truth.best(horizon), found.surface
            trials = [best_trial(found, rung) for rung in (0, len(PLAN.rungs) - 1)]
            tried = (surface.best(horizon), *trials)
            errors.append([abs(math.log(sample[LR]) - best[0]) for sample in tried])
            if count % INTERVAL_EVERY == 0:
                for dimension, value in zip((LR, WARMUP), np.exp(best), strict=True):
                    low, high = surface.interval(dimension, horizon)
                    within.append(low <= value <= high)
    medians = np.median(np.reshape(errors, (number, 2, 3)), axis=0)
    for (error, first, last), where in zip(medians, ("last rung", "real run"), strict=True):
        told = f"{name}, {where}: error in log lr"
        yield Row(what=told, figure=error)
        yield Row(what=f"{told} / of best trial of first rung", figure=error / first,
                  most=1 / 3 if known else math.inf)  # fmt: skip
        yield Row(what=f"{told} / of best trial of last rung", figure=error / last)
    yield Row(what=f"{name}: the optimum's 90 % interval covers it", figure=np.mean(within),
              least=least_of(LEVEL, number // INTERVAL_EVERY) if shaped else -math.inf)  # fmt: skip
    yield Row(what=f"{name}: the gain's 95 % interval covers it", figure=np.mean(covered),
              least=least_of(answer.LEVEL, number))  # fmt: skip
    yield Row(what=f"{name}: the answer is to use what was found", figure=np.mean(used))


def bloomer(number: int, random: np.random.Generator, noise: float = NOISES[0]) -> Iterator[Row]:
    """A long warm-up that looks worse until late, in whole runs and in stopped ones."""
    space, warmups = PLAN.space, []
    for _ in range(number):
        found = search(late_bloomer, noise, random)
        samples = [PRESET, *space.spread(PLAN.rungs[0].trials - 1, int(random.integers(2**31)))]
        stopped = [asha(samples, keep, noise, random)[WARMUP] for keep in (2, 4)]
        warmups.append([found.found[WARMUP], *stopped])
    shares = (np.array(warmups) > space.dimensions[WARMUP].high / 1.5).mean(0)
    what = "late bloomer: a warm-up within 1.5 of the best is found by"
    yield Row(what=f"{what} the search", figure=shares[0], least=0.95)
    yield Row(what=f"{what} ASHA, halving", figure=shares[1], most=0.1)
    yield Row(what=f"{what} ASHA, quartering", figure=shares[2], most=0.1)


def asha(
    samples: Sequence[Mapping], keep: int, noise: float, random: np.random.Generator
) -> Mapping:
    """The best of runs of which one in `keep` goes on at a quarter and at a half of the run."""
    for share in (1 / 4, 1 / 2, 1.0):
        losses = [late_bloomer(one, LAST, share) + random.normal(0, noise) for one in samples]
        samples = [samples[i] for i in np.argsort(losses)[: max(1, len(samples) // keep)]]
    return samples[0]


def rows(number: int, seed: int) -> Iterator[Row]:
    """All rows of the table."""
    random = np.random.default_rng(seed)
    before_seeds = cost(PLAN.rungs, seeds=0)
    yield Row(what="cost before seeds, in real runs (before: 8)", figure=before_seeds, most=2)
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
