"""Search spaces: ranges of dotted settings, and the named spaces.

    sample {dimension: value} -> settings {dotted name: value} -> TrainConfig.replace

A dimension is a setting with a range or a choice, or a set of named levels that each stand for
several settings (AugReg's seven strengths of augmentation). To add a space, add a function to
`SPACES`. Nothing here imports torch or Ray.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.settings.config import TrainConfig
from support.settings import suggestion
from tune.dimension import Choice, Dimension, Levels, Range, parse

# at most this many corners are checked before the start
MAX_CORNERS = 256
# recipes for ImageNet-21k: warm-up of 0.5 to 12 % of the run, lr 3e-4 to 3e-3 around 1e-3
WARMUP_OF_RUN, LR_OF_PRESET = (0.005, 0.12), (0.3, 3.0)
# the longest warm-up, as a share of a trial
MAX_WARMUP = 0.5
# AugReg (arXiv 2106.10270), by the names of the paper: layers and magnitude of RandAugment, mixup
AUGREG = {
    "none": (0, 0.0, 0.0),
    "light1": (2, 0.0, 0.0),
    "light2": (2, 10.0, 0.2),
    "medium1": (2, 15.0, 0.2),
    "medium2": (2, 15.0, 0.5),
    "strong1": (2, 20.0, 0.5),
    "strong2": (2, 20.0, 0.8),
}


@dataclass(frozen=True, kw_only=True)
class Space:
    """The settings that the trials of a search differ in."""

    name: str
    dimensions: Mapping[str, Dimension]
    shared: Mapping[str, object] = field(default_factory=dict)
    """Settings that differ from the preset and are the same in all trials."""

    def settings(self, sample: Mapping[str, object]) -> dict[str, object]:
        """Settings of a sample, by dotted name."""
        settings = dict(self.shared)
        for name, value in sample.items():
            dimension = self.dimensions[name]
            has_levels = isinstance(dimension, Levels)
            settings |= dimension.settings[value] if has_levels else {name: value}
        return settings

    def at(self, shares: Sequence[float]) -> dict[str, object]:
        """The sample at a point of the unit cube."""
        dimensions = zip(self.dimensions.items(), shares, strict=True)
        return {name: dimension.at(share) for (name, dimension), share in dimensions}

    def contains(self, sample: Mapping[str, object]) -> bool:
        """Whether a sample has a possible value for each dimension and no others."""
        return sample.keys() == self.dimensions.keys() and all(
            self.dimensions[name].contains(value) for name, value in sample.items()
        )

    def grid(self, most: int) -> list[dict[str, object]]:
        """All options with the most points of each range that give at most `most` samples.

        Raises ValueError if the ends of the ranges give more than that.
        """
        least = self._grid_size(2)
        if least > most:
            raise ValueError(
                f"a grid over {', '.join(self.dimensions)} has at least {least} points, `trials` "
                f"leaves {most} in addition to the baseline; set --trials {least + 1}"
            )
        number = 2
        while number < most and self._grid_size(number + 1) <= most:
            number += 1
        return list(self._grid(number))

    def corners(self) -> list[dict[str, object]]:
        """All combinations of the ends of ranges and the options; at most MAX_CORNERS of them."""
        return list(itertools.islice(self._grid(2), MAX_CORNERS))

    def _grid(self, number: int) -> Iterator[dict[str, object]]:
        columns = [dimension.points(number) for dimension in self.dimensions.values()]
        return (dict(zip(self.dimensions, row, strict=True)) for row in itertools.product(*columns))

    def _grid_size(self, number: int) -> int:
        return math.prod(len(dimension.points(number)) for dimension in self.dimensions.values())

    def check(self, base: TrainConfig) -> None:
        """Raise ValueError with the name of the setting if the preset's config rejects a value."""
        samples = [{name: end} for name, d in self.dimensions.items() for end in d.points(2)]
        for sample in [{}, *samples]:
            try:
                base.replace(self.settings(sample))
            except ValueError as error:
                shown = "".join(f", {name} = {self.dimensions[name]}" for name in sample)
                raise ValueError(f"space {self.name!r}{shown}: {error}") from error


