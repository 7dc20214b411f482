"""Search spaces: the values that settings may have, and the named spaces.

    sample {dimension: value} -> settings {dotted name: value} -> TrainConfig.replace

A dimension is a setting with a range or a choice, or a choice of named levels that each stand for
several settings (AugReg's seven strengths of augmentation). To add a space, add a function to
`SPACES`. Nothing here imports torch or Ray.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.stats import qmc

from pipeline.settings.config import TrainConfig
from support.settings import suggestion
from tune.dimension import Choice, Dimension, Range, parse

# at most this many corners are checked before the start
MAX_CORNERS, CANDIDATES = 256, 2048
# the peak rate as a multiple of the preset's, around 1e-3 in the recipes; at the shortest horizon
# the best rate may be several times higher
LR_OF_PRESET, LR_OF_SHORTEST = (0.3, 3.0), 10.0
# the warm-up as a share of a run: it fits a run of any length
WARMUP_OF_RUN = (0.005, 0.5)
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
    levels: Mapping[str, Mapping[str, Mapping[str, object]]] = field(default_factory=dict)
    """Settings that each level of a dimension stands for, if it has levels."""
    shared: Mapping[str, object] = field(default_factory=dict)
    """Settings that differ from the preset and are the same in all trials."""
    rungs: Sequence[str] = ()
    """Rungs of a search of it, if those that the budget allows do not suit."""

    def settings(self, sample: Mapping[str, object]) -> dict[str, object]:
        """Settings of a sample, by dotted name."""
        settings = dict(self.shared)
        for name, value in sample.items():
            settings |= self.levels[name][value] if name in self.levels else {name: value}
        return settings

    def sample_of(self, flat: Mapping[str, object]) -> dict[str, object]:
        """A config as a sample: the dimensions that can express its value, in the range or not."""
        sample = {}
        for name, dimension in self.dimensions.items():
            if name in self.levels:
                rows = self.levels[name].items()
                same = [level for level, settings in rows if settings.items() <= flat.items()]
            elif isinstance(dimension, Choice):
                same = [option for option in dimension.options if alike(option, flat[name])]
            else:
                same = [flat[name]] if not dimension.log or flat[name] > 0 else []
            if same:
                sample[name] = same[0]
        return sample

    def contains(self, sample: Mapping[str, object]) -> bool:
        """Whether a sample has a possible value for each dimension and no others."""
        return sample.keys() == self.dimensions.keys() and all(
            self.dimensions[name].contains(value) for name, value in sample.items()
        )

    @property
    def size(self) -> float:
        """Number of different samples; infinite with a range of real numbers."""
        options = [dimension.options for dimension in self.dimensions.values()]
        return math.prod(math.inf if values is None else len(values) for values in options)

    def spread(self, number: int, seed: int) -> list[dict[str, object]]:
        """`number` different samples, evenly spread; about all of a space that has no more.

        Points of a scrambled Sobol sequence; of a small space all samples in random order.
        """
        if self.size <= max(number, MAX_CORNERS):
            rows = list(itertools.product(*(d.options for d in self.dimensions.values())))
            order = np.random.default_rng(seed).permutation(len(rows))[:number]
            return [self._sample(rows[index]) for index in order]
        sobol, power = qmc.Sobol(len(self.dimensions), rng=seed), max(1, (number - 1).bit_length())
        found, known = {}, -1
        while known < len(found) < number:
            known = len(found)
            # the first of equal samples keeps its place
            found |= {str(one): one for one in map(self.at, sobol.random_base2(power))}
            power += known > 0  # all points so far are a power of two again
        return list(found.values())[:number]

    @cached_property
    def candidates(self) -> list[dict[str, object]]:
        """Samples all over the space, of which a surface chooses the best."""
        return self.spread(CANDIDATES, 0)

    def at(self, shares: Sequence[float]) -> dict[str, object]:
        """The sample at a point of the unit cube."""
        pairs = zip(self.dimensions.values(), shares, strict=True)
        return self._sample(dimension.at(share) for dimension, share in pairs)

    def corners(self) -> list[dict[str, object]]:
        """Samples that show whether all are valid.

        At most MAX_CORNERS combinations of the ends of ranges and the options. Then each of these
        alone, and a value within each range: the ends of a range of real numbers may be whole.
        """
        ends = [
            (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.options
            for dimension in self.dimensions.values()
        ]
        rows = list(itertools.islice(itertools.product(*ends), MAX_CORNERS))
        for place, dimension in enumerate(self.dimensions.values()):
            values = (*ends[place], dimension.at(0.3))
            rows += [(*rows[0][:place], value, *rows[0][place + 1 :]) for value in values]
        return [self._sample(row) for row in rows]

    def _sample(self, row: Sequence[object]) -> dict[str, object]:
        return dict(zip(self.dimensions, row, strict=True))

    def flat(self) -> dict[str, object]:
        """The space as JSON values, with all that a named space or a file stands for."""
        dimensions = {name: str(dimension) for name, dimension in self.dimensions.items()}
        return {"name": self.name, "dimensions": dimensions, "levels": dict(self.levels),
                "shared": dict(self.shared)}  # fmt: skip

    @classmethod
    def of_flat(cls, flat: Mapping[str, object]) -> "Space":
        """The space of `flat`."""
        dimensions = {name: parse(text) for name, text in flat["dimensions"].items()}
        return cls(**{**flat, "dimensions": dimensions})


def alike(one: object, other: object) -> bool:
    """Whether two values are the same but for the rounding of numbers."""
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-5)
    return one == other


def warmup_lr(base: TrainConfig, samples: int) -> Space:  # noqa: ARG001
    """Warm-up and peak learning rate, to be searched before a long run."""
    lowest, highest = LR_OF_PRESET[0] * base.optim.lr, LR_OF_SHORTEST * base.optim.lr
    dimensions = {
        "optim.lr": Range(low=float(f"{lowest:.4g}"), high=float(f"{highest:.4g}"), log=True),
        "optim.warmup": Range(low=WARMUP_OF_RUN[0], high=WARMUP_OF_RUN[1], log=True),
    }
    return Space(name="warmup-lr", dimensions=dimensions)


def warmup_lr_decay(base: TrainConfig, samples: int) -> Space:
    """`warmup_lr` with the weight decay, whose best value depends on the learning rate."""
    space = warmup_lr(base, samples)
    decay = {"optim.weight_decay": Range(low=0.01, high=0.3, log=True)}
    return replace(space, name="warmup-lr-decay", dimensions={**space.dimensions, **decay})


def augment(base: TrainConfig, samples: int) -> Space:  # noqa: ARG001
    """AugReg's 28 settings: augmentation, dropout with stochastic depth, and weight decay."""
    names = ("images.randaugment_layers", "images.randaugment_magnitude", "mix.mixup")
    rates = {"off": 0.0, "on": 0.1}
    levels = {
        "augmentation": {k: dict(zip(names, row, strict=True)) for k, row in AUGREG.items()},
        "regularisation": {k: {"model.dropout": p, "model.drop_path": p} for k, p in rates.items()},
    }
    dimensions = {name: Choice(options=tuple(rows)) for name, rows in levels.items()}
    dimensions["optim.weight_decay"] = Choice(options=(0.03, 0.1))
    # whether strong augmentation helps shows late
    rungs = ("29/64", "8/16", "3/4")
    return Space(name="augment", dimensions=dimensions, levels=levels, rungs=rungs)


