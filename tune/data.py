"""A job from a preset: its data are opened, and made where they are the embedded ones.

This is where the slow imports begin; Ray has not been started.
"""

from pathlib import Path

from pipeline.settings.config import DIGITS, TrainConfig
from pipeline.settings.presets import PRESETS
from pipeline.train.job import prepare
from tune.config import SearchConfig
from tune.job import SearchJob, name_of
from tune.prepare import assemble


def prepare_job(preset: str, base: TrainConfig, config: SearchConfig) -> SearchJob:
    """Check a search against its data; what does not fit is a ValueError or FileNotFoundError."""
    paths = {"runs_dir": str(Path(base.runs_dir).absolute())}
    if base.data.dir != DIGITS and "://" not in base.data.dir:
        paths["data.dir"] = str(Path(base.data.dir).absolute())
    run = base.replace(paths)
    original = PRESETS[preset]().flat()
    changes = {name: value for name, value in run.flat().items() if value != original[name]}
    # under the name of the search, whose folder holds no run
    job = prepare(run.replace({"name": name_of(preset, config)}))
    location = run.data.dir
    if location == DIGITS:
        location = str(Path(run.runs_dir) / "data" / DIGITS / "shards")
    return assemble(
        preset,
        changes,
        config,
        samples=job.train.samples,
        eval_samples=job.eval.samples,
        num_classes=job.config.model.num_classes,
        data_dir=location,
    )
