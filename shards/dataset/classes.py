"""Class lists: which WordNet ids there are and in which order, so what a class number means.

    class_list("fall11") -> ("n00004475", ...)      class_list("classes.txt") -> the lines of a file
    mapping(source, target) -> for each class of source its number in target, or -1

The built-in lists are those of timm's data/_info (Apache-2.0), all sorted by id, kept as bits in
data/class-lists.tsv.xz. Winter21's list (19,167 classes) is published nowhere: it is taken from the
archive, and every build saves its classes as classes.txt.
"""

import functools
import lzma
from collections.abc import Collection, Sequence
from importlib import resources

from shards.dataset import store

BUILT_IN = {
    "fall11": "ImageNet-21k as released in fall 2011",
    "goog": "the 21,843 classes of Google's checkpoints: fall11, n03931044 and n09859684",
    "miil-fall11": "the processed set made of fall11",
    "miil-winter21": "the processed set made of winter21, imagenet21k_resized.tar.gz",
    "12k": "timm's ImageNet-12k",
    "1k": "ILSVRC2012, ImageNet-1k",
}
"""Names in the order of their bits."""
WINTER21_CLASSES = 19_167


@functools.cache
def _bits() -> dict[str, int]:
    packed = resources.files("shards.dataset").joinpath("data/class-lists.tsv.xz").read_bytes()
    lines = lzma.decompress(packed).decode().splitlines()[1:]
    return {wnid: int(bits) for wnid, bits in (line.split("\t") for line in lines)}


@functools.cache
def _built_in(name: str) -> tuple[str, ...]:
    bit = 1 << list(BUILT_IN).index(name)
    return tuple(sorted(wnid for wnid, bits in _bits().items() if bits & bit))


def class_list(name: str) -> tuple[str, ...]:
    """The built-in list of this name, or the first words of a file's lines, "#" being a comment."""
    if name in BUILT_IN:
        return _built_in(name)
    system, path = store.locate(name)
    try:
        text = store.read_bytes(system, path).decode()
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
        twice = next(wnid for wnid in classes if classes.count(wnid) > 1)
        raise ValueError(f"class list {name} has {twice} twice; a class has one number")
    return classes


def described(wnids: Collection[str]) -> str:
    """What a set of classes is: "fall11: 21,841 classes"."""
    given = set(wnids)
    within = [name for name in BUILT_IN if given.issubset(_built_in(name))]
    for name in within:
        if len(given) == len(_built_in(name)):
            return f"{name}: {len(given):,} classes"
    if len(given) == WINTER21_CLASSES and "fall11" in within:
        return f"winter21 (by its number of classes): {len(given):,} classes"
    return f"{len(given):,} classes" + (f", all of them in {within[-1]}" if within else "")


def mapping(source: Sequence[str], target: Sequence[str]) -> list[int]:
    """For each class of source its number in target, -1 where target does not have it."""
    numbers = {wnid: number for number, wnid in enumerate(target)}
    return [numbers.get(wnid, -1) for wnid in source]
