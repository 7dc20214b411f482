"""Random reads of the content of a gzip file, which can be entered at points that were noted.

    reader = GzipReader(fs, path, (BEGIN,))     # reader(offset, size) -> bytes, reads on to there
    reader.points                               # one for each 4 MiB that were read
    GzipReader(fs, path, reader.points[7:])     # goes on from there: no byte before it is read

The scheme is that of zran.c by Mark Adler, in zlib's examples: at the border of two blocks, the
place of the next bit and the 32 KiB before it are all that inflating needs. Every CRC is checked,
also that of a file which is read in several runs. It calls zlib itself, because Python's module
does not tell borders. (indexed_gzip reads a file three times when it is read while its index is
made, checks no CRC after it was entered, and holds the whole index, 8 GB for 1 TB, in every task.)
"""

import bisect
import contextlib
import ctypes
import ctypes.util
import functools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pyarrow import fs as pafs

from shards.dataset import store

SPACING = 4 << 20
"""Bytes of content between two points: they take 0.8 % of the archive, and to read one image on its
own takes 2 MiB before it."""
WINDOW = 32 << 10
UNKNOWN = 1 << 62
"""The size of content that was not read to its end."""
_OUT = 1 << 20
_BEHIND = 2 << 20  # bytes that a walk may look back: a header and its long-name record
_HEADER, _TRAILER = 1 << 16, 8
_Z_NO_FLUSH, _Z_BLOCK, _Z_OK, _Z_STREAM_END, _Z_BUF_ERROR = 0, 5, 0, 1, -5


@dataclass(frozen=True)
class Point:
    """A place at which a gzip file can be entered."""

    compressed: int
    """The first whole byte of the file after the place."""
    bits: int
    """Bits of the byte before it that are still to be read; -1 at the header of a gzip member."""
    start: int
    """Byte of the content."""
    member: int = 0
    """Bytes of content that the gzip member has before the point, and their CRC-32."""
    crc: int = 0
    window: bytes = b""
    """The last bytes of content before it."""


BEGIN = Point(0, -1, 0)


class _Stream(ctypes.Structure):
    """z_stream of zlib.h."""

    _fields_ = (
        *(("next_in", ctypes.c_void_p), ("avail_in", ctypes.c_uint), ("total_in", ctypes.c_ulong)),
        *(("next_out", ctypes.c_void_p), ("avail_out", ctypes.c_uint)),
        *(("total_out", ctypes.c_ulong), ("msg", ctypes.c_char_p), ("state", ctypes.c_void_p)),
        *(("zalloc", ctypes.c_void_p), ("zfree", ctypes.c_void_p), ("opaque", ctypes.c_void_p)),
        *(("data_type", ctypes.c_int), ("adler", ctypes.c_ulong), ("reserved", ctypes.c_ulong)),
    )


@functools.cache
def _zlib() -> ctypes.CDLL:
    for name in ("libz.so.1", ctypes.util.find_library("z")):
        with contextlib.suppress(OSError, TypeError):
            library = ctypes.CDLL(name)
            library.zlibVersion.restype = ctypes.c_char_p
            return library
    raise ValueError("reading a gzip archive needs libz: install zlib, or gunzip the archive first")


class _Inflater:
    """Raw deflate data to bytes, which can stop at the border of two blocks."""

    def __init__(self, point: Point, before: bytes) -> None:
        """Go on from a point; `before` is the byte of the file before it."""
        self._zlib, self._stream = _zlib(), _Stream()
        self._out = ctypes.create_string_buffer(_OUT)
        size = ctypes.sizeof(_Stream)
        self._zlib.inflateInit2_(ctypes.byref(self._stream), -15, self._zlib.zlibVersion(), size)
        if point.bits > 0:
            value = before[0] >> (8 - point.bits)
            self._zlib.inflatePrime(ctypes.byref(self._stream), point.bits, value)
        if point.window:
            window = point.window
            self._zlib.inflateSetDictionary(ctypes.byref(self._stream), window, len(window))

    def __call__(self, data: bytes, most: int) -> tuple[bytes, int, int]:
        """Content, the number of bytes of `data` that gave it, and the code of zlib.

        It ends where `data` ends, at 1 MiB, or at the first border from `most` bytes on.
        """
        stream, size = self._stream, len(data)
        stream.next_in = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
        stream.avail_in = size
        stream.next_out, stream.avail_out = ctypes.addressof(self._out), _OUT
        done = 0
        while True:
            # stopping at every border, which may come every 16 KiB, costs a quarter of the speed
            flush = _Z_BLOCK if done >= most else _Z_NO_FLUSH
            code = self._zlib.inflate(ctypes.byref(stream), flush)
            done = _OUT - stream.avail_out
            at_end = not stream.avail_in or not stream.avail_out
            if code != _Z_OK or at_end or (done >= most and self.at_border):
                return ctypes.string_at(self._out, done), size - stream.avail_in, code

    @property
    def at_border(self) -> bool:
        """Whether the last call ended at the border of two blocks."""
        return bool(self._stream.data_type & 128) and not self._stream.data_type & 64

    @property
    def bits(self) -> int:
        """Bits of the last byte that are still to be read."""
        return self._stream.data_type & 7

    @property
    def reason(self) -> str:
        """What is wrong with the data."""
        return (self._stream.msg or b"invalid data").decode()

    def window(self) -> bytes:
        """The last bytes of content."""
        window, size = ctypes.create_string_buffer(WINDOW), ctypes.c_uint(0)
        self._zlib.inflateGetDictionary(ctypes.byref(self._stream), window, ctypes.byref(size))
        return window.raw[: size.value]

    def __del__(self) -> None:
        self._zlib.inflateEnd(ctypes.byref(self._stream))


