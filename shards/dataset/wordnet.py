"""Nouns of WordNet 3.0: the names and hypernyms of every WordNet id.

ImageNet's class ids are noun offsets of WordNet 3.0. data/wordnet-nouns.tsv.xz is extracted from
its `data.noun` (per line: id, names, ids of hypernyms); its license is data/WORDNET-LICENSE. The
classes of the embedded digits have ids of the same form, which WordNet does not use.
"""

import functools
import lzma
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources

DIGITS = {f"n{digit:08d}": f"digit {digit}" for digit in range(10)}
"""Names of the embedded classes by id."""


@functools.cache
def _nouns() -> dict[str, tuple[str, str]]:
    packed = resources.files("shards.dataset").joinpath("data/wordnet-nouns.tsv.xz").read_bytes()
    lines = (line.split("\t") for line in lzma.decompress(packed).decode().splitlines())
    digits = {wnid: (name, "") for wnid, name in DIGITS.items()}
    return digits | {wnid: (names, above) for wnid, names, above in lines}


def name(wnid: str) -> str:
    """Names of a class, most common first ("tench, Tinca tinca"); the id itself if unknown."""
    return _nouns().get(wnid, (wnid, ""))[0]


def names(wnids: Sequence[str]) -> list[str]:
    """A name for each class, all different: with the id where classes share one."""
    found = [name(wnid) for wnid in wnids]
    count = Counter(found)
    return [
        each if count[each] == 1 else f"{each} ({wnid})"
        for wnid, each in zip(wnids, found, strict=True)
    ]


def hypernyms(wnid: str) -> tuple[str, ...]:
    """The ids directly above, usually one; empty for the root and for ids not in WordNet."""
    return tuple(_nouns().get(wnid, ("", ""))[1].split())


def ancestors(wnid: str) -> Iterator[str]:
    """All ids above, nearest first, each once."""
    seen, level = {wnid}, [wnid]
    while level:
        above = dict.fromkeys(parent for child in level for parent in hypernyms(child))
        level = [parent for parent in above if parent not in seen]
        seen.update(level)
        yield from level


def parents(classes: Sequence[str]) -> list[int]:
    """For each class the number of its nearest ancestor in the same list, -1 if it has none.

    This is the tree of the semantic softmax. It follows from the class list alone.
    """
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    return [
        next((numbers[above] for above in ancestors(wnid) if above in numbers), -1)
        for wnid in classes
    ]
