"""The values that one dimension of a search may have: a range or options.

    loguniform(1e-4,1e-2)  uniform(0,0.2)  randint(1,4)  choice(0.03,0.1)

Nothing here imports torch or Ray.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)


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
    def options(self) -> Sequence[int] | None:
        """All values of a range of whole numbers; None of another."""
        return range(int(self.low), int(self.high) + 1) if self.whole else None


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

    def at(self, share: float) -> object:
        """The option at a share of the way from the first to the last."""
        return self.options[min(int(share * len(self.options)), len(self.options) - 1)]

    def contains(self, value: object) -> bool:
        """Whether a value is one of the options."""
        return value in self.options


Dimension = Range | Choice


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
