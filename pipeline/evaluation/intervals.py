"""Intervals of shares and means, and a test of shares; NumPy only.

    hits of images                     -> wilson
    hits of the images of each class   -> mean_over_classes
    any number of each image           -> normal
    images that changed, of all        -> tango, sign_test

All intervals are two-sided, of 95 %.
"""

import math

import numpy as np

Z = 1.959963984540054
# halvings of an interval within [-1, 1], which reach the precision of a float
HALVINGS = 55


def wilson(hits: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); it never leaves [0, 1]."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = hits / count, Z * Z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(max(share * (1 - share), 0.0) / count + z2 / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def normal(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of (n,) numbers and its interval by a normal distribution; of one it is infinite."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, -math.inf, math.inf
    half = Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def bounded(name: str, value: float, low: float, high: float) -> dict[str, float]:
    """A figure with its interval as entries of a result: NAME, NAME_low, NAME_high."""
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def mean_over_classes(hits: np.ndarray, images: np.ndarray) -> tuple[float, float, float]:
    """Mean over classes of the share of hits in each, and its interval: (K,), (K,) -> 3 floats.

    The classes are taken as they are, and the images of each as drawn at random: the variance is
    that of stratified sampling, the sum of p (1 - p) / (n - 1) over the classes, divided by K^2
    (Cochran 1977, chapter 5). The interval is Wilson's for as many images as would give a simple
    share this variance, the "modified Wilson" interval of surveys (Franco et al. 2019,
    doi.org/10.1093/jssam/smy019): near 0 and 1 it is right where the normal one is too narrow, and
    where all classes are right it does not shrink to a point. A class of one image does not show
    its variance, and is given that of the mean. `images` are positive.
    """
    shares = hits / images
    mean, number = float(shares.mean()), len(images)
    spread = np.where(images > 1, shares * (1 - shares), mean * (1 - mean))
    variance = float((spread / np.maximum(images - 1, 1)).sum()) / number**2
    # without any variance, as if all classes were equally difficult
    alike = number**2 / float((1 / images).sum())
    effective = mean * (1 - mean) / variance if variance > 0 else alike
    return mean, *wilson(mean * effective, effective)


def tango(gained: int, lost: int, count: int) -> tuple[float, float]:
    """Tango's score interval of a difference of paired shares, (gained - lost) / count.

    These are the differences that the score test does not reject (Tango 1998, Statistics in
    Medicine 17:891, equations 24 to 26). It never leaves [-1, 1]; if nothing changed it ends at
    z^2 / (count + z^2) on both sides, as Wilson's does for a share of 0.
    """
    return -_upper(lost, gained, count), _upper(gained, lost, count)


def _upper(gained: int, lost: int, count: int) -> float:
    """The largest difference that the score test does not reject, by bisection."""
    low, high = (gained - lost) / count, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        # probability of a loss that is most likely if the difference is `middle`
        linear = (2 * count - gained + lost) * middle - gained - lost
        root = math.sqrt(max(linear**2 + 8 * count * lost * middle * (1 - middle), 0.0))
        loss = (root - linear) / (4 * count)
        variance = count * (2 * loss + middle * (1 - middle))
        if (count * middle - gained + lost) ** 2 <= Z * Z * variance:
            low = middle
        else:
            high = middle
    return low


def sign_test(fewer: int, count: int) -> float:
    """Two-sided probability of at most `fewer` or at least `count - fewer` heads of a fair coin."""
    if count == 0:
        return 1.0
    log_half = count * math.log(2)
    terms = (
        math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) - log_half
        for i in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))
