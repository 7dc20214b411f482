"""SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

Gives the same numbers in every process and with every version of the libraries, for single numbers
and for arrays. Not suitable for cryptography.
"""

from typing import TypeVar

import numpy as np

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15

Word = TypeVar("Word", int, np.ndarray)


def scramble(value: Word) -> Word:
    """Apply the finaliser (figure 16), a one-to-one map of ints in [0, 2^64) or of uint64."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
