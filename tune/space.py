"""Search spaces: the values that settings may have, and the named spaces.

    sample {dimension: value} -> settings {dotted name: value} -> TrainConfig.replace

A dimension is a setting with a range or a choice, or a set of named levels that each stand for
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
from tune.dimension import Choice, Dimension, Levels, Range, parse

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
    shared: Mapping[str, object] = field(default_factory=dict)
    """Settings that differ from the preset and are the same in all trials."""
    rungs: Sequence[str] = ()
    """Rungs of a search of it, if those that the budget allows do not suit."""

    def settings(self, sample: Mapping[str, object]) -> dict[str, object]:
        """Settings of a sample, by dotted name."""
        settings = dict(self.shared)
        for name, value in sample.items():
            dimension = self.dimensions[name]
            has_levels = isinstance(dimension, Levels)
            settings |= dimension.settings[value] if has_levels else {name: value}
        return settings

    def sample_of(self, flat: Mapping[str, object]) -> dict[str, object]:
        """A config as a sample: the dimensions that can express its value, in the range or not."""
        sample = {}
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Levels):
                rows = dimension.settings.items()
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
        sizes = [
            len(d.options) if isinstance(d, Choice) else d.high - d.low + 1 if d.whole else math.inf
            for d in self.dimensions.values()
        ]
        return math.prod(sizes)

    def spread(self, number: int, seed: int) -> list[dict[str, object]]:
        """`number` different samples, evenly spread; about all of a space that has no more.

        Points of a scrambled Sobol sequence; of a small space all samples in random order.
        """
        if self.size <= max(number, MAX_CORNERS):
            whole = [list(range(int(d.low), int(d.high) + 1)) if isinstance(d, Range) else d.options
                     for d in self.dimensions.values()]  # fmt: skip
            rows = list(itertools.product(*whole))
            order = np.random.default_rng(seed).permutation(len(rows))[:number]
            return [self._sample(rows[index]) for index in order]
        sobol, power = qmc.Sobol(len(self.dimensions), rng=seed), max(1, (number - 1).bit_length())
        samples, found = [self.at(shares) for shares in sobol.random_base2(power)], {}
        while len(found) < number:
            known = len(found)
            for sample in samples:
                found.setdefault(str(sample), sample)
            if len(found) == known:
                break
            samples = [self.at(shares) for shares in sobol.random_base2(power)]
            power += 1  # all points so far are a power of two again
        return list(found.values())[:number]

    @cached_property
    def candidates(self) -> list[dict[str, object]]:
        """Samples all over the space, of which a surface chooses the best."""
        return self.spread(CANDIDATES, 0)

    def at(self, shares: Sequence[float]) -> dict[str, object]:
        """The sample at a point of the unit cube."""
        return self._sample(
            dimension.options[min(int(share * len(dimension.options)), len(dimension.options) - 1)]
            if isinstance(dimension, Choice)
            else dimension.at(share)
            for dimension, share in zip(self.dimensions.values(), shares, strict=True)
        )

    def corners(self) -> list[dict[str, object]]:
        """All combinations of the ends of ranges and the options; at most MAX_CORNERS of them."""
        rows = itertools.product(*(dimension.ends for dimension in self.dimensions.values()))
        return [self._sample(row) for row in itertools.islice(rows, MAX_CORNERS)]

    def _sample(self, row: Sequence[object]) -> dict[str, object]:
        return dict(zip(self.dimensions, row, strict=True))

    def check(self, base: TrainConfig) -> None:
        """Raise ValueError with the name of the setting if the preset's config rejects a value."""
        samples = [{name: end} for name, d in self.dimensions.items() for end in d.ends]
        ranges = {name: d for name, d in self.dimensions.items() if isinstance(d, Range)}
        samples += [{name: d.at(0.3)} for name, d in ranges.items()]  # whole numbers are whole
        for sample in [{}, *samples]:
            try:
                base.replace(self.settings(sample))
            except ValueError as error:
                shown = "".join(f", {name} = {self.dimensions[name]}" for name in sample)
                raise ValueError(f"space {self.name!r}{shown}: {error}") from error

    def flat(self) -> dict[str, object]:
        """The space as JSON values, with all that a named space or a file stands for."""
        levels = {n: d.settings for n, d in self.dimensions.items() if isinstance(d, Levels)}
        texts = {name: str(dimension) for name, dimension in self.dimensions.items()}
        shared = dict(self.shared)
        return {"name": self.name, "dimensions": texts, "levels": levels, "shared": shared}

    @classmethod
    def of_flat(cls, flat: Mapping[str, object]) -> "Space":
        """The space of `flat`."""
        levels, dimensions = flat["levels"], {}
        for name, text in flat["dimensions"].items():
            dimension = parse(text)
            if name in levels:
                dimension = Levels(options=dimension.options, settings=levels[name])
            dimensions[name] = dimension
        return cls(name=flat["name"], dimensions=dimensions, shared=flat["shared"])


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
    levels = {level: dict(zip(names, row, strict=True)) for level, row in AUGREG.items()}
    rates = {"off": 0.0, "on": 0.1}
    dropout = {k: {"model.dropout": rate, "model.drop_path": rate} for k, rate in rates.items()}
    dimensions = {
        "augmentation": Levels(options=tuple(levels), settings=levels),
        "regularisation": Levels(options=tuple(dropout), settings=dropout),
        "optim.weight_decay": Choice(options=(0.03, 0.1)),
    }
    # whether strong augmentation helps shows late
    return Space(name="augment", dimensions=dimensions, rungs=("29/64", "8/16", "3/4"))


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

    Raises ValueError with the name of the setting if the config of `base` rejects a value.
    """
    if name in SPACES:
        space = SPACES[name](base, samples)
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
    space = replace(space, dimensions=dimensions, shared=shared)
    for length in dimensions.keys() & {"optim.warmup", "optim.cooldown"}:
        unit = f"{length}_unit"
        if unit in dimensions or shared.get(unit, "fraction") != "fraction":
            raise ValueError(
                f"space {space.name!r}, {unit}: {length} is searched as a share of the run, which "
                f"fits runs of all lengths; leave out the unit"
            )
    space.check(base)
    return space
