"""Initial weights on the machine of the driver, wherever they are, and presets of their size.

a path, s3://..., models:/NAME/VERSION -> fetched -> a path
preset "finetune", --init-from X       -> sized   -> the preset for the model in X
"""

from pathlib import Path

from pipeline.checkpoint.run_folder import RunFolder, fetched_model
from pipeline.data import digits
from pipeline.evaluation.model import EvalModel
from pipeline.settings.config import TrainConfig
from pipeline.settings.location import MLFLOW, absolute
from pipeline.settings.recipes.preset import Preset
from pipeline.train.initial import InitialWeights
from shards.dataset.format import open_set
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


def sized(preset: Preset, location: str, runs_dir: str) -> TrainConfig:
    """Settings of a preset for the weights at a location, of whose size it is."""
    path = fetched(absolute(location), absolute(runs_dir))
    source = EvalModel.open(path, needs_head=False)
    return preset.of_weights(source.model, source.images).replace({"init_from": location})
