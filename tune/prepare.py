"""Makes a search job from a preset and its data, or from the folder of a search, and checks it.

Errors name the setting that does not fit.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.digits import located
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import find_preset
from tune import transfer
from tune.config import SearchConfig
from tune.job import DATA, SEARCH, SearchJob, name_of, shown
from tune.space import Space, make_space


def prepare_job(preset: str, base: TrainConfig, config: SearchConfig) -> SearchJob:
    """Check a search against its data; ValueError or FileNotFoundError if they do not fit.

    Builds the embedded data if it is missing.
    """
    from pipeline.train.job import prepare  # imports PyTorch, which a report does not need

    run = base.absolute()
    if "://" in run.runs_dir:
        raise ValueError(
            f"runs_dir ({run.runs_dir}) must be a folder that every node sees, because a search "
            f"follows its trials there; the run with the best settings may have a prefix"
        )
    original = find_preset(preset).flat()
    changes = {name: value for name, value in run.flat().items() if value != original[name]}
    # under the name of the search, in whose folder there is no run
    job = prepare(run.replace({"name": name_of(preset, config)}))
    return assemble(
        preset,
        changes,
        config,
        samples=job.train.samples,
        eval_samples=job.eval.samples,
        num_classes=job.config.model.num_classes,
        data_dir=located(run.data.dir, run.runs_dir),
    )


def read_job(folder: Path) -> SearchJob:
    """The job of a search that was started; ValueError if the folder is not that of a search."""
    path = folder / SEARCH
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a search: it has no {SEARCH}")
    content = json.loads(path.read_text())
    config = SearchConfig().replace(content["search"])
    data = {name: content[name] for name in DATA}
    return assemble(content["preset"], content["changes"], config, **data)


def assemble(
    preset: str, changes: Mapping[str, object], config: SearchConfig, **data: int | str
) -> SearchJob:
    """A job from its parts and the fields in DATA; ValueError if the space does not fit."""
    space = Space(name=config.space, dimensions={})
    job = SearchJob(preset=preset, changes=changes, config=config, space=space, **data)
    short, scale = job.short, 1 / job.horizon if config.transfer == "examples" else 1.0
    space = make_space(config.space, config.set, short, scale=scale, samples=job.samples)
    check_decay(space, short, config)
    job = dataclasses.replace(job, space=space)
    for corner in space.corners():
        check_corner(job, corner)
    if config.sampler == "grid":
        space.grid(config.trials - 1)
    return job


def check_corner(job: SearchJob, sample: Mapping[str, object]) -> None:
    """Raise ValueError if the config of a sample, for a trial or the real run, is invalid."""
    where = f"space {job.space.name!r} at {shown(sample)}"
    try:
        settings = job.settings(sample)
        config = job.tuned(settings)
        job.run.replace(job.carried(settings))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for name in ("warmup", "cooldown"):
        share = transfer.share_of_run(config, name, job.samples)
        if share >= 1:
            raise ValueError(
                f"{where}: optim.{name} takes {share:.0%} of a trial; give it a shorter range, or "
                f"set --horizon above {job.horizon * share:.2g}"
            )


def check_decay(space: Space, short: TrainConfig, config: SearchConfig) -> None:
    """Raise ValueError if lr x weight_decay cannot be held constant, or doing so has no effect."""
    if config.decay == "alone":
        return
    if "optim.weight_decay" in space.dimensions or "optim.lr" not in space.dimensions:
        raise ValueError(
            "decay 'product' sets optim.weight_decay from optim.lr, so only optim.lr may be "
            "searched; search optim.lr without optim.weight_decay, or set --decay alone"
        )
    if not short.optim.decay_scaled_by_lr:
        raise ValueError(
            "decay 'product' has no effect if optim.decay_scaled_by_lr is False, since the decay "
            "does not follow the rate then; set --decay alone"
        )


def check_same(old: SearchJob, new: SearchJob) -> None:
    """Raise ValueError if the settings of a resumed search differ from those it started with."""
    before, now = old.flat(), new.flat()
    may_change = {name for name, metadata, _ in old.config.items() if metadata.get("may_change")}
    for search in (before["search"], now["search"]):
        for name in may_change:
            del search[name]
    if old.config.sampler == "grid" and old.config.trials != new.config.trials:
        raise ValueError("the points of a grid depend on --trials; choose another --name")
    different = [name for name in before if before[name] != now[name]]
    if different:
        raise ValueError(
            f"search {old.name!r} was started with other settings: {', '.join(different)} differ; "
            f"restore them, or choose another --name"
        )
