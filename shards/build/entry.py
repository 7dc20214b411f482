"""The files in the parts of a source: each with its bytes, class and split, or with a problem.

Nothing is unpacked to a path that an archive names. Members are read in place; links, devices and
names such as "../x" appear only as text in the report.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from shards.build import archive
from shards.build.archive import Fault, Part
from shards.dataset import format, store, tar

LARGEST_FILE = 1 << 28


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


def entries(
    system: pafs.FileSystem, parts: Sequence[Part], faults: Sequence[Fault] = ()
) -> Iterator[Entry]:
    """Entries for the faults, then for every file and damaged place of the parts, in order."""
    for fault in faults:
        yield _faulty(fault)
    for part in parts:
        yield from _READERS[part.layout](system, part)


def _faulty(fault: Fault, path: str = "") -> Entry:
    return Entry(fault.archive, fault.member, path, fault.offset, 0, problem=fault.reason)


def _tar_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    with store.RangeReader(system, part.path) as reader:
        for member in archive.members(reader, part.start, part.stop, part.archive, part.has_end):
            if isinstance(member, Fault):
                yield _faulty(member, part.path)
            elif member.kind != "folder":
                entry = Entry(part.archive, member.name, part.path, member.offset, member.size)
                entry.wnids, entry.split = _class_of(member.name, part)
                _fill(entry, reader, member.kind)
                yield entry


def _class_of(name: str, part: Part) -> tuple[tuple[str, ...], str]:
    """Classes and split of a member of a tar."""
    wnid, split = part.wnid, part.split
    if not wnid and part.labels:
        wnid = part.labels.get(name.rpartition("/")[2], "")
    elif not wnid:
        wnid, path_split = archive.class_of_path(name)
        split = split or path_split
    return ((wnid,) if wnid else ()), split


def _fill(entry: Entry, read: tar.Read, kind: str = "file") -> None:
    """Read the bytes of an entry, or set its problem."""
    if kind != "file":
        entry.problem = f"a {kind}, not an image"
    elif not entry.wnids:
        entry.problem = "no class: neither a folder nor a list of labels gives one"
    elif entry.size > LARGEST_FILE:
        entry.problem = f"a file of {entry.size} bytes; at most {LARGEST_FILE} are read"
    else:
        entry.data = bytes(read(entry.offset, entry.size))


def _folder_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    for info in store.listing(system, part.path):
        entry = Entry(part.archive, info.base_name, info.path, 0, info.size or 0)
        entry.wnids, entry.split = (part.wnid,), part.split
        if info.type == pafs.FileType.File:
            with store.RangeReader(system, info.path) as reader:
                _fill(entry, reader)
        else:
            entry.problem = f"a {info.type.name.lower()}, not an image file"
        yield entry


def _sample_entries(system: pafs.FileSystem, part: Part) -> Iterator[Entry]:
    """Samples of a WebDataset shard, even if the members of different samples are interleaved."""
    samples: dict[str, dict[str, tar.Member]] = {}
    with store.RangeReader(system, part.path) as reader:
        for member in archive.members(reader, part.start, part.stop, part.archive):
            if isinstance(member, Fault):
                yield _faulty(member, part.path)
            elif member.kind == "file":
                key, extension = format.split_name(member.name)
                samples.setdefault(key, {})[extension] = member
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
        entry.problem = str(error)
    else:
        _fill(entry, read)
    return entry


_READERS = {"tar": _tar_entries, "folder": _folder_entries, "samples": _sample_entries}
