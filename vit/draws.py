"""Random numbers that depend on a seed alone: the same in every process and library version.

SplitMix64 (Steele, Lea and Flood 2014): a counter, scrambled. A draw costs a fraction of a
microsecond and a new stream costs nothing, where NumPy's generators take tens of microseconds to
make and promise no stable distributions. No cryptography.
"""

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


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


def scramble(value: int) -> int:
    """One-to-one map of 64 bits in which each input bit moves half of the output bits."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
