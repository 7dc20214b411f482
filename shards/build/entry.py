"""What lies in a part of a source: every file with its bytes, class and split, or why not.

Nothing is ever unpacked to a path that an archive names: members are read where they lie, and
links, devices and names such as "../x" are but text in a report.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from shards.build import archive
from shards.build.archive import Part
from shards.dataset import format, store, tar

LARGEST_FILE = 1 << 28


@dataclass
class Entry:
    """One file of a source before it is looked at."""

    archive: str
    member: str
    path: str
    offset: int
    size: int
    data: bytes = b""
    wnids: tuple[str, ...] = ()
    split: str = ""
    problem: str = ""


def entries(
    system: pafs.FileSystem, parts: Sequence[Part], faults: Sequence[archive.Fault] = ()
) -> Iterator[Entry]:
    """Every file of the parts, in order, and every fault found on the way."""
    for fault in faults:
        yield Entry(fault.archive, fault.member, "", fault.offset, 0, problem=fault.reason)
    for part in parts:
        yield from _READERS[part.layout](system, part)


def _tar_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    faults: list[Entry] = []
    last = part.start

    def damage(offset: int, reason: str) -> None:
        faults.append(Entry(part.archive, "", part.path, offset, 0, problem=reason))

    with store.RangeReader(system, part.path) as reader:
        for member in tar.walk(reader, part.start, part.stop, part.archive, damage):
            last = member.stop
            yield from faults
            faults.clear()
            if member.kind == "folder":
                continue
            entry = Entry(part.archive, member.name, part.path, member.offset, member.size)
            wnid, split = _class_of(member.name, part)
            entry.wnids, entry.split = ((wnid,) if wnid else ()), split
            _fill(entry, reader, member.kind)
            yield entry
        if part.has_end and not archive.ends(reader, last, part.stop):
            damage(part.stop, archive.NO_END)
    yield from faults


def _class_of(name: str, part: Part) -> tuple[str, str]:
    if part.wnid:
        return part.wnid, part.split
    if part.labels:
        return part.labels.get(name.rpartition("/")[2], ""), part.split
    wnid, split = archive.class_of_path(name)
    return wnid, part.split or split


def _fill(entry: Entry, read: tar.Read, kind: str = "file") -> None:
    """Read an entry's bytes, or say why not."""
    if kind != "file":
        entry.problem = f"a {kind}, not an image"
    elif not entry.wnids:
        entry.problem = "no class: neither a folder nor a list of labels says one"
    elif entry.size > LARGEST_FILE:
        entry.problem = f"a file of {entry.size} bytes; at most {LARGEST_FILE} are read"
    else:
        entry.data = bytes(read(entry.offset, entry.size))


def _folder_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    for info in store.listing(system, part.path):
        entry = Entry(part.archive, info.base_name, info.path, 0, info.size or 0)
        entry.wnids, entry.split = (part.wnid,), part.split
        if info.type != pafs.FileType.File:
            entry.problem = f"a {info.type.name.lower()}, not an image file"
            yield entry
            continue
        with store.RangeReader(system, info.path) as reader:
            _fill(entry, reader)
        yield entry


def _sample_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    """Samples of a WebDataset shard, also where members of different samples alternate."""
    samples: dict[str, dict[str, tar.Member]] = {}
    faults: list[Entry] = []
    last = part.start

    def damage(offset: int, reason: str) -> None:
        faults.append(Entry(part.archive, "", part.path, offset, 0, problem=reason))

    with store.RangeReader(system, part.path) as reader:
        for member in tar.walk(reader, part.start, part.stop, part.archive, damage):
            last = member.stop
            if member.kind == "file":
                key, extension = format.split_name(member.name)
                samples.setdefault(key, {})[extension] = member
        if not archive.ends(reader, last, part.stop):
            damage(part.stop, archive.NO_END)
        yield from faults
        for key, members in samples.items():
            yield _sample(part, key, members, reader)


def _sample(part: Part, key: str, members: dict[str, tar.Member], read: tar.Read) -> Entry:
    images = [members[e] for e in format.IMAGE_EXTENSIONS if e in members]
    entry = Entry(part.archive, key, part.path, 0, 0, split=part.split)
    if not images:
        entry.problem = f"no image among {sorted(members)}"
        return entry
    entry.member, entry.offset, entry.size = images[0].name, images[0].offset, images[0].size
    texts = {
        extension: memoryview(read(member.offset, member.size))
        for extension, member in members.items()
        if extension in ("cls", "json") and member.size <= LARGEST_FILE
    }
    try:
        numbers = format.labels(key, texts, part.archive, part.label)
        entry.wnids = tuple(part.classes[number] for number in numbers)
    except (ValueError, IndexError) as error:
        entry.problem = str(error) or "label out of range"
        return entry
    _fill(entry, read)
    return entry


_READERS = {"tar": _tar_entries, "folder": _folder_entries, "samples": _sample_entries}
