"""Plans a search: preset, space, rungs, data and cost, checked before it starts."""

import dataclasses
import itertools
import math

from pipeline.data.dataset import set_name
from pipeline.settings.budget import START_S, Budget, data_size
from pipeline.settings.config import TrainConfig
from shards.dataset.format import open_set
from support.console import table
from tune import transfer
from tune.config import PROBE, Rung, SearchConfig, cost, part
from tune.plan import Plan, shown
from tune.space import make_space
from tune.surface import least_runs

# by how much the rungs differ in trials and in length, and trials of the last one
GROWTH, LAST = 4, 3
# parts of the run of which the budget chooses one as the length of the last rung
PARTS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# a shorter schedule than this says little about a warm-up
MIN_STEPS = 50
# bytes of an image in shards of 256 pixels, where they cannot be read: those of ImageNet-1k
IMAGE_BYTES = 25_700


def make_plan(
    preset: str,
    base: TrainConfig,
    config: SearchConfig,
    *,
    gpu: str = "H100",
    mfu: float | None = None,
) -> Plan:
    """Plan a search; ValueError or OSError if preset, space, rungs and data do not fit.

    Without the data, the published size of its set counts. A budget in hours is in hours of a kind
    of GPU, at a share of its peak, as for `pipeline train --plan`.
    """
    run = base.absolute()
    samples, eval_samples, num_classes, _ = data_size(run)
    # the ranges are around the preset at the batch of the trials
    batch = config.global_batch or run.global_batch
    control = transfer.to_trial(run, horizon=1.0, batch=batch, samples=samples)
    plan = Plan(
        preset=preset,
        run=run,
        config=config,
        space=make_space(config.space, config.set, control, samples),
        rungs=(),
        samples=samples,
        eval_samples=eval_samples,
        num_classes=num_classes,
        image_bytes=bytes_of_image(run),
    )
    check_settings(plan)
    rungs = [Rung.of(text) for text in config.rungs or plan.space.rungs]
    if config.budget is not None or not rungs:
        rungs = rungs_within(plan, Budget(plan.longest(1.0), gpu=gpu, mfu=mfu))
    preset_sample = plan.preset_sample()
    is_inside = plan.space.contains(preset_sample) and plan.is_preset(preset_sample)
    most = plan.space.size + (not is_inside)  # with the preset
    rungs = [dataclasses.replace(rung, trials=int(min(rung.trials, most))) for rung in rungs]
    plan = dataclasses.replace(plan, rungs=tuple(rungs))
    check_trials(plan)
    return plan


def check_settings(plan: Plan) -> None:
    """Raise ValueError if a trial, or the real run with its settings, or the objective is invalid.

    What is valid for the length of the real run is so for any: lengths of a schedule are shares.
    """
    for sample in [None, *plan.space.corners()]:
        try:
            plan.tuned(sample, 1.0).replace({"workers": plan.config.workers or 1})
            plan.run.replace(plan.carried(sample or {}))
        except ValueError as error:
            raise ValueError(f"space {plan.space.name!r} at {shown(sample)}: {error}") from error
    probe = plan.run.probe
    kinds = [f"{shots}shot" for shots in probe.shots] + ["knn"] * (probe.neighbours > 0)
    probes = [f"{PROBE}{set_name(place)}/{kind}" for place in probe.data for kind in kinds]
    if plan.config.objective.startswith(PROBE) and plan.config.objective not in probes:
        raise ValueError(
            f"objective ({plan.config.objective}) is no probe of the run; with --base.probe.data "
            f"it has {', '.join(probes) or 'none'}"
        )


def check_trials(plan: Plan) -> None:
    """Raise ValueError if there are too few trials for an answer."""
    if plan.rungs[0].trials < 2:
        raise ValueError(f"space {plan.space.name!r} holds the preset alone: widen it with --set")
    told = plan.preset_sample().keys() == plan.space.dimensions.keys()
    runs = sum(rung.trials - (not told) for rung in plan.rungs)
    if runs < (least := least_runs(len(plan.rungs), len(plan.space.dimensions))):
        raise ValueError(
            f"rungs ({' '.join(map(str, plan.rungs))}) have {runs} trials, and a surface over "
            f"{', '.join(plan.space.dimensions)} takes {least} at least: give them more"
        )


def bytes_of_image(run: TrainConfig) -> float:
    """Bytes of a training image in the shards, or IMAGE_BYTES if they cannot be read from here."""
    try:
        shards = open_set(run.data.dir).manifest.splits.get(run.data.train_split, ())
    except OSError:
        return IMAGE_BYTES
    return sum(shard.bytes for shard in shards) / max(1, sum(shard.samples for shard in shards))


