"""Check a shard set against its manifest and indexes, and rebuild faulty shards.

Each fault names its shard and, if it has one, its key. The checks cover the structure of each tar,
counts, hashes, contiguous members, the range of labels, repeated keys, stray files and, unless
quick, that every image decodes to the size in the index. Each shard is read once.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from shards.build import output, report
from shards.build.key import key_hashes
from shards.build.progress import Listen, Run, serial, shown
from shards.build.transcode import Unusable, opened
from shards.dataset import format, sample, store
from shards.dataset.format import Manifest, Shard, ShardSet
from shards.dataset.walker import Files, ShardWalker

SHOWN = 100

Row = dict[str, Any]
"""A row of an index (see format.INDEX)."""


@dataclass(frozen=True)
class Fault:
    """A deviation from the manifest, the index or the format."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        """The fault in one line."""
        return ": ".join(text for text in (self.shard, self.key, self.reason) if text)


@dataclass(frozen=True)
class Verified:
    """Result of a check."""

    shards: int
    samples: int
    decoded: bool
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        """The faults, and how much was checked."""
        lines = [str(fault) for fault in self.faults[:SHOWN]]
        if len(self.faults) > SHOWN:
            lines.append(f"... {len(self.faults):,} faults in all")
        count = f"{len(self.faults):,}" if self.faults else "no"
        how = "every image decoded" if self.decoded else "images not decoded (--quick)"
        summary = f"{count} faults in {self.samples:,} samples of {self.shards:,} shards; {how}"
        return "\n".join([*lines, summary])


@dataclass(frozen=True)
class _Checked:
    """One shard."""

    shard: Shard
    faults: tuple[Fault, ...]
    keys: np.ndarray
    """Hashes of its keys, which reveal keys that occur twice in the set."""


def verify(
    location: str, *, quick: bool = False, run: Run = serial, progress: Listen | None = None
) -> Verified:
    """Check the shard set at location."""
    system, root = store.locate(location)
    saved = report.read(system, root)
    try:
        shard_set = format.open_set(location)
    except (FileNotFoundError, ValueError) as error:
        if saved is None:
            raise
        return Verified(0, 0, not quick, (Fault(format.MANIFEST, "", str(error)),))
    shards = shard_set.manifest.shards
    check = functools.partial(_shard, shard_set, not quick)
    results = shown("verify", run(check, shards), lambda: len(shards), progress, lambda r: r.shard)
    checked = {result.shard.name: result for result in results}
    belongs = ", or index the set again if it belongs" if shard_set.manifest.is_indexed else ""
    stray = f"not in the manifest, but a reader of *.tar would read it; move it away{belongs}"
    faults = [
        Fault(info.path.removeprefix(f"{shard_set.root}/"), "", stray)
        for info in _stray_tars(shard_set)
    ]
    if saved is not None and shard_set.fingerprint != saved.manifest:
        faults.append(Fault(format.MANIFEST, "", "not as the build wrote it"))
    faults += _timm_info_faults(shard_set) if saved is None else _text_faults(shard_set)
    for shard in shards:
        faults += checked[shard.name].faults
    faults += _repeated(shard_set, [(shard, checked[shard.name].keys) for shard in shards])
    return Verified(len(shards), sum(s.samples for s in shards), not quick, tuple(faults))


def _stray_tars(shard_set: ShardSet) -> list[pafs.FileInfo]:
    """Tars that are not in the manifest."""
    system, root, manifest = shard_set.fs, shard_set.root, shard_set.manifest
    subfolders = format.SUBFOLDERS if manifest.is_indexed else ()
    known = {shard.name for shard in manifest.shards}
    strays = set(format.tar_names(system, root, subfolders)) - known
    return system.get_file_info([f"{root}/{name}" for name in sorted(strays)])


def _text_faults(shard_set: ShardSet) -> Iterator[Fault]:
    """Faults of what a build writes beside the manifest, and which follows from it."""
    for name, text in output.texts(shard_set.manifest).items():
        try:
            found = store.read_bytes(shard_set.fs, f"{shard_set.root}/{name}")
        except OSError as error:
            yield Fault(name, "", f"cannot be read: {type(error).__name__}")
            continue
        if found != text.encode():
            yield Fault(name, "", "does not agree with the manifest")


def _timm_info_faults(shard_set: ShardSet) -> Iterator[Fault]:
    """Faults of _info.json; that of another tool may list shards that were not downloaded."""
    manifest = shard_set.manifest
    expected = {shard.name: shard.samples for shard in manifest.shards}
    try:
        info = json.loads(store.read_bytes(shard_set.fs, f"{shard_set.root}/{format.TIMM_INFO}"))
        lengths = {
            name: length
            for split in info["splits"].values()
            for name, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # training does not read it, so other tools need not have written it or all of it
        if not manifest.is_indexed or not isinstance(error, FileNotFoundError | KeyError):
            yield Fault(format.TIMM_INFO, "", f"cannot be read: {type(error).__name__}")
        return
    if manifest.is_indexed:
        lengths = expected | {name: lengths[name] for name in expected.keys() & lengths.keys()}
    if lengths != expected:
        yield Fault(format.TIMM_INFO, "", "its counts differ from the manifest's")


def _repeated(shard_set: ShardSet, keys: list[tuple[Shard, np.ndarray]]) -> Iterator[Fault]:
    """Keys that occur more than once in the set, given the hashes of each shard's keys."""
    values, counts = np.unique(np.concatenate([k for _, k in keys] or [[]]), return_counts=True)
    repeated = values[counts > 1]
    for shard, hashes in keys:
        rows = np.flatnonzero(np.isin(hashes, repeated))
        if rows.size:
            names = shard_set.read_index(shard)["key"].to_pylist()
            yield from (Fault(shard.name, names[row], "a key that occurs twice") for row in rows)


