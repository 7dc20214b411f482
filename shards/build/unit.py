"""Units: the pieces of sources that one task catalogues.

    sources -> Unit(0), Unit(1), ...        catalogue/unit-00000.npz: a unit that was found before

An archive is cut on the way through it, so the tasks of its first units run before the last ones
are found. A compressed archive has one way only, from its first byte to its last: 1 TB takes about
an hour. So every unit is stored as soon as it is found, with the points at which the archive can be
entered, and a build that was killed goes on from the last one.
"""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pyarrow import fs as pafs

from shards.build import archive
from shards.build.archive import Fault, Part, Source
from shards.build.folder import FOLDERS, shard
from shards.build.gzip_reader import UNKNOWN, GzipReader, Point
from shards.dataset import store, tar

UNITS = 256
SMALLEST, LARGEST = 128 << 20, 2 << 30
"""Bytes of a unit: sources are cut in about UNITS units, as far as these bounds allow. The images
of a unit, once shrunk, must fit in the memory of its task; a shard reads from every unit, and the
files of a unit take some thirty requests in an object store."""
HEADER_READ = 4096


@dataclass(frozen=True)
class Unit:
    """The parts that one task catalogues."""

    number: int
    source: int
    parts: tuple[Part, ...]
    faults: tuple[Fault, ...] = ()
    points: tuple[Point, ...] = ()
    """Where a compressed archive can be entered to read the parts."""
    last: bool = False
    """Whether the source has no more units."""

    @property
    def digest(self) -> str:
        """Identifies what it holds of its source."""
        content = json.dumps([list(map(dataclasses.asdict, self.parts + self.faults))])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class UnitFiles:
    """Where found units are stored."""

    fs: pafs.FileSystem
    root: str
    identity: str
    """Of the sources; units of other sources are found anew."""

    def path(self, number: int) -> str:
        """Path of the file of a unit."""
        return f"{self.root}/catalogue/unit-{number:05d}.npz"

    def read(self, number: int) -> Unit | None:
        """A stored unit; None if there is none of these sources, or it is damaged."""
        if not store.exists(self.fs, self.path(number)):
            return None
        read = functools.partial(store.read_bytes, self.fs, self.path(number))
        data = store.retried(self.fs, self.path(number), read)
        try:
            with np.load(io.BytesIO(data)) as file:
                fields, windows = json.loads(str(file["unit"])), file["windows"].tobytes()
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        if fields.pop("identity") != self.identity:
            return None
        points = []
        for *numbers, size in fields["points"]:
            points.append(Point(*numbers, window=windows[:size]))
            windows = windows[size:]
        parts = tuple(Part(**{**p, "classes": tuple(p["classes"])}) for p in fields["parts"])
        faults = tuple(Fault(**fault) for fault in fields["faults"])
        return Unit(**{**fields, "parts": parts, "faults": faults, "points": tuple(points)})

    def write(self, unit: Unit) -> None:
        """Store a unit."""
        fields = {
            **vars(unit),
            "identity": self.identity,
            "parts": [dataclasses.asdict(part) for part in unit.parts],
            "faults": [dataclasses.asdict(fault) for fault in unit.faults],
            "points": [[*list(vars(p).values())[:-1], len(p.window)] for p in unit.points],
        }
        windows = np.frombuffer(b"".join(p.window for p in unit.points), np.uint8)
        file = io.BytesIO()
        np.savez(file, unit=np.array(json.dumps(fields)), windows=windows)
        store.write_bytes(self.fs, self.path(unit.number), file.getvalue())


def units(sources: Sequence[Source], files: UnitFiles | None = None) -> Iterator[Unit]:
    """The units of the sources in order; with `files` those of archives are stored and read.

    They come with the first of their points: all of them are for those who read a part of one.
    """
    number = 0
    for place, source in enumerate(sources):
        if source.kind == "devkit":
            continue
        found = _of_folder if source.raw.is_folder or source.kind == "webdataset" else _of_archive
        for unit in found(source, place, number, files):
            yield dataclasses.replace(unit, points=unit.points[:1])
            number = unit.number + 1


