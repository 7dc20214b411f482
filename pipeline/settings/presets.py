"""Presets: named runs with their settings and provenance.

To add a preset, add its row to a table in pipeline/settings/recipes, or to ROWS.

Top-1 on ImageNet-21k is measured on held-out images of fall11, over the 21,843 classes of Google's
checkpoints; other class lists give other numbers. The originals were trained from files of full
size; shards of 256 pixels, the default of a build, are smaller. GPU-hours are those of one RTX
3090 in mixed precision, on which timm published throughputs of all sizes; `train PRESET --plan`
estimates the time on other GPUs.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.settings.config import TrainConfig
from pipeline.settings.recipes import (
    augreg,
    big_vision,
    by_weights,
    deit3,
    miil,
    project,
    vit_paper,
)
from support.settings import suggestion
from vit.config import ImageConfig, ViTConfig

ROWS = (
    project.DEMO,
    *(augreg.pretraining(*row) for row in augreg.ROWS),
    project.warmup30(),
    *(vit_paper.pretraining(*row) for row in vit_paper.ROWS),
    *(deit3.pretraining(*row) for row in deit3.ROWS),
    miil.START,
    miil.IN21KP_B16,
    project.IN1K_S32_300EP,
    *(big_vision.baseline(*row) for row in big_vision.BASELINES),
    big_vision.IN1K_B16_300EP,
    *(augreg.finetuning(*row) for row in augreg.FINETUNINGS),
    big_vision.TRANSFER_B32,
    *(vit_paper.finetuning(*row) for row in vit_paper.ROWS),
    *(deit3.finetuning(*row) for row in deit3.ROWS),
    *by_weights.FINETUNINGS,
)
PRESETS = {preset.config.name: preset for preset in ROWS}
# what every run has of its own: its name, the weights that it starts from, the classes of its data
OF_A_RUN = ("name", "init_from", "model.num_classes")


def find_preset(name: str) -> TrainConfig:
    """Settings of a preset; ValueError suggests the nearest name if there is no such preset."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; {suggestion(name, PRESETS)}")
    return PRESETS[name].config


def plain_preset(name: str, settings: Mapping[str, object]) -> TrainConfig:  # noqa: ARG001
    """Settings of a preset, whatever a file adds to them."""
    return find_preset(name)


def read_preset(
    path: Path, base: Callable[[str, Mapping[str, object]], TrainConfig] = plain_preset
) -> TrainConfig:
    """Settings from a preset file; see `read_file`.

    `base` gives the settings of the preset that the file adds to. Raises ValueError if a setting
    breaks a rule.
    """
    preset, settings = read_file(path)
    try:
        return base(preset, settings).replace(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_file(path: Path) -> tuple[str, dict[str, object]]:
    """Name and settings in a preset file, {"preset": name, "settings": {dotted name: value}}.

    Raises ValueError if it has another form.
    """
    try:
        content = json.loads(path.read_text())
        preset, settings = content["preset"], content["settings"]
        if not isinstance(settings, dict):
            raise TypeError(f"settings is a {type(settings).__name__}")
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a preset file ({error!r}); it must be JSON such as "
            '{"preset": "demo", "settings": {"optim.lr": 0.001}}'
        ) from error
    return preset, settings


def nearest_preset(settings: Mapping[str, object]) -> tuple[str, list[str]]:
    """The preset that the settings of a run, by dotted name, are nearest to; what differs from it.

    A run does not record its preset, which may have been renamed since. Settings that may change
    when a run is resumed do not count, nor do those of `OF_A_RUN`. Of presets that are equally near
    it is the one that the run is named after, or else the first.
    """
    parts = ("model.", "images.")
    size = json.dumps({key: value for key, value in settings.items() if key.startswith(parts)})
    best: tuple[str, list[str]] = ("", [])
    for name, preset in PRESETS.items():
        other = deciding(name) if preset.of_weights is None else of_size(name, size)
        if other is None:
            continue
        differs = [each for each, value in other.items() if settings.get(each, value) != value]
        is_own = settings.get("name") == name
        if not best[0] or (len(differs), not is_own) < (len(best[1]), True):
            best = name, differs
    return best


@functools.cache
def deciding(name: str) -> dict[str, object]:
    """The settings of a preset that decide the result of a run."""
    return decisive(PRESETS[name].config)


def decisive(config: TrainConfig) -> dict[str, object]:
    """The settings that decide the result of a run, and are not its own."""
    may_change = {name for name, metadata, _ in config.items() if metadata.get("may_change")}
    flat = config.flat()
    return {name: flat[name] for name in flat if name not in may_change and name not in OF_A_RUN}


@functools.lru_cache(maxsize=1024)  # a list of runs asks for few sizes, again and again
def of_size(name: str, size: str) -> dict[str, object] | None:
    """Those of a preset for weights of the size that a run has; None if there is no such preset.

    `size` are the settings of the run's model and images by dotted name, as JSON.
    """
    settings, parts = json.loads(size), []
    try:
        for kind, prefix in ((ViTConfig, "model."), (ImageConfig, "images.")):
            names = [key for key in kind().flat() if prefix + key in settings]
            parts.append(kind().replace({key: settings[prefix + key] for key in names}))
        return decisive(PRESETS[name].of_weights(*parts))
    except ValueError:  # settings of another version
        return None
