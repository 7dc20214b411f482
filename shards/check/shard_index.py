"""The index of one shard made by another tool: its rows, and what is wrong with the shard.

walk over the tar -> DIR/index/SHARD.parquet, Summary
"""

import hashlib
import io
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs as pafs

from shards.dataset import format, sample, store
from shards.dataset.format import Shard
from shards.dataset.walker import Files, ShardWalker

KEY_WNID = re.compile(r"(?:.*/)?([a-z]\d{8})_")
SHOWN = 100


@dataclass
class Few:
    """Counts texts and keeps the first ones: one wrong label rule can fail 14 million samples."""

    texts: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, *texts: str) -> None:
        """Add texts."""
        self.join(Few(list(texts), len(texts)))

    def join(self, others: "Few") -> None:
        """Add others."""
        self.texts += others.texts[: SHOWN - len(self.texts)]
        self.count += others.count

    def listed(self, separator: str = ", ") -> str:
        """The texts in one."""
        rest = [f"... {self.count:,} in all"] if self.count > len(self.texts) else []
        return separator.join([*self.texts, *rest])


@dataclass
class Summary:
    """One indexed shard."""

    shard: Shard
    wnids: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """WordNet ids in the keys of each class number; "" for a key without one."""
    counts: Counter[int] = field(default_factory=Counter)
    """Images by class number."""
    alike: int = 0
    """Neighbours that share a class."""
    unreadable: Few = field(default_factory=Few)
    """Images of unknown size, with the reason."""
    faults: Few = field(default_factory=Few)
    """What keeps the shard from being used."""


def write(system: pafs.FileSystem, root: str, folder: str, rule: str, name: str) -> Summary:
    """Write the index of one shard."""
    summary = Summary(Shard(name, 0, 0, ""))
    rows, keys, previous = [], set(), ()

    def damage(place: int, reason: str) -> None:
        summary.faults.add(f"{name}: byte {place}: {reason}")

    with ShardWalker(system, f"{root}/{name}", name) as walker:
        for files in walker.samples(damage):
            if files.key in keys:
                damage(files.start, f"the members of {files.key} are not contiguous, so readers "
                       "would see two samples")  # fmt: skip
            keys.add(files.key)
            try:
                found = sample.record(files.key, files.parts, f"{name}: byte {files.start}", rule)
            except ValueError as error:
                summary.faults.add(str(error))
                continue
            rows.append(_row(found, files, summary))
            match = KEY_WNID.match(files.key)
            summary.wnids[found.classes[0]].add(match[1] if match else "")
            summary.counts.update(found.classes)
            summary.alike += not set(found.classes).isdisjoint(previous)
            previous = found.classes
        summary.shard = Shard(name, len(rows), walker.size, walker.sha256())
    if not summary.faults.count:
        with store.written(system, f"{root}/{folder}{summary.shard.index_name}") as file:
            pq.write_table(pa.Table.from_pylist(rows, format.INDEX), file, compression="zstd")
    return summary


def _row(found: sample.Sample, files: Files, summary: Summary) -> dict[str, object]:
    """Row of the index (see format.INDEX)."""
    image = files.members[found.extension]
    try:
        width, height = Image.open(io.BytesIO(found.image)).size
    except (OSError, ValueError, SyntaxError, ArithmeticError, LookupError,
            Image.DecompressionBombError) as error:  # fmt: skip
        width = height = 0
        name = f"{summary.shard.name}: {image.name}"
        summary.unreadable.add(f"{name} is not an image ({error})")
    return {
        "key": found.key,
        "start": files.start,
        "stop": files.stop,
        "offset": image.offset,
        "size": image.size,
        "width": width,
        "height": height,
        "classes": list(found.classes),
        "sha256": hashlib.sha256(found.image).hexdigest(),
    }
