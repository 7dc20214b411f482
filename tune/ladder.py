"""Which trials a search runs: rung by rung, as a pure function of the trials that have ended.

    spread points and the preset -> the best of them and the preset -> ... -> pairs that confirm

A killed search plans the same trials again, and a test needs no Ray to run thousands of searches.
"""

from collections.abc import Mapping, Sequence

from tune import transfer
from tune.plan import Plan
from tune.surface import Run, Surface
from tune.trial import DONE, ENDED, Trial


def planned(plan: Plan, trials: Sequence[Trial]) -> list[Trial]:
    """All trials that can be planned by now: of the rungs up to the first that has not ended.

    Raises ValueError if a rung has ended without a completed trial.
    """
    ended = {trial.name: trial for trial in trials if trial.status in ENDED}
    wanted = first_rung(plan)
    for rung in range(1, len(plan.rungs) + 1):
        before = [ended[t.name] for t in wanted if t.rung == rung - 1 and t.name in ended]
        if len(before) < sum(trial.rung == rung - 1 for trial in wanted):
            break
        if not any(trial.status == DONE and trial.sample for trial in before):
            raise ValueError(
                f"all trials of rung {rung} but the preset diverged ({before[-1].outcome.reason}); "
                f"search lower learning rates, such as --set 'optim.lr=loguniform(1e-5,1e-3)'"
            )
        is_last = rung == len(plan.rungs)
        wanted += confirmation(plan, trials) if is_last else next_rung(plan, rung, before)
    return wanted


def first_rung(plan: Plan) -> list[Trial]:
    """The preset, what was best in earlier searches, and spread points."""
    number, control = plan.rungs[0].trials - 1, plan.preset_sample()
    spread = plan.space.spread(min(number + 1 + len(plan.first), 2**15), plan.config.seed)
    samples = [*plan.first, *(s for s in spread if s not in plan.first)]
    samples = [s for s in samples if s != control or not plan.is_preset(s)]
    return trials_of(plan, 0, samples[:number])


def next_rung(plan: Plan, rung: int, before: Sequence[Trial]) -> list[Trial]:
    """The preset, and the best trials of the rung before."""
    best = [trial.sample for trial in ranked(plan, before) if trial.sample]
    return trials_of(plan, rung, best[: plan.rungs[rung].trials - 1])


def ranked(plan: Plan, trials: Sequence[Trial]) -> list[Trial]:
    """The completed trials: those of later rungs first, and the best of a rung first."""
    sign, key = plan.config.sign, plan.config.objective
    done = [trial for trial in trials if trial.status == DONE]
    return sorted(done, key=lambda trial: (-trial.rung, sign * trial.value(key)))


def trials_of(plan: Plan, rung: int, samples: Sequence[Mapping[str, object]]) -> list[Trial]:
    """A rung: the preset first, then the samples, all with the rung's own seed."""
    seed = plan.config.seed + rung
    return [
        Trial(rung=rung, place=place, sample=sample, seed=seed)
        for place, sample in enumerate([None, *samples])
    ]


def confirmation(plan: Plan, trials: Sequence[Trial]) -> list[Trial]:
    """Pairs of the preset and of the settings found, each pair with a seed of its own."""
    rung, best = len(plan.rungs), found(plan, trials)
    if plan.is_preset(best):
        return []
    return [
        Trial(rung=rung, place=2 * pair + side, sample=one, seed=plan.config.seed + rung + pair)
        for pair in range(plan.config.seeds)
        for side, one in enumerate((None, best))
    ]


def found(plan: Plan, trials: Sequence[Trial]) -> Mapping[str, object]:
    """The best settings at the length of the last rung; pairs keep those that they began with."""
    begun = (trial.sample for trial in trials if trial.rung == len(plan.rungs) and trial.sample)
    return next(begun, None) or surface(plan, trials).best(plan.rungs[-1].horizon)


def surface(plan: Plan, trials: Sequence[Trial]) -> Surface:
    """The surface over the trials of all rungs; those that confirm take no part in the choice."""
    control, key = plan.preset_sample(), plan.config.objective
    runs = [
        Run(
            horizon=plan.horizon(trial.rung),
            block=trial.rung,
            sample=control if trial.sample is None else trial.sample,
            loss=plan.config.sign * trial.value(key),
        )
        for trial in trials
        if trial.status == DONE and trial.rung < len(plan.rungs)
    ]
    slopes = transfer.slopes(plan.run.optim.name)
    return Surface.fit(plan.space, runs, slopes=slopes, preset=control, seed=plan.config.seed)
