"""WordNet 3.0's nouns: names and hypernyms of every WordNet id, and trees over any set of them.

ImageNet's class names are noun offsets of WordNet 3.0. data/wordnet-nouns.tsv.xz is taken from its
`data.noun` (one line each: id, names, ids of hypernyms); data/WORDNET-LICENSE is its notice.
"""

import functools
import lzma
from collections.abc import Iterator, Sequence
from importlib import resources


@functools.cache
def _nouns() -> dict[str, tuple[str, str]]:
    packed = resources.files("shards.dataset").joinpath("data/wordnet-nouns.tsv.xz").read_bytes()
    lines = (line.split("\t") for line in lzma.decompress(packed).decode().splitlines())
    return {wnid: (names, above) for wnid, names, above in lines}


def name(wnid: str) -> str:
    """Names of a class, most common first ("tench, Tinca tinca"); the id where it has none."""
    return _nouns().get(wnid, (wnid, ""))[0]


def hypernyms(wnid: str) -> tuple[str, ...]:
    """The ids directly above, most of them one; none for the root and for ids not in WordNet."""
    return tuple(_nouns().get(wnid, ("", ""))[1].split())


def ancestors(wnid: str) -> Iterator[str]:
    """The ids above, nearest first, each once."""
    seen, level = {wnid}, [wnid]
    while level:
        level = [above for one in level for above in hypernyms(one) if above not in seen]
        level = list(dict.fromkeys(level))
        seen.update(level)
        yield from level


def parents(classes: Sequence[str]) -> list[int]:
    """For each class the number of its nearest ancestor in the same set, -1 where there is none.

    This is the tree of the semantic softmax: nothing but the class list is needed to build it.
    """
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    return [
        next((numbers[above] for above in ancestors(wnid) if above in numbers), -1)
        for wnid in classes
    ]
