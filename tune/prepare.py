"""Plans a search: preset, space, rungs and data, checked against each other before it starts."""

import dataclasses
import math
from pathlib import Path

from pipeline.data.dataset import set_name
from pipeline.settings.budget import Budget, data_size
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS
from shards.dataset.format import open_set
from tune import transfer
from tune.config import PROBE, SearchConfig
from tune.cost import evaluation_share, trial_s
from tune.plan import Plan, shown
from tune.rungs import Rung, choose_rungs, cost
from tune.space import make_space
from tune.surface import least_runs

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
    if not config.name and preset in PRESETS and PRESETS[preset].of_weights:
        # weights of another size are another search
        config = config.replace({"name": f"{run.name}-{Path(config.space).stem}"})
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
    probes = probes_of(run)
    if config.objective.startswith(PROBE) and config.objective not in probes:
        raise ValueError(
            f"objective ({config.objective}) is no probe of the run; with --base.probe.data it has "
            f"{', '.join(probes) or 'none'}"
        )
    rungs = [Rung.of(text) for text in config.rungs or plan.space.rungs]
    if config.budget is not None or not rungs:
        rungs = rungs_within(plan, Budget(plan.longest(1.0), gpu=gpu, mfu=mfu))
    preset_sample = plan.preset_sample()
    is_inside = plan.space.contains(preset_sample) and plan.is_preset(preset_sample)
    most = plan.space.size + (not is_inside)  # with the preset
    if most < 2:
        raise ValueError(f"space {plan.space.name!r} holds the preset alone: widen it with --set")
    rungs = [dataclasses.replace(rung, trials=int(min(rung.trials, most))) for rung in rungs]
    plan = dataclasses.replace(plan, rungs=tuple(rungs))
    check(plan)
    return plan


def rungs_within(plan: Plan, real: Budget) -> list[Rung]:
    """Rungs that the budget of the search allows; without one, they cost as much as the real run.

    `real` is the cost of the longest trial at the length of the real run. Raises ValueError if
    there is a budget, and the speed of the run is unknown or it is too small.
    """
    budget = plan.config.budget
    if budget is not None and real.unknown:
        raise ValueError(f"budget: {real.unknown}; choose the --rungs instead")
    overhead = evaluation_share(real) if real.unknown else trial_s(real) / real.train_s - 1
    overhead += 0.5 / real.steps  # a trial has a whole number of steps
    share = 1.0 if budget is None else 3600 * budget / real.train_s
    rungs = choose_rungs(share, steps=real.steps, seeds=plan.config.seeds, overhead=overhead)
    if budget is not None and (least := cost(rungs, plan.config.seeds, overhead)) > share:
        hours = math.ceil(least * real.train_s / 36) / 100
        raise ValueError(
            f"budget ({budget:g}): the shortest and fewest trials, {' '.join(map(str, rungs))}, "
            f"take {hours:g} GPU-hours; give it --budget {hours:g} at least"
        )
    return rungs


def probes_of(run: TrainConfig) -> list[str]:
    """Names of the probes of a run."""
    kinds = [f"{shots}shot" for shots in run.probe.shots] + ["knn"] * (run.probe.neighbours > 0)
    return [f"{PROBE}{set_name(place)}/{kind}" for place in run.probe.data for kind in kinds]


def bytes_of_image(run: TrainConfig) -> float:
    """Bytes of a training image in the shards, or IMAGE_BYTES if they cannot be read from here."""
    try:
        shards = open_set(run.data.dir).manifest.splits.get(run.data.train_split, ())
    except OSError:
        return IMAGE_BYTES
    return sum(shard.bytes for shard in shards) / max(1, sum(shard.samples for shard in shards))


def check(plan: Plan) -> None:
    """Raise ValueError if there are too few trials, or if one, or the real run, is invalid."""
    told = plan.preset_sample().keys() == plan.space.dimensions.keys()
    runs = sum(rung.trials - (not told) for rung in plan.rungs)
    if runs < (least := least_runs(len(plan.rungs), len(plan.space.dimensions))):
        raise ValueError(
            f"rungs ({' '.join(map(str, plan.rungs))}) have {runs} trials, and a surface over "
            f"{', '.join(plan.space.dimensions)} takes {least} at least: give them more"
        )
    for horizon in {rung.horizon for rung in plan.rungs}:
        for sample in [None, *plan.space.corners()]:
            where = f"space {plan.space.name!r} at {shown(sample)}, {horizon:.3g} of the run"
            try:
                plan.tuned(sample, horizon).replace({"workers": plan.config.workers or 1})
                plan.run.replace(plan.carried(sample or {}))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
