"""Classes, split and key of each image, which follow from statistics over all images."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.build.bucket import heads, mixed
from shards.build.config import BuildConfig
from shards.build.key import key_hashes, stem

SPLIT_SEED = 0x5EED  # the val split does not depend on the seed of the shuffle
VAL_SHARE = 4  # of so many images of a class at most one is drawn for val


@dataclass
class Tally:
    """Counts of the assignment, for the report."""

    classes: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    """Classes that the sources have files of, but no usable image."""
    missing: int = 0
    """Classes that have a number and no image."""
    images: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    merged: int = 0
    """Copies within the train split."""
    crossing: int = 0
    """Images of train left out because the sources' own val split has them."""
    near: int = 0
    """Images of train that look like one of the drawn val split; they stay."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Images left out by excluded set and kind of match: "same bytes as in1k:val"."""
    multi_label: int = 0
    most_labels: tuple[int, str] = (0, "")
    """The largest number of classes of one image, and its file."""
    small_split: int = 0
    other_class: int = 0
    rare_class: int = 0


class ClassStats:
    """Statistics of the classes over all buckets, from which the assignment follows."""

    def __init__(self, config: BuildConfig, classes: tuple[str, ...] | None) -> None:
        self.config = config
        self.classes = classes
        self._ids: dict[str, int] = {}  # of the classes, in the order in which they are met
        self._usable: set[str] = set()
        self._images = np.zeros((), np.int64)  # by id, like what follows
        self._numbers = np.zeros(0, np.int32)  # -1 if the class is left out
        self._listed = np.zeros(0, bool)
        self._clashing = np.zeros(0, np.uint64)  # hashes of keys that several files would have
        self._drawn = np.zeros(0, bool)  # by row, if val_per_class draws val
        # One entry a row or a class of a row; they grow in place, since a set has 14 M images.
        self._stems, self._lots = array("Q"), array("Q")
        self._flat, self._ends = array("i"), array("i", [0])

    def see(self, files: pa.ChunkedArray, images: pa.ChunkedArray) -> None:
        """Note the classes (lists) of all files of a part, and of those that are usable images."""
        self._usable.update(pc.unique(pc.list_flatten(images)).to_pylist())
        for wnid in pc.unique(pc.list_flatten(files)).to_pylist():
            self._ids.setdefault(wnid, len(self._ids))

    def _lists(self, wnids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """The class ids of all rows in one array, and where those of each row start, (N + 1,)."""
        words = pc.list_flatten(wnids).combine_chunks().dictionary_encode()
        ids = np.array([self._ids[wnid] for wnid in words.dictionary.to_pylist()], np.int32)
        ends = np.cumsum(pc.list_value_length(wnids).to_numpy())
        return ids[words.indices.to_numpy()], np.append(0, ends)

    def add(self, table: pa.Table) -> None:
        """Add a merged bucket."""
        flat, ends = self._lists(table["wnids"])
        self._images = self._images + np.bincount(flat, minlength=len(self._ids))
        self._stems.frombytes(key_hashes(map(stem, table["member"].to_pylist())).tobytes())
        if self.config.val_per_class:
            flat, ends = self._drawable(table, flat, ends)
            self._lots.frombytes(mixed(heads(table["sha256"]), SPLIT_SEED).tobytes())
            self._ends.frombytes((self._ends[-1] + ends[1:]).astype(np.int32).tobytes())
            self._flat.frombytes(flat.astype(np.int32).tobytes())

    def _drawable(
        self, table: pa.Table, flat: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The form of `_lists` without the classes of rows that the sources have in val."""
        counts, is_own = np.diff(ends), np.equal(table["split"].to_pylist(), "val")
        flat = flat[~np.repeat(is_own, counts)]
        return flat, np.append(0, np.cumsum(np.where(is_own, 0, counts)))

    def choose(self, tally: Tally) -> None:
        """Number the classes that have enough images, draw val, and find the keys that clash."""
        stems = np.asarray(self._stems)
        self._stems = array("Q")
        stems.sort()
        self._clashing = np.unique(stems[1:][stems[1:] == stems[:-1]])
        # Without a minimum, a class that lost all its images does not shift the other numbers.
        minimum = self.config.min_per_class if self.config.min_per_class > 1 else 0
        self._images = self._images + np.zeros(len(self._ids), np.int64)
        images = dict(zip(self._ids, self._images.tolist(), strict=True))
        tally.classes = self.classes or tuple(sorted(w for w in images if images[w] >= minimum))
        numbers = {w: n for n, w in enumerate(tally.classes) if images.get(w, -1) >= minimum}
        listed = set(self.classes or images)
        tally.empty = tuple(sorted((listed & images.keys()) - self._usable))
        tally.missing = sum(not images[w] for w in numbers) + len(tally.classes) - len(numbers)
        self._numbers = np.array([numbers.get(w, -1) for w in images], np.int32)
        self._listed = np.array([w in listed for w in images], bool)
        if self.config.val_per_class:
            self._draw(self.config.val_per_class)

    def _draw(self, per_class: int) -> None:
        """Draw images in the order of their lots while one of their classes needs more.

        No image is drawn that would take more than a quarter of any of its classes.
        """
        flat, ends = np.asarray(self._flat), np.asarray(self._ends)
        order = np.argsort(np.asarray(self._lots), kind="stable")
        self._flat = self._ends = self._lots = array("i")
        self._drawn = np.zeros(len(order), bool)
        is_kept = self._numbers >= 0
        images = np.bincount(flat, minlength=len(self._ids))
        caps = np.where(is_kept, images // VAL_SHARE, len(order))
        left = np.where(is_kept, np.minimum(per_class, caps), 0)
        more = (caps - left).tolist()  # that are drawn at most for the sake of other classes
        start, stop = 0, 1 << 18
        while start < len(order):
            # A class that needs no more never does again, so most rows are passed over at once.
            wanted = _any(left > 0, flat, ends) & ~_any(left <= -np.array(more), flat, ends)
            rows, left = order[start:stop], left.tolist()
            rows = rows[wanted[rows]]
            for row, first, last in np.stack([rows, ends[rows], ends[rows + 1]], 1).tolist():
                classes = flat[first:last].tolist()
                if max([left[c] for c in classes]) > 0 and all(left[c] > -more[c] for c in classes):
                    self._drawn[row] = True
                    for c in classes:
                        left[c] -= 1
            start, stop, left = stop, 2 * stop, np.array(left)

    def assigned(self, table: pa.Table, first: int, tally: Tally) -> pa.Table:
        """A merged bucket with the classes, split and key of each row, without unclassified rows.

        `first` is the number of its first row among the rows of all buckets.
        """
        flat, ends = self._lists(table["wnids"])
        numbers = self._numbers[flat]
        starts = np.append(0, np.cumsum(numbers >= 0))[ends].astype(np.int32)
        classes = pa.ListArray.from_arrays(starts, numbers[numbers >= 0])
        counts = np.diff(starts)
        is_listed = _any(self._listed, flat, ends)
        tally.rare_class += int(np.sum((counts == 0) & is_listed))
        tally.other_class += int(np.sum(~is_listed))
        tally.multi_label += int(np.sum(counts > 1))
        most = int(counts.argmax())
        if counts[most] > tally.most_labels[0]:
            place = f"{table['archive'][most]}: {table['member'][most]}"
            tally.most_labels = int(counts[most]), place
        is_own = np.equal(table["split"].to_pylist(), "val")
        drawn = np.where(self._is_drawn(table, first), self.config.drawn_split, "train")
        split = pa.array(np.where(is_own, "val", drawn), pa.string())
        table = table.drop_columns("split").append_column("split", split)
        table = table.append_column("classes", classes)
        table = table.append_column("key", pa.array(self._keys(table), pa.string()))
        return table.filter(pa.array(counts > 0))

    def _is_drawn(self, table: pa.Table, first: int) -> np.ndarray:
        """Whether each row is drawn for val: by its class, or by its content hash."""
        if self.config.val_per_class:
            return self._drawn[first : first + table.num_rows]
        share = mixed(heads(table["sha256"]), SPLIT_SEED) / 2.0**64
        return share < (self.config.val_fraction or 0)

    def _keys(self, table: pa.Table) -> list[str]:
        """A key for each row; a hash of the content tells equal file names apart."""
        keys = [stem(member) for member in table["member"].to_pylist()]
        copies: Counter[str] = Counter()
        for row in np.flatnonzero(np.isin(key_hashes(keys), self._clashing)).tolist():
            key = f"{keys[row]}_{table['sha256'][row].as_py().hex()[:12]}"
            copies[key] += 1  # copies stay in a val split of the sources
            keys[row] = key if copies[key] == 1 else f"{key}_{copies[key]}"
        return keys


def _any(flags: np.ndarray, flat: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether the flag of any class of a row is set, for rows in the form of `_lists`."""
    sums = np.append(np.int32(0), np.cumsum(flags[flat], dtype=np.int32))
    return sums[ends[1:]] > sums[ends[:-1]]