def _shard(shard_set: ShardSet, decode: bool, shard: Shard) -> _Checked:
    """Check one shard; problems with its files are faults, not errors."""
    try:
        rows = shard_set.read_index(shard).to_pylist()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        fault = Fault(shard.name, "", f"its index cannot be read: {error}")
        return _Checked(shard, (fault,), np.zeros(0, np.uint64))
    keys = key_hashes(row["key"] for row in rows)
    try:
        reasons = list(_shard_faults(shard_set, shard, rows, decode))
    except FileNotFoundError:
        reasons = [("", "missing")]
    except OSError as error:
        reasons = [("", f"cannot be read: {error}")]
    return _Checked(shard, tuple(Fault(shard.name, *reason) for reason in reasons), keys)


def _shard_faults(
    shard_set: ShardSet, shard: Shard, rows: list[Row], decode: bool
) -> Iterator[tuple[str, str]]:
    """Keys ("" for the shard as a whole) and reasons of the faults of a shard."""
    if len(rows) != shard.samples:
        yield "", f"{len(rows)} rows in the index, {shard.samples} in the manifest"
    damage: list[tuple[str, str]] = []

    def damaged(offset: int, reason: str) -> None:
        damage.append(("", f"byte {offset}: {reason}"))

    left, compares = iter(rows), True
    with ShardWalker(shard_set.fs, shard_set.path(shard), shard.name) as walker:
        if walker.size != shard.bytes:
            yield "", f"{walker.size} bytes, the manifest has {shard.bytes}"
        for place, files in enumerate(walker.samples(damaged)):
            row = next(left, None) if compares else None
            if row and files.key == row["key"]:
                for reason in _sample_faults(shard_set.manifest, row, files, decode):
                    yield files.key, reason
            elif compares:  # the first of many that follow from it; the rest of the tar is walked
                compares, expected = False, row["key"] if row else "the end"
                yield files.key, f"sample {place}: the index has {expected} here"
        if compares:
            yield from ((row["key"], "in the index but not in the tar") for row in left)
        if walker.sha256() != shard.sha256 and walker.size == shard.bytes:
            yield "", "its SHA-256 differs from the manifest's"
    yield from damage


def _sample_faults(manifest: Manifest, row: Row, files: Files, decode: bool) -> Iterator[str]:
    """Reasons of the faults of a sample, given its row of the index."""
    extension = next((e for e in sample.IMAGE_EXTENSIONS if e in files.parts), "")
    if not extension:
        yield f"no image, only {sorted(files.parts)}"
        return
    try:
        classes = list(sample.labels(files.key, files.parts, "label", manifest.label))
    except ValueError as error:
        yield str(error)
    else:
        if classes != row["classes"]:
            yield f"labels {classes}, the index has {row['classes']}"
        if max(classes) >= len(manifest.classes):
            yield f"label {max(classes)}, but there are {len(manifest.classes)} classes"
    image, data = files.members[extension], bytes(files.parts[extension])
    indexed = tuple(row[name] for name in ("start", "stop", "offset", "size"))
    if (files.start, files.stop, image.offset, image.size) != indexed:
        yield "its byte ranges differ from the index's"
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        yield "the SHA-256 of its image differs from the index's"
    if decode or not row["width"]:
        try:
            width, height = opened(data).size
        except Unusable as error:
            yield f"does not decode: {error}"
            return
        if (width, height) != (row["width"], row["height"]):
            yield f"{width}x{height} pixels, the index has {row['width']}x{row['height']}"