def warmup_lr(base: TrainConfig, scale: float, samples: int) -> Space:  # noqa: ARG001
    """Warm-up and peak learning rate, to be searched before a long run."""
    low, high = (min(MAX_WARMUP, share * scale) for share in WARMUP_OF_RUN)
    lowest, highest = (float(f"{base.optim.lr * factor:.4g}") for factor in LR_OF_PRESET)
    dimensions = {
        "optim.lr": Range(low=lowest, high=highest, log=True),
        "optim.warmup": Range(low=low, high=high, log=True),
    }
    shared = {"optim.warmup_unit": "fraction"}
    return Space(name="warmup-lr", dimensions=dimensions, shared=shared)


def warmup_lr_decay(base: TrainConfig, scale: float, samples: int) -> Space:
    """`warmup_lr` with the weight decay, whose best value depends on the learning rate."""
    space = warmup_lr(base, scale, samples)
    decay = {"optim.weight_decay": Range(low=0.01, high=0.3, log=True)}
    return replace(space, name="warmup-lr-decay", dimensions={**space.dimensions, **decay})


def augment(base: TrainConfig, scale: float, samples: int) -> Space:  # noqa: ARG001
    """AugReg's 28 settings: augmentation, dropout with stochastic depth, and weight decay."""
    names = ("images.randaugment_layers", "images.randaugment_magnitude", "mix.mixup")
    levels = {level: dict(zip(names, row, strict=True)) for level, row in AUGREG.items()}
    rates = {"off": 0.0, "on": 0.1}
    dropout = {k: {"model.dropout": rate, "model.drop_path": rate} for k, rate in rates.items()}
    dimensions = {
        "augmentation": Levels(options=tuple(levels), settings=levels),
        "regularisation": Levels(options=tuple(dropout), settings=dropout),
        "optim.weight_decay": Choice(options=(0.03, 0.1)),
    }
    return Space(name="augment", dimensions=dimensions)


def finetune(base: TrainConfig, scale: float, samples: int) -> Space:  # noqa: ARG001
    """The ViT paper's grid of learning rates for SGD (its table 4), at 10,000 or 20,000 steps."""
    batch = 512
    lengths = tuple(float(f"{steps * batch / samples:.6g}") for steps in (10_000, 20_000))
    rates = Choice(options=(0.003, 0.01, 0.03, 0.06))
    shared = {
        **{"optim.name": "sgd", "optim.weight_decay": 0.0, "optim.schedule": "cosine"},
        **{"optim.warmup": 500, "optim.warmup_unit": "steps", "global_batch": batch},
    }
    dimensions = {"optim.lr": rates, "epochs": Choice(options=lengths)}
    return Space(name="finetune", dimensions=dimensions, shared=shared)


SPACES: dict[str, Callable[[TrainConfig, float, int], Space]] = {
    "warmup-lr": warmup_lr,
    "warmup-lr-decay": warmup_lr_decay,
    "augment": augment,
    "finetune": finetune,
}
"""Arguments: the preset carried to the length of a trial, the factor from a share of the real run
to a share of a trial, and the number of images of the training split."""


def make_space(
    name: str, changes: Sequence[str], base: TrainConfig, *, scale: float, samples: int
) -> Space:
    """A named space or one from a file, with changes such as "optim.lr=loguniform(1e-4,1e-2)".

    Raises ValueError with the name of the setting if the config of `base` rejects a value.
    """
    if name in SPACES:
        space = SPACES[name](base, scale, samples)
    elif name.endswith(".json"):
        content = json.loads(Path(name).read_text())
        changes = [f"{key}={value}" for key, value in content.items()] + list(changes)
        space = Space(name=Path(name).stem, dimensions={})
    else:
        raise ValueError(f"unknown space {name!r}; {suggestion(name, (*SPACES, 'a .json file'))}")
    dimensions, shared = dict(space.dimensions), dict(space.shared)
    for change in changes:
        setting, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} must be SETTING=RANGE, as optim.lr=loguniform(1e-4,1e-2)")
        try:
            value = parse(text)
        except ValueError as error:
            raise ValueError(f"space {space.name!r}, {setting}: {error}") from error
        searched = isinstance(value, Range | Choice)
        (dimensions if searched else shared)[setting] = value
        (shared if searched else dimensions).pop(setting, None)
    if not dimensions:
        raise ValueError(f"space {space.name!r} is empty: give at least one setting a range")
    space = Space(name=space.name, dimensions=dimensions, shared=shared)
    space.check(base)
    return space