class GzipReader(contextlib.AbstractContextManager):
    """Reads of the content of a gzip file, `reader(offset, size)`, short only at its end.

    Reads go forward, or to a point. `damage` is the reason why the content ends early or is not
    what was packed, "" if nothing is wrong so far; the content before it can be read.
    """

    def __init__(self, system: pafs.FileSystem, path: str, points: Sequence[Point]) -> None:
        self.size = UNKNOWN
        self.points = list(points)
        """Where it can be entered; reading on adds to them."""
        self.damage = ""
        self._source = store.RangeReader(system, path)
        self._enter(self.points[0])

    def __call__(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of the content."""
        if not self._start <= offset <= self.end:
            number = bisect.bisect(self.points, offset, key=lambda point: point.start)
            nearest = self.points[max(0, number - 1)]
            if offset < self._start or nearest.start > self.end:
                if nearest.start > offset:
                    raise ValueError(f"byte {offset} is before the first point, {nearest.start}")
                self._enter(nearest)
        place = offset - self._start
        while place + size > len(self._data) and (piece := next(self._pieces, b"")):
            self._data += piece
            surplus = min(place - _BEHIND, len(self._data))
            if surplus > 8 << 20:  # rarely, because what stays is copied
                del self._data[:surplus]
                self._start, place = self._start + surplus, place - surplus
        return bytes(memoryview(self._data)[place : place + size])

    @property
    def end(self) -> int:
        """The byte of the content up to which it was read."""
        return self._start + len(self._data)

    def _enter(self, point: Point) -> None:
        self._start, self._data = point.start, bytearray()
        self._place = point.compressed
        self._pieces = filter(None, self._inflated(point))

    def _inflated(self, point: Point) -> Iterator[bytes]:
        """The content from a point on, as far as it can be read; sets `damage`."""
        while True:
            if point.bits < 0:
                head = self._source(self._place, _HEADER)
                if self._is_padding(head):
                    return
                if not (size := header_size(head)):
                    self.damage = "no gzip header where one is due: the archive is damaged"
                    return
                self._place += size
            yield from self._member(point)
            if self.damage:
                return
            point = Point(self._place, -1, self._read)
            if point.start - self.points[-1].start >= SPACING:
                self.points.append(point)

    def _is_padding(self, data: bytes) -> bool:
        """Whether only zeros follow, as tapes add them; `data` are the first bytes."""
        place = self._place
        while data and not any(data):
            place += len(data)
            data = self._source(place, store.LOCAL_BLOCK)
        return not data

    def _member(self, point: Point) -> Iterator[bytes]:
        """The content of one gzip member from a point on."""
        inflate = _Inflater(point, self._source(self._place - 1, 1) if point.bits > 0 else b"")
        now = replace(point, window=b"")
        last = self.points[-1].start
        while True:
            data = self._source(self._place, store.LOCAL_BLOCK)
            if not data:
                self.damage = "gzip data ends early: the archive is cut short"
                return
            content, used, code = inflate(data, max(0, last + SPACING - now.start))
            self._place += used
            crc = zlib.crc32(content, now.crc)
            start, member = now.start + len(content), now.member + len(content)
            now = Point(self._place, inflate.bits, start, member, crc)
            self._read = start
            yield content
            if code == _Z_STREAM_END:
                self._check(self._source(self._place, _TRAILER), now)
                return
            if code not in (_Z_OK, _Z_BUF_ERROR):
                self.damage = f"gzip data is damaged from here on: {inflate.reason}"
                return
            if start - last >= SPACING and inflate.at_border:
                self.points.append(replace(now, window=inflate.window()))
                last = start

    def _check(self, trailer: bytes, found: Point) -> None:
        """Compare the end of a gzip member with its content."""
        expected = found.crc.to_bytes(4, "little") + (found.member % 2**32).to_bytes(4, "little")
        self._place += _TRAILER
        if len(trailer) < _TRAILER:
            self.damage = "gzip data ends early: the archive is cut short"
        elif trailer != expected:
            self.damage = "the CRC of the gzip data is not that of its content: it is damaged"

    def __exit__(self, *_: object) -> None:
        self._source.__exit__()


def header_size(data: bytes) -> int:
    """Bytes of the gzip header (RFC 1952) at the start of data; 0 if it is none."""
    if data[:3] != b"\x1f\x8b\x08" or len(data) < 10:
        return 0
    flags, place = data[3], 10
    if flags & 4:
        place += 2 + int.from_bytes(data[place : place + 2], "little")
    for flag in (8, 16):  # a name and a comment, which end in a zero byte
        if flags & flag:
            place = data.find(b"\0", place) + 1
            if not place:
                return 0
    place += 2 if flags & 2 else 0
    return place if place <= len(data) else 0