def rungs_within(plan: Plan, real: Budget) -> list[Rung]:
    """Rungs that the budget of the search allows; without one, they cost as much as the real run.

    `real` is the cost of the longest trial at the length of the real run. Raises ValueError if
    there is a budget, and the speed of the run is unknown or it is too small.
    """
    budget, seeds = plan.config.budget, plan.config.seeds
    if budget is not None and real.unknown:
        raise ValueError(f"budget: {real.unknown}; choose the --rungs instead")
    share = 1.0 if budget is None else 3600 * budget / real.train_s
    extra = overhead(real) + 0.5 / real.steps  # a trial has a whole number of steps
    rungs = choose_rungs(share, steps=real.steps, seeds=seeds, overhead=extra)
    if budget is not None and (least := cost(rungs, seeds, extra)) > share:
        hours = math.ceil(least * real.train_s / 36) / 100
        raise ValueError(
            f"budget ({budget:g}): the shortest and fewest trials, {' '.join(map(str, rungs))}, "
            f"take {hours:g} GPU-hours; give it --budget {hours:g} at least"
        )
    return rungs


def choose_rungs(share: float, *, steps: int, seeds: int, overhead: float) -> list[Rung]:
    """The rungs with the longest trials that cost at most `share` of the real run.

    A trial has at least MIN_STEPS of the `steps` of the real run. Where that is too much, the rungs
    have fewer trials; where even the fewest are, they are taken all the same.
    """
    for firsts in ((32, 24), (16, 12, 8)):
        for parts, first in itertools.product(PARTS, firsts):
            trials = (first, max(LAST + 1, first // GROWTH), LAST)
            lengths = (1 / parts / GROWTH**2, 1 / parts / GROWTH, 1 / parts)
            rungs = [Rung(trials=n, horizon=h) for n, h in zip(trials, lengths, strict=True)]
            if lengths[0] * steps < MIN_STEPS:
                break
            if cost(rungs, seeds, overhead) <= share:
                return rungs
    parts = max(1, steps // MIN_STEPS)
    last = Rung(trials=LAST, horizon=1 / max(1, parts // (GROWTH - 1)))
    return [Rung(trials=8, horizon=1 / parts), last][parts == 1 :]


def overhead(trial: Budget) -> float:
    """The evaluation and, if its share is known, the start of a trial, in trainings of it."""
    # a forward pass is a third of a training step
    evaluation = trial.eval_samples / (3 * trial.images)
    return evaluation if trial.unknown else evaluation + START_S / trial.train_s


def trial_hours(trial: Budget) -> float | None:
    """GPU-hours of a trial with its evaluation and start; None if its speed is unknown."""
    return None if trial.unknown else trial.train_s * (1 + overhead(trial)) / 3600


def budgets(plan: Plan, *, gpu: str, mfu: float | None) -> list[tuple[int, Budget]]:
    """Trials of each rung and of the confirmation, with what one of them takes at most."""
    horizons = [plan.horizon(rung) for rung in range(len(plan.rungs) + 1)]
    longest = [Budget(plan.longest(horizon), gpu=gpu, mfu=mfu) for horizon in horizons]
    return [(plan.trials(rung), trial) for rung, trial in enumerate(longest)]


def described(plan: Plan, *, gpu: str, mfu: float | None) -> str:
    """The planned search and its cost, on GPUs as in `pipeline train --plan`, for the console."""
    rows = [["", "trials", "of the run", "steps", "images", "evaluated", "GPU-hours", "TB read"]]
    images, read, hours = 0, 0.0, []
    for rung, (trials, one) in enumerate(budgets(plan, gpu=gpu, mfu=mfu)):
        trained, evaluated, each = trials * one.images, trials * plan.eval_samples, trial_hours(one)
        terabytes = (trained + evaluated) * plan.image_bytes / 1e12
        images += trained
        read += terabytes
        hours.append(each and trials * each)
        name = f"rung {rung + 1}" if rung < len(plan.rungs) else "confirmation"
        counts = [f"{number:,}" for number in (one.steps, trained, evaluated)]
        amounts = [f"{hours[-1]:,.1f}" if each else "unknown", f"{terabytes:.3g}"]
        rows.append([name, f"{trials}", part(plan.horizon(rung)), *counts, *amounts])
    real = Budget(plan.run.replace({"workers": 1, "min_workers": None}), gpu=gpu, mfu=mfu)
    total = f"{images / real.images:.2g} real runs"
    if None not in hours and not real.unknown:
        whole = real.seconds / 3600
        total += f" in images; {sum(hours):,.0f} GPU-hours on {real.gpu.name}, of {whole:,.0f} of "
        total += f"the real run ({sum(hours) / whole:.0%}), with evaluations and starts"
    facts = {
        "search": f"{plan.name}, for {plan.config.objective}",
        "space": "; ".join(f"{name} {one}" for name, one in plan.space.dimensions.items()),
        **({"shared": str(dict(plan.space.shared))} if plan.space.shared else {}),
        "cost": f"{total}; {read:.3g} TB read",
    }
    lines = [f"{name:<10}{text}" for name, text in facts.items()]
    return "\n".join([*lines, "", table(rows)])
