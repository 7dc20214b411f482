"""Recognise the images of other shard sets, to leave them out (the ImageNet-1k validation set).

known = Excluded(["data/in1k:val"], distance=4, run=run);  known.split(table) -> kept, left out

An image is recognised by the same bytes, or by a perceptual hash that differs in a few bits.
"""

import itertools
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shards.build.bucket import left_out
from shards.build.lookalikes import Lookalikes
from shards.build.phash import perceptual_hash
from shards.build.progress import Run
from shards.build.transcode import Unusable, opened
from shards.dataset import format, sample, store
from shards.dataset.format import Shard, ShardSet

# A port (?endpoint_override=HOST:9000) is no split, nor is the rest of s3://KEY:SECRET@BUCKET/SET.
_SPLITS = re.compile(r"(?P<location>.+):(?P<splits>[A-Za-z]\w*(,[A-Za-z]\w*)*)")


def parse(text: str) -> tuple[str, tuple[str, ...]]:
    """Location and splits of "data/in1k:train,val"; the split is val if none is given."""
    match = _SPLITS.fullmatch(text)
    return (match["location"], tuple(match["splits"].split(","))) if match else (text, ("val",))


def chosen(text: str) -> tuple[ShardSet, tuple[str, ...]]:
    """The shard set and the splits that are named by SET, SET:SPLIT,SPLIT or SET:all.

    Raises FileNotFoundError if there is no such set, and ValueError if it has no such split.
    """
    location, splits = parse(text)
    shard_set = format.open_set(location)
    has = tuple(shard_set.manifest.splits)
    splits = has if splits == ("all",) else splits
    for split in splits:
        if split not in has:
            raise ValueError(
                f"exclude {text!r}: {location} has no split {split!r}, it has {', '.join(has)}; "
                f"give {location}:{has[0] if has else 'SPLIT'} or {location}:all"
            )
    return shard_set, splits


@dataclass(frozen=True)
class Hashes:
    """Content and perceptual hashes of the images of a shard."""

    place: tuple[int, str]
    """Position of the set and split among those that are excluded, and name of the shard."""
    keys: pa.Array
    contents: np.ndarray
    """(N,) S32."""
    phashes: pa.Array
    """(N,) uint64, null for an image without one."""


def shard_hashes(item: tuple[int, ShardSet, Shard]) -> Hashes:
    """Hashes of a shard from its index; without perceptual hashes there, from its images."""
    number, shard_set, shard = item
    table = shard_set.read_index(shard)
    phashes = table["phash"].combine_chunks()
    if phashes.null_count == len(phashes):
        phashes = pa.array(_phashes(shard_set, shard), pa.uint64())
    return Hashes(
        (number, shard.name),
        table["key"].combine_chunks(),
        np.array([bytes.fromhex(value) for value in table["sha256"].to_pylist()], "S32"),
        phashes,
    )


def _phashes(shard_set: ShardSet, shard: Shard) -> list[int | None]:
    data = store.read_bytes(shard_set.fs, shard_set.path(shard))
    phashes: list[int | None] = []
    for one in sample.parse_samples(data, shard.name, shard_set.manifest.label):
        try:
            phashes.append(perceptual_hash(opened(bytes(one.image))))
        except Unusable:  # no image looks like one that cannot be decoded; its bytes still count
            phashes.append(None)
    return phashes


class Excluded:
    """Finds the catalogue rows whose images are in one of the sets."""

    def __init__(self, texts: Iterable[str], distance: int, run: Run) -> None:
        """Read the hashes of the splits of shard sets that these texts name, see `chosen`."""
        pairs = [(one, split) for one, splits in map(chosen, texts) for split in splits]
        self.names = [f"{posixpath.basename(one.root)}:{split}" for one, split in pairs]
        ways = itertools.product(self.names, ("same bytes as", "looks like"))
        self.none_left_out = {f"{way} {name}": 0 for name, way in ways}
        items = [
            (number, one, shard)
            for number, (one, split) in enumerate(pairs)
            for shard in one.manifest.splits[split]
        ]
        hashes = sorted(run(shard_hashes, items), key=lambda one: one.place)
        self._keys = pa.chunked_array([one.keys for one in hashes], pa.string())
        self._owners = np.repeat(
            np.array([one.place[0] for one in hashes], np.int16), [len(one.keys) for one in hashes]
        )
        phashes = pa.chunked_array([one.phashes for one in hashes], pa.uint64())
        self._lookalikes = Lookalikes(phashes, distance)
        contents = np.concatenate([np.zeros(0, "S32"), *(one.contents for one in hashes)])
        del hashes  # the sort takes as much again
        self._order = np.argsort(contents, kind="stable").astype(np.int32)
        self._contents = contents[self._order]

    def split(self, table: pa.Table) -> tuple[pa.Table, pa.Table, Counter[str]]:
        """The rows that stay, the list of the others, and how many each set left out and why.

        Images of a val split that the sources have stay, like all of that split.
        """
        found: dict[int, tuple[int, str, str]] = {}
        places, bits = self._lookalikes.nearest(table["phash"])
        for row in np.flatnonzero(places >= 0).tolist():
            detail = f" ({bits[row]} bits of the hash differ)"
            found[row] = int(places[row]), "looks like", detail
        for name in ("sha256", "stored_sha256"):
            values = np.array(table[name].to_pylist(), "S32")
            at = np.searchsorted(self._contents, values)
            at[at == len(self._contents)] = 0
            for row in np.flatnonzero(self._contents[at] == values) if len(self._contents) else ():
                found[int(row)] = int(self._order[at[row]]), "same bytes as", ""
        splits = table["split"].to_pylist()
        rows = sorted(row for row in found if splits[row] != "val")
        reasons, counts = [], Counter()
        for place, way, detail in map(found.get, rows):
            name = self.names[self._owners[place]]
            counts[f"{way} {name}"] += 1
            reasons.append(f"{way} {name}: {self._keys[place]}{detail}")
        kept = np.delete(np.arange(table.num_rows), rows)
        return table.take(pa.array(kept)), left_out(table, rows, reasons), counts
