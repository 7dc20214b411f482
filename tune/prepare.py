"""A job from its parts, new or as it was written down; what does not fit is refused by name."""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS
from tune import transfer
from tune.config import SearchConfig
from tune.job import DATA, SEARCH, SearchJob, horizon_of, shortened, shown
from tune.space import Space, make_space

# a search can be gone on with at other values of these
MAY_CHANGE = {"trials", "seeds", "top", "concurrent"}


def read_job(folder: Path) -> SearchJob:
    """The job of a search that was started; what is no folder of one is a ValueError."""
    path = folder / SEARCH
    if not path.is_file():
        raise ValueError(f"{folder} is no search: it has no {SEARCH}")
    content = json.loads(path.read_text())
    config = content["search"]
    config = SearchConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    return assemble(
        content["preset"],
        content["changes"],
        config,
        **{name: content[name] for name in DATA},
    )


def assemble(
    preset: str,
    changes: Mapping[str, object],
    config: SearchConfig,
    *,
    samples: int,
    eval_samples: int,
    num_classes: int,
    data_dir: str,
) -> SearchJob:
    """A job from its parts; a space that does not fit is a ValueError with the setting's name."""
    run = PRESETS[preset]().replace(changes)
    short = shortened(run, config, samples)
    scale = 1 / horizon_of(config) if config.transfer == "examples" else 1.0
    space = make_space(config.space, config.set, short, scale=scale, samples=samples)
    check_decay(space, short, config)
    job = SearchJob(
        preset=preset,
        changes=changes,
        config=config,
        space=space,
        samples=samples,
        eval_samples=eval_samples,
        num_classes=num_classes,
        data_dir=data_dir,
    )
    for corner in space.corners():
        check_corner(job, corner)
    if config.sampler == "grid":
        space.grid(config.trials - 1)
    return job


def check_corner(job: SearchJob, sample: Mapping[str, object]) -> None:
    """Refuse a space with a sample whose config, here or carried to the real run, is refused."""
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
    """Refuse a hold on lr x weight_decay that cannot hold or has no effect."""
    if config.decay == "alone":
        return
    if "optim.weight_decay" in space.dimensions or "optim.lr" not in space.dimensions:
        raise ValueError(
            "decay 'product' follows optim.lr while optim.weight_decay is not searched itself; "
            "search optim.lr alone, or set --decay alone"
        )
    if not short.optim.decay_scaled_by_lr:
        raise ValueError(
            "decay 'product' has no effect where optim.decay_scaled_by_lr is False: the decay does "
            "not follow the rate there; set --decay alone"
        )


def check_same(old: SearchJob, new: SearchJob) -> None:
    """Refuse to go on with a search of other settings."""
    before, now = old.flat(), new.flat()
    before["search"], now["search"] = (
        {k: v for k, v in job["search"].items() if k not in MAY_CHANGE} for job in (before, now)
    )
    if old.config.sampler == "grid" and old.config.trials != new.config.trials:
        raise ValueError("the points of a grid follow from --trials; take another --name")
    odd = [name for name in before if before[name] != now[name]]
    if odd:
        raise ValueError(
            f"search {old.name!r} was started differently: {', '.join(odd)} differ. Take another "
            f"--name, or go back to its settings"
        )
