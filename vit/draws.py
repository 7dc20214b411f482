"""Random numbers that depend only on a seed, and not on the process or on library versions.

A counter scrambled by SplitMix64. A draw takes a fraction of a microsecond, and a new stream costs
nothing. NumPy's generators take tens of microseconds to create, and their distributions may change
between versions.
"""

from support.splitmix import GOLDEN, MASK, scramble


class Draws:
    """Stream of random numbers; the seed is any integer, and adjacent seeds are unrelated."""

    def __init__(self, seed: int) -> None:
        self.state = scramble(seed & MASK)

    def bits(self) -> int:
        """Draw 64 random bits."""
        self.state = (self.state + GOLDEN) & MASK
        return scramble(self.state)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw a float in [low, high) from 53 random bits."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, count: int) -> int:
        """Draw an integer in [0, count)."""
        return (self.bits() * count) >> 64

    def sign(self) -> int:
        """Draw -1 or 1."""
        return 1 if self.bits() >> 63 else -1
