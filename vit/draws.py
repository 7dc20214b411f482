"""Random numbers that depend only on a seed, and not on the process or on library versions.

A counter scrambled by SplitMix64. A draw takes a fraction of a microsecond, and a new stream costs
nothing. NumPy's generators take tens of microseconds to create, and their distributions may change
between versions.
"""

import math

import numpy as np

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

    def normals(self, shape: tuple[int, ...]) -> np.ndarray:
        """Draw an array of floats with mean 0 and variance 1 (Box and Muller)."""
        count = math.prod(shape)
        steps = np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        bits = scramble(steps + np.uint64(self.state)) >> np.uint64(11)
        self.state = (self.state + 2 * count * GOLDEN) & MASK
        radius, angle = (bits * 2.0**-53).reshape(2, *shape)
        return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
