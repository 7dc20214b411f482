"""Class lists: WordNet ids in the order of their class numbers.

    class_list("fall11") -> ("n00004475", ...)      class_list("classes.txt") -> ids from the file
    mapping(source, target) -> for each class of source its number in target, or -1

The built-in lists come from timm's data/_info (Apache-2.0), except winter21, which comes from
birder's public_datasets_metadata/imagenet-21k-classes.txt (Apache-2.0). ImageNet's own account of
that release gives the same list: fall11 without its 2,832 synsets of people, of which the 158 stay
that are safe and have an imageability of at least 4 (Yang et al., doi.org/10.1145/3351095.3375709;
image-net.org/data/synsets_safety.csv and imageability_scores.csv). All are sorted by id;
data/class-lists.tsv.xz stores which lists hold an id as bits.
"""

import functools
import lzma
from collections.abc import Collection, Sequence
from importlib import resources

from shards.dataset import store

BUILT_IN = {
    "fall11": "ImageNet-21k as released in fall 2011",
    "goog": "the 21,843 classes of Google's checkpoints: fall11, n03931044 and n09859684",
    "winter21": "ImageNet-21k as released in winter 2021: fall11 without 2,674 synsets of people",
    "miil-fall11": "the processed set made of fall11",
    "miil-winter21": "the processed set made of winter21, imagenet21k_resized.tar.gz",
    "12k": "timm's ImageNet-12k",
    "1k": "ILSVRC2012, ImageNet-1k",
}
"""Names in the order of their bits."""


@functools.cache
def _built_in() -> dict[str, tuple[str, ...]]:
    packed = resources.files("shards.dataset").joinpath("data/class-lists.tsv.xz").read_bytes()
    rows = [line.split("\t") for line in lzma.decompress(packed).decode().splitlines()[1:]]
    return {
        name: tuple(sorted(wnid for wnid, bits in rows if int(bits) >> bit & 1))
        for bit, name in enumerate(BUILT_IN)
    }


def class_list(name: str) -> tuple[str, ...]:
    """The built-in list with this name, or the first word of each line of a file; # is a comment.

    Raises FileNotFoundError if the file does not exist and ValueError if it is not a class list.
    """
    if name in BUILT_IN:
        return _built_in()[name]
    try:
        text = store.read_bytes(*store.locate(name)).decode()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no class list {name!r}; give a file with one WordNet id per line or one of "
            f"{', '.join(BUILT_IN)}"
        ) from error
    lines = (line.split("#")[0].split() for line in text.splitlines())
    classes = tuple(words[0] for words in lines if words)
    if not classes:
        raise ValueError(f"class list {name} is empty; it needs one WordNet id per line")
    if len(set(classes)) < len(classes):
        repeated = next(wnid for wnid in classes if classes.count(wnid) > 1)
        raise ValueError(f"class list {name} has {repeated} twice; a class has one number")
    return classes


def described(wnids: Collection[str]) -> str:
    """A set of classes in words: "fall11: 21,841 classes"."""
    wnids = set(wnids)
    count = f"{len(wnids):,} classes"
    supersets = [name for name, classes in _built_in().items() if wnids.issubset(classes)]
    if not supersets:
        return count
    smallest = min(supersets, key=lambda name: len(_built_in()[name]))
    is_whole = len(wnids) == len(_built_in()[smallest])
    return f"{smallest}: {count}" if is_whole else f"{count}, all of them in {smallest}"


def mapping(source: Sequence[str], target: Sequence[str]) -> list[int]:
    """For each class of source its number in target, -1 if target does not have it."""
    numbers = {wnid: number for number, wnid in enumerate(target)}
    return [numbers.get(wnid, -1) for wnid in source]