def finetune(base: TrainConfig, samples: int) -> Space:  # noqa: ARG001
    """The ViT paper's grid for SGD (its table 4): four learning rates, 10,000 or 20,000 steps."""
    batch = 512
    lengths = tuple(float(f"{steps * batch / samples:.6g}") for steps in (10_000, 20_000))
    shared = {
        **{"optim.name": "sgd", "optim.weight_decay": 0.0, "optim.schedule": "cosine"},
        **{"optim.warmup": 500, "optim.warmup_unit": "steps", "global_batch": batch},
    }
    rates = Choice(options=(0.003, 0.01, 0.03, 0.06))
    dimensions = {"optim.lr": rates, "epochs": Choice(options=lengths)}
    return Space(name="finetune", dimensions=dimensions, shared=shared, rungs=("9/1",))


SPACES: dict[str, Callable[[TrainConfig, int], Space]] = {
    "warmup-lr": warmup_lr,
    "warmup-lr-decay": warmup_lr_decay,
    "augment": augment,
    "finetune": finetune,
}
"""Arguments: the real run with its warm-up as a share, and the images of the training split."""


def make_space(name: str, changes: Sequence[str], base: TrainConfig, samples: int) -> Space:
    """A named space or one from a file, with changes such as "optim.lr=loguniform(1e-4,1e-2)".

    `tune.prepare` checks that the preset takes its values.
    """
    if name in SPACES:
        space = SPACES[name](base, samples)
    elif name.endswith(".json"):
        content = json.loads(Path(name).read_text())
        changes = [f"{key}={value}" for key, value in content.items()] + list(changes)
        space = Space(name=Path(name).stem, dimensions={})
    else:
        raise ValueError(f"unknown space {name!r}; {suggestion(name, (*SPACES, 'a .json file'))}")
    dimensions, levels, shared = dict(space.dimensions), dict(space.levels), dict(space.shared)
    for change in changes:
        setting, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} must be SETTING=RANGE, as optim.lr=loguniform(1e-4,1e-2)")
        try:
            value = parse(text)
        except ValueError as error:
            raise ValueError(f"space {space.name!r}, {setting}: {error}") from error
        kinds = (dimensions, shared) if isinstance(value, Dimension) else (shared, dimensions)
        kinds[0][setting] = value  # one that is changed keeps its place
        kinds[1].pop(setting, None)
        levels.pop(setting, None)
    if not dimensions:
        raise ValueError(f"space {space.name!r} is empty: give at least one setting a range")
    for length in dimensions.keys() & {"optim.warmup", "optim.cooldown"}:
        unit = f"{length}_unit"
        if unit in dimensions or shared.get(unit, "fraction") != "fraction":
            raise ValueError(
                f"space {space.name!r}, {unit}: {length} is searched as a share of the run, which "
                f"fits runs of all lengths; leave out the unit"
            )
    return replace(space, dimensions=dimensions, levels=levels, shared=shared)
