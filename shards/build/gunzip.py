"""Lay a gzip archive out, in one pass, as uncompressed tars that tasks can read alone.

    winter21_whole.tar.gz -> work/laid-HASH/00000.tar ... + listing.json

The files get numbers as names, so that no name of the archive becomes a path. After a kill, the
pass starts again at the first byte, because gzip has no random access, but it writes only the files
that are missing.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace

import pyarrow as pa
from pyarrow import fs as pafs

from shards.build import archive
from shards.build.archive import Fault, Part, RawSource
from shards.build.config import Kind
from shards.dataset import store, tar

CHUNK = 4 << 20
READ = 1 << 20
UNKNOWN = 1 << 62
_GZIP = 31  # wbits of zlib: a gzip header and the largest window
_BEHIND = 2 << 20  # bytes that a walk may look back: a header and its long-name record


class GzipStream:
    """Forward reads of the content of a gzip file, `stream(offset, size)`, short only at its end.

    `damage` is the reason why the content ends early, "" if it does not.
    """

    def __init__(self, raw: RawSource) -> None:
        self._file = raw.fs.open_input_stream(raw.path, compression=None)
        self._compressed_bytes = 0
        self._pieces = filter(None, self._inflated())
        self._start, self._data = 0, bytearray()
        self.damage = ""

    def __call__(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of the uncompressed content."""
        place = offset - self._start
        if place < 0:
            raise RuntimeError(f"cannot go back to byte {offset} of a stream at {self._start}")
        while place + size > len(self._data) and (piece := next(self._pieces, b"")):
            self._data += piece
            surplus = min(place - _BEHIND, len(self._data))
            if surplus > CHUNK:
                del self._data[:surplus]
                self._start += surplus
                place -= surplus
        return bytes(self._data[place : place + size])

    @property
    def end(self) -> int:
        """Uncompressed bytes read so far."""
        return self._start + len(self._data)

    @property
    def ratio(self) -> float:
        """Uncompressed bytes per compressed byte."""
        return self.end / max(self._compressed_bytes, 1)

    def _inflated(self) -> Iterator[bytes]:
        """The content in pieces, as far as it can be read; sets `damage` if that is not the end.

        The module `gzip` loses up to a whole read of good data before the damage.
        """
        engine = zlib.decompressobj(_GZIP)
        while data := self._file.read(READ):
            self._compressed_bytes += len(data)
            while data:
                if engine.eof:
                    if not data.strip(b"\0"):  # the padding that tapes add
                        break
                    engine = zlib.decompressobj(_GZIP)  # concatenated files count as one
                spare = engine.copy()
                try:
                    yield engine.decompress(data, CHUNK)
                except zlib.error as error:
                    yield _salvaged(spare, data)
                    self.damage = f"gzip data is damaged from here on: {error}"
                    return
                data = engine.unused_data if engine.eof else engine.unconsumed_tail
        if not engine.eof:
            self.damage = "gzip data ends early: the archive is cut short"


def _salvaged(engine: "zlib._Decompress", data: bytes) -> bytes:
    """The content that precedes the damage in `data`."""
    pieces = []
    with contextlib.suppress(zlib.error):
        for place in range(len(data)):
            pieces.append(engine.decompress(data[place : place + 1]))
    return b"".join(pieces)


def lay_out(raw: RawSource, kind: Kind, system: pafs.FileSystem, work: str) -> list[Part | Fault]:
    """Parts of a gzip archive, which is laid out below `work` unless that was done before."""
    mark = f"{raw.location}\0{raw.info.size}\0{raw.info.mtime_ns}"
    folder = f"{work}/laid-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
    listing = f"{folder}/listing.json"
    fields = store.read_json(system, listing)
    if fields is None:
        store.make_folder(system, folder)
        store.sweep(system, folder)
        cut = _inner_tars if kind == "class-tars" else _runs
        faults: list[Fault] = []
        parts = list(cut(raw, GzipStream(raw), system, folder, faults))
        fields = {"parts": list(map(asdict, parts)), "faults": list(map(asdict, faults))}
        store.write_bytes(system, listing, json.dumps(fields).encode())
    parts = [Part(**{**part, "classes": tuple(part["classes"])}) for part in fields["parts"]]
    return [*parts, *(Fault(**fault) for fault in fields["faults"])]


def _inner_tars(
    raw: RawSource, stream: GzipStream, system: pafs.FileSystem, folder: str, faults: list[Fault]
) -> Iterator[Part]:
    """Write each class tar to a file."""
    number = 0
    for inner in archive.class_tars(raw, _members(raw, stream, faults)):
        if isinstance(inner, Fault):
            faults.append(inner)
            continue
        path = f"{folder}/{number:05d}.tar"
        if size := _copy(stream, inner.start, inner.stop, system, path):
            yield replace(inner, path=path, start=0, stop=size)
        number += 1


def _runs(
    raw: RawSource, stream: GzipStream, system: pafs.FileSystem, folder: str, faults: list[Fault]
) -> Iterator[Part]:
    """Write runs of members of a flat tar, each run to a file."""
    members = _members(raw, stream, faults)
    member, number = next(members, None), 0
    while member is not None:
        path, size, has_val = f"{folder}/{number:05d}.tar", 0, False
        exists = store.exists(system, path)
        with contextlib.nullcontext() if exists else store.written(system, path) as file:
            while member is not None and size < archive.PART_BYTES:
                size += _pour(stream, member.start, member.stop, file)
                has_val = has_val or archive.class_of_path(member.name)[1] == "val"
                member = next(members, None)
        yield Part(
            path=path, archive=raw.name, layout="tar", stop=size, has_val=has_val, has_end=False
        )
        number += 1


def _members(raw: RawSource, stream: GzipStream, faults: list[Fault]) -> Iterator[tar.Member]:
    def damage(offset: int, reason: str) -> None:
        faults.append(Fault(raw.name, "", offset, stream.damage or reason))

    yield from tar.walk(stream, 0, UNKNOWN, raw.name, damage)
    if stream.damage and not any(fault.reason == stream.damage for fault in faults):
        damage(stream.end, stream.damage)


def _copy(stream: GzipStream, start: int, stop: int, system: pafs.FileSystem, path: str) -> int:
    """Write bytes of the stream to a file, unless it exists; returns its size."""
    size = store.size_of(system, path)
    if size is not None:
        return size
    with store.written(system, path) as file:
        return _pour(stream, start, stop, file)


def _pour(stream: GzipStream, start: int, stop: int, file: pa.NativeFile | None) -> int:
    """Read bytes [start, stop) of the stream into a file, or nowhere; returns how many there were.

    There are fewer than asked for if the stream ends before `stop`.
    """
    place = start
    while place < stop and (data := stream(place, min(CHUNK, stop - place))):
        if file is not None:
            file.write(data)
        place += len(data)
    return place - start
