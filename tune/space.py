"""Search spaces: the values that settings may have, and the named spaces.

    sample {dimension: value} -> settings {dotted name: value} -> TrainConfig.replace

A dimension is a setting with a range or a choice, or a set of named levels that each stand for
several settings (AugReg's seven strengths of augmentation). To add a space, add a function to
`SPACES`. Nothing here imports torch or Ray.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.stats import qmc

from pipeline.settings.config import TrainConfig
from support.settings import suggestion

CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)
# at most this many corners are checked before the start
MAX_CORNERS = 256
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
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError if the range is empty or infinite."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"range {self} must have finite ends")
        if self.low >= self.high:
            raise ValueError(f"range {self} is empty: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"range {self} is logarithmic: low must be above 0")

    def __str__(self) -> str:
        kind = "randint" if self.whole else "loguniform" if self.log else "uniform"
        return f"{kind}({self.low:.6g},{self.high:.6g})"

    def at(self, share: float) -> float | int:
        """The value at a share of the way from low to high, to six digits."""
        if self.whole:
            return min(int(self.high), int(self.low + share * (self.high - self.low + 1)))
        if self.log:
            value = math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
        else:
            value = self.low * (1 - share) + self.high * share
        return min(max(float(f"{value:.6g}"), self.low), self.high)

    def share(self, value: float) -> float:
        """Position of a value between low (0) and high (1), or beyond; the inverse of `at`."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def contains(self, value: object) -> bool:
        """Whether a value is a number in the range."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return self.low, self.high


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values."""

    options: tuple[object, ...]

    def __post_init__(self) -> None:
        """Raise ValueError if there are no options, or one of them twice."""
        if not self.options:
            raise ValueError("choice() is empty: name at least one value")
        if twice := [one for one in self.options if self.options.count(one) > 1]:
            raise ValueError(f"{self} names {twice[0]!r} twice: name each value once")

    def __str__(self) -> str:
        return f"choice({','.join(map(json.dumps, self.options))})"

    def contains(self, value: object) -> bool:
        """Whether a value is one of the options."""
        return value in self.options

    @property
    def ends(self) -> tuple[object, ...]:
        """All options."""
        return self.options


@dataclass(frozen=True, kw_only=True)
class Levels(Choice):
    """One of several named levels, each of which stands for several settings."""

    settings: Mapping[str, Mapping[str, object]]


Dimension = Range | Choice


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

    def sample_of(self, flat: Mapping[str, object]) -> dict[str, object]:
        """A config as a sample: the dimensions that can express its value, in the range or not."""
        sample = {}
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Levels):
                rows = dimension.settings.items()
                names = [level for level, settings in rows if settings.items() <= flat.items()]
                sample |= {name: level for level in names[:1]}
            elif isinstance(dimension, Choice):
                sample |= {name: flat[name]} if dimension.contains(flat[name]) else {}
            elif not dimension.log or flat[name] > 0:
                sample[name] = flat[name]
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
        """`number` different samples, evenly spread; all samples of a space that has no more.

        Points of a scrambled Sobol sequence; of a small space all samples in random order.
        """
        if self.size <= max(number, MAX_CORNERS):
            whole = [list(range(int(d.low), int(d.high) + 1)) if isinstance(d, Range) else d.options
                     for d in self.dimensions.values()]  # fmt: skip
            rows = list(itertools.product(*whole))
            order = np.random.default_rng(seed).permutation(len(rows))[:number]
            return [self._sample(rows[index]) for index in order]
        sobol, found = qmc.Sobol(len(self.dimensions), rng=seed), {}
        while len(found) < number:
            shares = sobol.random_base2(max(1, (number - 1).bit_length()))
            for sample in map(self.at, shares):
                found.setdefault(tuple(sample.values()), sample)
        return list(found.values())[:number]

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


def parse(text: str) -> Dimension | object:
    """Parse a range or a choice; any other text is a JSON value or a word.

    loguniform(1e-4,1e-2)  uniform(0,0.2)  randint(1,4)  choice(0.03,0.1)  choice([1,2],[3,4])
    """
    call = CALL.fullmatch(text.strip())
    if not call:
        return value_of(text)
    kind, inner = call.groups()
    if kind == "choice":
        return Choice(options=tuple(values_of(inner)))
    kinds = {"uniform": {}, "loguniform": {"log": True}, "randint": {"whole": True}}
    if kind not in kinds:
        raise ValueError(f"unknown range {text!r}; known: {', '.join(kinds)}, choice")
    values = values_of(inner)
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"{text!r} must have two numbers, low and high")
    if kind == "randint" and not all(isinstance(value, int) for value in values):
        raise ValueError(f"{text!r} must have two whole numbers, both included")
    return Range(low=values[0], high=values[1], **kinds[kind])


def values_of(text: str) -> list[object]:
    """The values of a list without its brackets: JSON values, or words."""
    try:
        return json.loads(f"[{text}]")
    except json.JSONDecodeError:
        return [value_of(part) for part in text.split(",")] if text.strip() else []


def value_of(text: str) -> object:
    """The value of a JSON text, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip().strip("'")


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
    return Space(name="augment", dimensions=dimensions)


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
    return Space(name="finetune", dimensions=dimensions, shared=shared)


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
    space = Space(name=space.name, dimensions=dimensions, shared=shared)
    space.check(base)
    return space
