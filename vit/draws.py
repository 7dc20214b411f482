"""Random numbers that depend on a seed alone: the same in every process and library version.

A counter, scrambled by SplitMix64. A draw costs a fraction of a microsecond and a new stream costs
nothing, whereas NumPy's generators take tens of microseconds to make and do not promise stable
distributions.
"""

from support.splitmix import GOLDEN, MASK, scramble


class Draws:
    """The stream of one seed; any integer is a seed, and neighbours are unrelated."""

    def __init__(self, seed: int) -> None:
        self.state = scramble(seed & MASK)

    def bits(self) -> int:
        """64 random bits."""
        self.state = (self.state + GOLDEN) & MASK
        return scramble(self.state)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float of [low, high), of 53 random bits."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, count: int) -> int:
        """One of 0 ... count - 1."""
        return (self.bits() * count) >> 64

    def sign(self) -> int:
        """-1 or 1."""
        return 1 if self.bits() >> 63 else -1