def expected(sources: Sequence[Source]) -> int:
    """About how many units there will be, given that archives of images hardly compress."""
    count = 0
    for source in sources:
        if source.raw.is_folder and source.kind != "devkit":
            parts = [part for part in FOLDERS[source.kind](source) if isinstance(part, Part)]
            size = sum(part.bytes for part in parts)
            count += min(len(parts), -(-size // _unit_bytes(size)))
        elif source.kind != "devkit":
            count += -(-source.bytes // _unit_bytes(source.bytes))
    return count


def _of_folder(source: Source, place: int, number: int, _: UnitFiles | None) -> Iterator[Unit]:
    if source.raw.is_folder:
        items = list(FOLDERS[source.kind](source))
    else:
        items = [shard(source, source.raw.path, source.bytes, archive.split_of(source.name))]
    size = _unit_bytes(sum(item.bytes for item in items if isinstance(item, Part)))
    for parts, faults, is_last in _joined(iter(items), size):
        yield Unit(number, place, parts, faults, last=is_last)
        number += 1


def _of_archive(source: Source, place: int, number: int, files: UnitFiles | None) -> Iterator[Unit]:
    unit = None
    while files and (unit := files.read(number)):
        yield unit
        if unit.last:
            return
        number += 1
    before = files.read(number - 1) if files and number else None
    start, points = 0, ()
    if before and before.source == place:
        start, points = tar.padded(before.parts[-1].stop), before.points[-1:]
    # headers that lie far apart are read one by one, headers close to each other in blocks
    far = source.kind == "class-tars" or store.is_local(source.fs)
    with source.open(points, block=HEADER_READ if far else None) as reader:
        items = _items(source, reader, start)
        for parts, faults, is_last in _joined(items, _unit_bytes(source.bytes)):
            unit = Unit(number, place, parts, faults, _points(reader, parts), is_last)
            if files:
                files.write(unit)
            yield unit
            number += 1


def _items(
    source: Source, reader: store.RangeReader | GzipReader, start: int
) -> Iterator[Part | Fault]:
    """Parts and faults of an archive from byte `start` of its content on."""
    members = archive.members(reader, start, reader.size, source.name)
    if source.kind == "class-tars":
        items = archive.class_tars(source.name, members)
    else:
        items = archive.flat_tar(source.name, members, source.labels)
    yield from items
    if reader.size == UNKNOWN and reader.damage:
        yield Fault(source.name, "", reader.end, reader.damage, damage=True)


def _joined(
    items: Iterator[Part | Fault], size: int
) -> Iterator[tuple[tuple[Part, ...], tuple[Fault, ...], bool]]:
    """Parts and faults of each unit of at least `size` bytes, and whether it is the last one."""
    parts: list[Part] = []
    faults: list[Fault] = []
    item = next(items, None)
    while item is not None:
        (parts if isinstance(item, Part) else faults).append(item)
        item = next(items, None)
        if item is not None and sum(part.bytes for part in parts) >= size:
            yield tuple(parts), tuple(faults), False
            parts, faults = [], []
    yield tuple(parts), tuple(faults), True


def _points(reader: store.RangeReader | GzipReader, parts: Sequence[Part]) -> tuple[Point, ...]:
    """The points for reading the parts; the reader then keeps the last of them, to go on from."""
    if not isinstance(reader, GzipReader):
        return ()
    stop = tar.padded(parts[-1].stop) if parts else reader.end
    points = tuple(point for point in reader.points if point.start <= stop)
    reader.points = reader.points[len(points) - 1 :]
    return points


def _unit_bytes(total: int) -> int:
    return min(LARGEST, max(SMALLEST, total // UNITS))
