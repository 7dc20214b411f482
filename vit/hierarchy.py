"""The tree over a class list that WordNet's hypernyms give, for the semantic softmax.

    wnids (K,) + {wnid: its hypernyms} -> parents (K,) -> ancestors (K, depth)

A class's parent is its nearest hypernym that is itself in the list, however many steps of WordNet
lie between; classes without one are roots. K classes; depth 0 is a root.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

WNID = re.compile(r"n\d{8}")


def read_hypernyms(path: Path | str) -> dict[str, list[str]]:
    """Direct hypernyms of each noun: {wnid: wnids}, in the order of the file.

    Takes WordNet's own `data.noun` (3.0 for ImageNet) or ImageNet's `wordnet.is_a.txt`, whose
    lines are "parent child".
    """
    hypernyms: dict[str, list[str]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        words = line.split()
        if len(words) == 2 and all(WNID.fullmatch(word) for word in words):
            hypernyms.setdefault(words[1], []).append(words[0])
        elif len(words) > 4 and words[0].isdigit() and words[2] == "n":
            # a pointer is a symbol, the offset of its target, the part of speech; @ is "is a",
            # @i "is an instance of"
            pointers = re.findall(r" @i? (\d{8}) n ", line.partition("|")[0])
            hypernyms.setdefault(f"n{words[0]}", []).extend(f"n{offset}" for offset in pointers)
    if not hypernyms:
        raise ValueError(
            f"{path} has no hypernyms; give WordNet 3.0's data.noun or ImageNet's wordnet.is_a.txt"
        )
    return hypernyms


def class_parents(wnids: Sequence[str], hypernyms: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Parent of each class as a class number, -1 for a root: (K,) int64.

    Of several hypernyms the nearest by steps counts, and of equally near ones the first.
    """
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    unknown = [wnid for wnid in wnids if not WNID.fullmatch(wnid)]
    if unknown or len(numbers) < len(wnids):
        raise ValueError(
            f"the class list must be distinct wnids such as n01440764, but has {unknown[:3]}"
            if unknown
            else "the class list has a wnid twice"
        )
    return np.array([nearest(wnid, numbers, hypernyms) for wnid in wnids], np.int64)


def nearest(wnid: str, numbers: Mapping[str, int], hypernyms: Mapping[str, Sequence[str]]) -> int:
    """Number of the nearest listed hypernym of a wnid, breadth first; -1 if there is none."""
    seen, row = {wnid}, [wnid]
    while row:
        row = [up for below in row for up in hypernyms.get(below, ()) if up not in seen]
        for up in row:
            if up in numbers:
                return numbers[up]
        seen.update(row)
    return -1


def class_ancestors(parents: Sequence[int]) -> np.ndarray:
    """Ancestor of each class at each depth, itself at its own, -1 below: (K, depth) int64."""
    lines: list[list[int]] = []
    for number in range(len(parents)):
        line = [number]
        while (up := int(parents[line[-1]])) >= 0:
            if up >= len(parents) or up in line:
                raise ValueError(
                    f"parents make no tree: class {number} has the ancestors {line[1:]} and {up}"
                )
            line.append(up)
        lines.append(line[::-1])
    ancestors = np.full((len(lines), max(map(len, lines), default=0)), -1, np.int64)
    for number, line in enumerate(lines):
        ancestors[number, : len(line)] = line
    return ancestors
