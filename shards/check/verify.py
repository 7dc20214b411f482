"""Check a shard set against its manifest and indexes, and make faulty shards again.

Every fault names its shard and, where it has one, its key. Checked are the structure of each tar,
counts, hashes, contiguous members, labels within range, keys that occur once, files that do not
belong, and, unless quick, that every image decodes to the size that the index says.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shards.build import archive, report, source, writer
from shards.build.config import BuildConfig
from shards.build.pack import Run, serial
from shards.build.transcode import Unusable, opened
from shards.dataset import format, store, tar
from shards.dataset.format import Shard, ShardSet

SHOWN = 100
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        """One line."""
        return ": ".join(text for text in (self.shard, self.key, self.reason) if text)


@dataclass(frozen=True)
class Verified:
    """What a check found."""

    shards: int
    samples: int
    decoded: bool
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        """The faults, and how much was checked."""
        lines = [str(fault) for fault in self.faults[:SHOWN]]
        if len(self.faults) > SHOWN:
            lines.append(f"... {len(self.faults):,} faults in all")
        how = "every image decoded" if self.decoded else "images not decoded (--quick)"
        good = "no faults" if not self.faults else f"{len(self.faults):,} faults"
        return "\n".join(
            [*lines, f"{good} in {self.samples:,} samples of {self.shards:,} shards; {how}"]
        )


@dataclass(frozen=True)
class _Checked:
    """One shard."""

    name: str
    faults: tuple[Fault, ...]
    keys: np.ndarray
    """Hashes of its keys, to find keys that occur twice in the set."""


def verify(location: str, *, quick: bool = False, run: Run = serial) -> Verified:
    """Check the shard set at location."""
    given = format.open_set(location)
    shards = [shard for split in given.manifest.splits.values() for shard in split]
    faults = _strays(given, shards)
    check = functools.partial(_shard, given, not quick)
    checked = {one.name: one for one in run(check, shards)}
    for shard in shards:
        faults += checked[shard.name].faults
    faults += _repeated(given, [(shard, checked[shard.name].keys) for shard in shards])
    return Verified(len(shards), sum(s.samples for s in shards), not quick, tuple(faults))


def _strays(given: ShardSet, shards: list[Shard]) -> list[Fault]:
    """Files that a reader of *.tar would take for shards, and an _info.json that differs."""
    names = {shard.name for shard in shards}
    faults = [
        Fault(info.base_name, "", "not in the manifest, but a reader of *.tar would read it")
        for info in store.listing(given.fs, given.root)
        if info.base_name.endswith(".tar") and info.base_name not in names
    ]
    try:
        told = json.loads(store.read_bytes(given.fs, f"{given.root}/{format.TIMM_INFO}"))
        lengths = {
            name: length
            for split in told["splits"].values()
            for name, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [*faults, Fault(format.TIMM_INFO, "", f"cannot be read: {type(error).__name__}")]
    if lengths != {shard.name: shard.samples for shard in shards}:
        faults.append(Fault(format.TIMM_INFO, "", "its counts differ from the manifest's"))
    return faults


def _repeated(given: ShardSet, keys: list[tuple[Shard, np.ndarray]]) -> list[Fault]:
    """Keys that occur more than once in the set."""
    found, counts = np.unique(np.concatenate([k for _, k in keys] or [[]]), return_counts=True)
    twice = found[counts > 1]
    faults = []
    for shard, hashes in keys:
        if twice.size and np.isin(hashes, twice).any():
            names = given.read_index(shard)["key"].to_pylist()
            rows = np.flatnonzero(np.isin(_hashes(names), twice))
            faults += [Fault(shard.name, names[row], "a key that occurs twice") for row in rows]
    return faults


def _hashes(keys: list[str]) -> np.ndarray:
    raw = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(raw, np.uint64)


def _shard(given: ShardSet, decode: bool, shard: Shard) -> _Checked:
    """Check one shard; whatever is wrong with its files is a fault, not an error."""
    try:
        rows = given.read_index(shard).to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid, KeyError) as error:
        fault = Fault(shard.name, "", f"its index cannot be read: {error}")
        return _Checked(shard.name, (fault,), np.zeros(0, np.uint64))
    keys = _hashes([row["key"] for row in rows])
    try:
        faults = tuple(_faults(given, shard, rows, decode))
    except FileNotFoundError:
        faults = (Fault(shard.name, "", "missing"),)
    return _Checked(shard.name, faults, keys)


def _faults(
    given: ShardSet, shard: Shard, rows: list[dict[str, Any]], decode: bool
) -> Iterator[Fault]:
    if len(rows) != shard.samples:
        yield Fault(shard.name, "", f"{len(rows)} rows in the index, manifest says {shard.samples}")
    with store.RangeReader(given.fs, given.path(shard)) as reader:
        if reader.size != shard.bytes:
            yield Fault(shard.name, "", f"{reader.size} bytes, manifest says {shard.bytes}")
        elif reader.sha256() != shard.sha256:
            yield Fault(shard.name, "", "its SHA-256 differs from the manifest's")
        damage: list[Fault] = []

        def damaged(offset: int, reason: str) -> None:
            damage.append(Fault(shard.name, "", f"byte {offset}: {reason}"))

        place = last = 0
        for key, members in _samples(reader, shard.name, damaged):
            last = max(member.stop for member in members.values())
            row = rows[place] if place < len(rows) else None
            if row is None or key != row["key"]:
                expected = row["key"] if row else "the end"
                yield Fault(shard.name, key, f"sample {place}: the index has {expected} here")
                break
            yield from _sample_faults(given, shard, row, members, reader, decode)
            place += 1
        else:
            for row in rows[place:]:
                yield Fault(shard.name, row["key"], "in the index and not in the tar")
        if not archive.ends(reader, last, reader.size):
            yield Fault(shard.name, "", "no end-of-archive marker: it was cut short")
        yield from damage


def _samples(
    reader: store.RangeReader, name: str, damaged: tar.Damage
) -> Iterator[tuple[str, dict[str, tar.Member]]]:
    """Runs of members that share a key."""
    key, members = "", {}
    for member in tar.walk(reader, 0, reader.size, name, damaged):
        if member.kind != "file":
            continue
        own, extension = format.split_name(member.name)
        if own != key and members:
            yield key, members
            members = {}
        key = own
        if extension in members:
            damaged(member.start, f"{member.name} twice in one sample")
        members[extension] = member
    if members:
        yield key, members


def _sample_faults(
    given: ShardSet,
    shard: Shard,
    row: dict[str, Any],
    members: Mapping[str, tar.Member],
    reader: store.RangeReader,
    decode: bool,
) -> Iterator[Fault]:
    key = row["key"]
    image = next((members[e] for e in format.IMAGE_EXTENSIONS if e in members), None)
    if image is None:
        yield Fault(shard.name, key, f"no image, only {sorted(members)}")
        return
    texts = {e: memoryview(reader(m.offset, m.size)) for e, m in members.items() if m is not image}
    try:
        classes = format.labels(key, texts, shard.name, given.manifest.label)
    except ValueError as error:
        yield Fault(shard.name, key, f"label: {error}")
        classes = tuple(row["classes"])
    if list(classes) != row["classes"]:
        yield Fault(shard.name, key, f"labels {list(classes)}, the index has {row['classes']}")
    if max(classes) >= len(given.manifest.classes):
        known = len(given.manifest.classes)
        yield Fault(shard.name, key, f"label {max(classes)}, there are {known} classes")
    extent = min(m.start for m in members.values()), max(m.stop for m in members.values())
    if (*extent, image.offset, image.size) != tuple(
        row[name] for name in ("start", "stop", "offset", "size")
    ):
        yield Fault(shard.name, key, "lies elsewhere than the index says")
    data = reader(image.offset, image.size)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        yield Fault(shard.name, key, "the SHA-256 of its image differs from the index's")
    if decode:
        yield from _image_faults(shard, row, data)


def _image_faults(shard: Shard, row: dict[str, Any], data: bytes) -> Iterator[Fault]:
    try:
        pixels = opened(data)
    except Unusable as error:
        yield Fault(shard.name, row["key"], f"does not decode: {error}")
        return
    if pixels.size != (row["width"], row["height"]):
        says = f"{row['width']}x{row['height']}"
        size = f"{pixels.width}x{pixels.height}"
        yield Fault(shard.name, row["key"], f"{size} pixels, the index has {says}")


def repair(location: str, found: Verified, run: Run = serial) -> Iterator[str]:
    """Make the shards that have faults again, from the sources; yields their names."""
    given = format.open_set(location)
    saved = report.read(given.fs, given.root)
    if saved is None:
        raise ValueError(f"{location} was not built here, so its shards cannot be made again")
    names = {fault.shard for fault in found.faults}
    wanted = {
        writer.Place(split, number): shard
        for split, shards in given.manifest.splits.items()
        for number, shard in enumerate(shards)
        if shard.name in names
    }
    work = _work(given, saved)
    for shard in wanted.values():
        store.discard(given.fs, f"{given.root}/{shard.index_name}")
    for made in run(functools.partial(writer.write_shard, work), list(wanted)):
        if made not in wanted.values():
            raise ValueError(
                f"{made.name} was made again and differs from the manifest: the sources or the "
                "image library changed; build the set anew in another folder"
            )
        yield made.name
    for info in store.listing(given.fs, given.root):
        known = {shard.name for split in given.manifest.splits.values() for shard in split}
        if writer.SHARD_FILE.fullmatch(info.base_name) and info.base_name.endswith(".tar"):
            if info.base_name not in known:
                store.discard(given.fs, info.path)
    format.write_info(given.fs, given.root, given.manifest)
    given.fs.delete_dir(work.work)


def _work(given: ShardSet, saved: report.Saved) -> writer.ShardJob:
    """What remaking shards takes; compressed archives are laid out again."""
    names = {field.name for field in dataclasses.fields(BuildConfig)}
    fields = {k: v for k, v in given.manifest.settings.items() if k in names}
    config = BuildConfig(**{**fields, "exclude": tuple(fields["exclude"])})
    work = f"{given.root}/work"
    store.make_folder(given.fs, work)
    classes = given.manifest.classes if config.classes else None
    context = source.Context(config.source_kind, classes, given.fs, work, {})
    found = source.recognise(list(saved.locations), context)
    systems = tuple(one.fs for one in found)
    return writer.ShardJob(given.fs, given.root, saved.build, systems, work, config.transcode)
