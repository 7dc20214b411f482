"""Initial weights on the machine of the driver, wherever they are, and presets of their size.

a path, s3://..., models:/NAME/VERSION -> fetched -> a path
preset "finetune", --init-from X       -> sized   -> the preset for the model in X
"""

import json
from functools import partial
from pathlib import Path

from pipeline.checkpoint.local import CONFIG
from pipeline.checkpoint.run_folder import SEARCH, RunFolder, fetched_model
from pipeline.data import digits
from pipeline.evaluation.model import EvalModel
from pipeline.settings.config import TrainConfig
from pipeline.settings.location import MLFLOW, absolute
from pipeline.settings.recipes.preset import Preset
from pipeline.train.initial import InitialWeights
from shards.dataset import store
from shards.dataset.format import open_set
from shards.dataset.store import with_retries
from support.redact import redact


def fetched(location: str, runs_dir: str) -> Path:
    """The path of a run, a checkpoint or a file; what is at an address is copied here first.

    Models of MLflow are those of the server of the runs in `runs_dir`. Raises FileNotFoundError if
    there is nothing.
    """
    if location.startswith(MLFLOW):
        from pipeline.tracking.mlflow_weights import fetched_weights  # imports MLflow

        return fetched_weights(location, RunFolder.of(runs_dir, "run").path.parent)
    path = fetched_model(location)
    if not path.exists():
        raise FileNotFoundError(
            f"init_from {path} does not exist; give a run, a checkpoint, or a file of weights"
        )
    return path


def planned(config: TrainConfig, *, verbose: bool) -> str:
    """What becomes of the initial weights of a run whose number of classes is known.

    One line, and with `verbose` one for each key; or why it is not known from here.
    """
    try:
        path = fetched(config.init_from, config.runs_dir)
        classes: tuple[str, ...] = ()
        if config.init_head != "drop":
            classes = open_set(digits.located(config.data.dir, config.runs_dir)).manifest.classes
    except OSError as error:  # it does not exist, or this machine may not read it
        return f"not looked at: {redact(str(error))}"
    loaded = InitialWeights.of(path, config, tuple(classes)).loaded
    return "\n".join([str(loaded), *(loaded.lines() if verbose else ())])


def sized(
    preset: Preset, location: str, runs_dir: str, name: str | None = None, begun_in: str = CONFIG
) -> TrainConfig:
    """Settings of a preset for the weights at a location, of whose size it is.

    If a run was begun with them, that of the `name` or of the preset, the size is its own: they may
    be gone, or be others by now. `begun_in` is the file that tells, of a run or of a search, or "".
    Raises ValueError if there are several such runs.
    """
    place = absolute(location), absolute(runs_dir)
    source = begun(preset, *place, name, begun_in) if begun_in else None
    source = source or EvalModel.open(fetched(*place), needs_head=False)
    return preset.of_weights(source.model, source.images).replace({"init_from": location})


def begun(
    preset: Preset, location: str, runs_dir: str, name: str | None, file: str
) -> TrainConfig | None:
    """Settings of the run or search that was begun with these weights; None without one."""
    names, found = [name], {}
    if not name:
        system, root = store.locate(runs_dir)
        infos = with_retries(partial(store.listing, system, root), store.absolute(runs_dir))
        names = [i.base_name for i in infos if i.base_name.startswith(f"{preset.config.name}-")]
    for folder in names:
        content = json.loads(RunFolder.of(runs_dir, folder).read(file) or "{}")
        settings = content.get("run", {}) if file == SEARCH else content
        if settings.get("init_from") != redact(location):
            continue
        known = TrainConfig().flat()  # settings of other versions are ignored
        run = TrainConfig().replace({k: v for k, v in settings.items() if k in known})
        usual = preset.of_weights(run.model, run.images).name
        if name or folder == usual or (file == SEARCH and folder.startswith(f"{usual}-")):
            found[usual] = run
    if len(found) > 1:
        raise ValueError(
            f"{', '.join(found)} in {store.absolute(runs_dir)} were all begun with init_from "
            f"{redact(location)}: give the --name of the one to continue, or another"
        )
    return next(iter(found.values()), None)
