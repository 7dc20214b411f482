"""The classes within WordNet: which lie above which, and how far apart two are.

    wnids -> the classes and all their hypernyms -> height of the lowest ancestor of two classes

The height of a synset is the longest way down to one without hyponyms among these; the distance of
two classes is the height of their lowest common ancestor (Deng et al. 2010, "What does classifying
more than 10,000 image categories tell us?", section 7; Bertinetto et al. 2020, arXiv 1912.09393).
WordNet is no tree: of several common ancestors the lowest counts. A class is its own ancestor.

Shapes: K classes, A ancestors of a class at most, n pairs.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.dataset import wordnet

# pairs that are compared at a time: 4,096 x A x A bytes, with A about 30 for ImageNet-21k
PAIRS = 4096


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """Ancestors of the classes, lowest first."""

    ancestors: np.ndarray
    """(K, A) int32: synsets, the class itself among them, padded with -1."""
    heights: np.ndarray
    """(K, A) int32: their heights."""
    own: np.ndarray
    """(K,) int32: the synset of each class."""

    @classmethod
    def of(cls, classes: Sequence[str]) -> "Hierarchy":
        """The hierarchy of some wnids; ValueError if they have no common ancestor."""
        above = [(wnid, *wordnet.ancestors(wnid)) for wnid in classes]
        if not set.intersection(*map(set, above)):
            raise ValueError("the classes have no common ancestor in WordNet")
        synsets = dict.fromkeys(itertools.chain.from_iterable(above))
        numbers = {wnid: number for number, wnid in enumerate(synsets)}
        heights = synset_heights(numbers)
        width = max(map(len, above))
        padded = np.full((2, len(classes), width), -1, np.int32)
        for row, line in enumerate(above):
            ordered = sorted(line, key=heights.__getitem__)
            padded[0, row, : len(ordered)] = [numbers[wnid] for wnid in ordered]
            padded[1, row, : len(ordered)] = [heights[wnid] for wnid in ordered]
        own = np.array([numbers[wnid] for wnid in classes], np.int32)
        return cls(ancestors=padded[0], heights=padded[1], own=own)

    def distances(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Height of the lowest common ancestor of the classes of each pair: (n,), (n,) -> (n,)."""
        parts = range(0, len(first), PAIRS)
        return np.concatenate(
            [np.zeros(0, np.int32)]
            + [self._distances(first[at : at + PAIRS], second[at : at + PAIRS]) for at in parts]
        )

    def _distances(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        ours, theirs = self.ancestors[first], self.ancestors[second]  # (n, A), (n, A)
        shared = (ours[:, :, None] == theirs[:, None, :]).any(2) & (ours >= 0)
        return self.heights[first, shared.argmax(1)]  # the first that is shared is the lowest

    def is_above(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether the first class of each pair is the second, or an ancestor of it: (n,) bool."""
        return (self.ancestors[second] == self.own[first][:, None]).any(1)


def synset_heights(synsets: Sequence[str]) -> dict[str, int]:
    """The longest way down from each synset among these, with all their ancestors."""
    below = defaultdict(list)
    for wnid in synsets:
        for above in wordnet.hypernyms(wnid):
            below[above].append(wnid)

    @functools.cache
    def height(wnid: str) -> int:
        return max((1 + height(child) for child in below[wnid]), default=0)

    return {wnid: height(wnid) for wnid in synsets}
