"""The files in the parts of a source: each with its bytes, class and split, or with a problem.

Nothing is unpacked to a path that an archive names. Members are read in place; links, devices and
names such as "../x" appear only as text in the report.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pyarrow import fs as pafs

from shards.build import archive
from shards.build.archive import NO_LABELS, Fault, Part, Source
from shards.build.unit import Unit
from shards.dataset import sample, store, tar
from shards.dataset.walker import LARGEST, Files, ShardWalker

CUT = "the archive ends inside this file"
NO_FILE = "the class has no file"
NOT_FOLLOWED = "a folder that no file in it follows"


@dataclass
class Entry:
    """One file of a source, not yet decoded."""

    archive: str
    member: str
    path: str
    offset: int
    size: int
    data: bytes = b""
    wnids: tuple[str, ...] = ()
    split: str = ""
    problem: str = ""
    damage: bool = False
    """Whether images may be missing without a name, so that the whole source is in doubt."""


def entries(source: Source, unit: Unit) -> Iterator[Entry]:
    """Entries for the faults, then for every file and damaged place of a unit, in order."""
    for fault in unit.faults:
        yield _faulty(fault)
    for path, parts in itertools.groupby(unit.parts, key=lambda part: part.path):
        with contextlib.ExitStack() as stack:
            reader = None
            for part in parts:
                if part.layout == "tar":
                    reader = reader or stack.enter_context(source.open(unit.points, path))
                    found = _tar_entries(reader, part)
                elif part.layout == "samples":
                    found = _sample_entries(source.fs, part)
                else:
                    found = _folder_entries(source.fs, part)
                is_known = not part.wnid  # also without a file
                for entry in found:
                    is_known = is_known or bool(entry.wnids)
                    yield entry
                if not is_known:
                    place = part.archive, "", part.path, part.start, 0
                    yield Entry(*place, wnids=(part.wnid,), split=part.split, problem=NO_FILE)


def _faulty(fault: Fault, path: str = "") -> Entry:
    place = fault.archive, fault.member, path, fault.offset, 0
    return Entry(*place, problem=fault.reason, damage=fault.damage)


def _tar_entries(read: tar.Read, part: Part) -> Iterator[Entry]:
    empty, fault = None, None  # the class folder, and the fault, just before a member
    for member in archive.members(read, part.start, part.stop, part.archive, part.has_end):
        if isinstance(member, Fault):
            fault = member
            yield _faulty(member, part.path)
            continue
        if empty and not member.name.startswith(f"{empty.member}/"):
            yield empty
        empty = None
        if member.kind == "folder":
            name = member.name.rstrip("/")
            empty = Entry(part.archive, name, part.path, member.start, 0, problem=NOT_FOLLOWED)
            empty.wnids, empty.split = _class_of(f"{name}/", part)
            empty = None if part.wnid or not empty.wnids else empty
            continue
        if _is_of_macos(member.name):
            continue
        entry = Entry(part.archive, member.name, part.path, member.offset, member.size)
        entry.wnids, entry.split = _class_of(member.name, part)
        _fill(entry, read, member.kind)
        if fault and fault.offset == member.start:
            entry.problem = CUT
        yield entry
    if empty:
        yield empty


def _is_of_macos(name: str) -> bool:
    """Whether a file is one that macOS adds: .DS_Store to a folder, and ._NAME to each NAME."""
    base = name.rpartition("/")[2]
    return base == ".DS_Store" or base.startswith("._")


def _class_of(name: str, part: Part) -> tuple[tuple[str, ...], str]:
    """Classes and split of a file, by its part, by a list of labels, or by its path."""
    base = name.rpartition("/")[2]
    if part.wnid:
        return (part.wnid,), part.split
    if base in part.labels:
        return (part.labels[base],), "val"
    if part.layout == "folder":
        return (), part.split
    wnid, split = archive.class_of_path(name)
    return ((wnid,) if wnid else ()), part.split or split


def _fill(entry: Entry, read: tar.Read, kind: str = "file") -> None:
    """Read the bytes of an entry, or set its problem."""
    if kind != "file":
        entry.problem = f"a {kind}, not an image"
    elif not entry.wnids and archive.VAL_NAME.fullmatch(entry.member.rpartition("/")[2]):
        entry.problem = f"a validation image of ILSVRC2012 without a class: {NO_LABELS}"
        entry.damage = True
    elif not entry.wnids:
        entry.problem = "no class: neither a folder nor a list of labels gives one"
    elif entry.size > LARGEST:
        entry.problem = f"a file of {entry.size} bytes; at most {LARGEST} are read"
    else:
        entry.data = bytes(read(entry.offset, entry.size))
        if len(entry.data) < entry.size:
            entry.problem, entry.damage = CUT, True


def _folder_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    for info in store.listing(system, part.path)[part.start : part.stop or None]:
        if _is_of_macos(info.base_name):
            continue
        entry = Entry(part.archive, info.base_name, info.path, 0, info.size or 0)
        entry.wnids, entry.split = _class_of(info.base_name, part)
        if info.type == pafs.FileType.File:
            with store.RangeReader(system, info.path) as reader:
                _fill(entry, reader)
        else:
            entry.problem = f"a {info.type.name.lower()}, not an image file"
        yield entry


def _sample_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    """Samples of a WebDataset shard, even if the members of different samples are interleaved.

    A sample without an image or a label waits for the rest of its members, without the bytes of
    its image; those of neighbours come in one pass over the shard.
    """
    faults: list[Fault] = []
    waiting: dict[str, Files] = {}

    def damage(offset: int, reason: str) -> None:
        faults.append(Fault(part.archive, "", offset, reason, damage=True))

    with ShardWalker(system, part.path, part.archive) as walker:
        if walker.size != part.stop:
            damage(0, f"{walker.size} bytes, {part.stop} were expected")
        for files in walker.samples(damage):
            yield from (_faulty(fault, part.path) for fault in faults)
            faults.clear()
            earlier = waiting.pop(files.key, None)
            if earlier and earlier.members.keys().isdisjoint(files.members):
                files = files._replace(
                    members=earlier.members | files.members, parts=earlier.parts | files.parts
                )
            elif earlier:
                yield _sample(part, earlier, walker)
            entry = _sample(part, files, walker)
            if entry.problem:
                texts = {e: data for e, data in files.parts.items() if e in ("cls", "json")}
                waiting[files.key] = files._replace(parts=texts)
            else:
                yield entry
        if part.sha256 and walker.sha256() != part.sha256:
            damage(0, "its SHA-256 differs from the manifest's")
        yield from (_faulty(fault, part.path) for fault in faults)
        for files in waiting.values():
            yield _sample(part, files, walker)


def _sample(part: Part, files: Files, read: tar.Read) -> Entry:
    extension = next((e for e in sample.IMAGE_EXTENSIONS if e in files.members), "")
    entry = Entry(part.archive, files.key, part.path, 0, 0, split=part.split)
    if not extension:
        entry.problem = f"no image among {sorted(files.members)}"
        return entry
    image = files.members[extension]
    entry.member, entry.offset, entry.size = image.name, image.offset, image.size
    try:
        numbers = sample.labels(files.key, files.parts, part.archive, part.label)
        entry.wnids = tuple(part.classes[number] for number in numbers)
    except (ValueError, IndexError) as error:
        entry.problem = str(error)
        return entry
    entry.data = bytes(files.parts.get(extension) or read(image.offset, image.size))
    return entry
