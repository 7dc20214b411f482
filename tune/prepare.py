"""A search before anything is started: from a preset, from its parts, or as it was written down.

What does not fit is refused with the name of the setting.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.digits import located
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import find_preset
from tune import transfer
from tune.config import SearchConfig
from tune.job import DATA, SEARCH, SearchJob, horizon_of, name_of, shortened, shown
from tune.space import Space, make_space


def prepare_job(preset: str, base: TrainConfig, config: SearchConfig) -> SearchJob:
    """Check a search against its data; ValueError or FileNotFoundError if they do not fit.

    The embedded data is made if it is not there yet.
    """
    from pipeline.train.job import prepare  # imports PyTorch, which a report does without

    run = base.absolute()
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
    run = find_preset(preset).replace(changes)
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
    """Refuse to resume a search with other settings."""
    before, now = old.flat(), new.flat()
    free = {name for name, metadata, _ in old.config.items() if metadata.get("may_change")}
    before["search"], now["search"] = (
        {k: v for k, v in job["search"].items() if k not in free} for job in (before, now)
    )
    if old.config.sampler == "grid" and old.config.trials != new.config.trials:
        raise ValueError("the points of a grid follow from --trials; take another --name")
    odd = [name for name in before if before[name] != now[name]]
    if odd:
        raise ValueError(
            f"search {old.name!r} was started differently: {', '.join(odd)} differ. Take another "
            f"--name, or go back to its settings"
        )
