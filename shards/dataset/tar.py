"""Tar files by their headers: USTAR headers to write, and a walk over headers as they come.

The walk serves two readers: the input path of training (strict: the first oddity is an error) and
the catalogue of archives (`damage` given: the oddity is reported and the walk phashes for the next
header). It reads 512-byte headers directly: `tarfile` costs several times more per member.
"""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)
"""The end-of-archive marker."""

Read = Callable[[int, int], bytes | memoryview]
Damage = Callable[[int, str], None]

_KINDS = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"5": "folder",
    b"6": "named pipe",
    b"S": "sparse file",
}
_ZEROS = bytes(BLOCK)
_LONGEST_RECORD = 1 << 20  # a long name or PAX record; larger ones are damage


class Member(NamedTuple):
    """One member: where its first header starts, and where its bytes lie."""

    name: str
    kind: str
    """"file", or what else it is."""
    start: int
    offset: int
    size: int

    @property
    def stop(self) -> int:
        """End of the member with its padding."""
        return self.offset + padded(self.size)


class Truncated(ValueError):
    """The archive ends inside a member; `member` is what is left of it."""

    def __init__(self, reason: str, member: Member) -> None:
        super().__init__(reason)
        self.member = member


class _Header(NamedTuple):
    name: bytes
    size: int
    type: bytes


def padded(size: int) -> int:
    """Bytes that size bytes take in a tar."""
    return size + -size % BLOCK


def header(name: str, size: int) -> bytes:
    """A USTAR header with fixed owner, mode and time: the same members give the same bytes."""
    text = name.encode("ascii")
    if len(text) > 100 or size >= 8**11:
        raise ValueError(f"{name!r} ({size} bytes) does not fit a USTAR header; shorten the name")
    block = bytearray(_TEMPLATE)
    block[: len(text)] = text
    block[124:135] = b"%011o" % size
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def _template() -> bytes:
    """A header as tarfile writes it, but for name, size and checksum."""
    info = tarfile.TarInfo()
    info.mode, info.mtime = 0o644, 0
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[148:156] = b" " * 8  # what the checksum counts itself as
    return bytes(block)


_TEMPLATE = _template()


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU base-256, for sizes of 8 GiB and more
        return int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
    return int(field.replace(b"\0", b" ").strip() or b"0", 8)


def _parse(block: bytes) -> _Header:
    """A header's fields; ValueError where it is none."""
    try:
        return _fields(block)
    except ValueError as error:
        raise ValueError(f"no tar header: {error}") from None


def _fields(block: bytes) -> _Header:
    stored = _number(block[148:156])
    # adler32 sums bytes in C: its low half is 1 + sum modulo 65521.
    summed = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 256
    if (summed - stored) % 65521 and stored != _signed_sum(block):
        raise ValueError("its checksum differs")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return _Header(name, _number(block[124:136]), block[156:157])


def _signed_sum(block: bytes) -> int:
    # Old tars summed signed characters.
    return sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256


def _pax(data: bytes) -> dict[str, str]:
    """Records of a PAX header: length, key=value and a line feed, one after the other."""
    records, place = {}, 0
    while place < len(data) and data[place]:
        digits, space, _ = data[place : place + 20].partition(b" ")
        if not space or not digits.isdigit() or not 0 < int(digits) <= len(data) - place:
            raise ValueError("malformed PAX record")
        record = data[place + len(digits) + 1 : place + int(digits) - 1]
        key, _, value = record.partition(b"=")
        records[key.decode("utf-8", "replace")] = _printable(value)
        place += int(digits)
    return records


def walk(
    read: Read, start: int, stop: int, where: str, damage: Damage | None = None
) -> Iterator[Member]:
    """Members whose headers lie in bytes [start, stop), in order.

    Without `damage`, anything malformed raises ValueError with `where` and the byte. With it, the
    byte and the reason go to `damage`, and the walk goes on at the next readable header; of a
    member that the end cuts short, what is left is given. An unknown `stop` may lie beyond the end.
    """
    place = start
    while place < stop:
        try:
            found = _member(read, place, stop)
        except Truncated as error:
            if damage is None:
                raise ValueError(f"{where}: byte {place}: {error}") from None
            damage(place, str(error))
            yield error.member
            return
        except ValueError as error:
            if damage is None:
                raise ValueError(f"{where}: byte {place}: {error}") from None
            damage(place, str(error))
            place = _next_header(read, place + BLOCK, stop)
            continue
        if found is None:
            place = _past_zeros(read, place, stop)
            if place < stop and damage is None:
                raise ValueError(f"{where}: byte {place}: data after the end-of-archive marker")
            continue
        if found.stop > stop and damage is None:
            raise ValueError(
                f"{where}: byte {found.start}: cut inside the padding of {found.name!r}"
            )
        yield found
        place = found.stop


def _member(read: Read, start: int, stop: int) -> Member | None:
    """The member at start with its metadata records applied; None at an end-of-archive marker."""
    place, long_name, records = start, None, {}
    while True:
        block = bytes(read(place, BLOCK)) if place + BLOCK <= stop else b""
        if len(block) < BLOCK:
            raise ValueError("the archive ends inside a header")
        if block == _ZEROS:
            if place > start:
                raise ValueError("the archive ends after a metadata record")
            return None
        head = _parse(block)
        size = _size(records, head)
        if place + BLOCK + size > stop:
            left = stop - place - BLOCK
            name = records.get("path") or long_name or _printable(head.name)
            raise Truncated(
                f"the archive is truncated: {name!r} needs {size} bytes and {left} are left",
                Member(name, _kind(head.type, name), start, place + BLOCK, left),
            )
        if head.type not in b"LKxgX":
            name = records.get("path") or long_name or _printable(head.name)
            return Member(name, _kind(head.type, name), start, place + BLOCK, size)
        if head.size > _LONGEST_RECORD:
            raise ValueError(f"a metadata record of {head.size} bytes")
        data = bytes(read(place + BLOCK, head.size))
        if head.type == b"L":
            long_name = _printable(data.split(b"\0", 1)[0])
        elif head.type in b"xX":
            records = _pax(data)
        place += BLOCK + padded(head.size)


def _kind(type_: bytes, name: str) -> str:
    if name.endswith("/"):  # how V7 tars mark folders
        return "folder"
    return "file" if type_ in b"0\0007" else _KINDS.get(type_, "special file")


def _size(records: dict[str, str], head: _Header) -> int:
    if head.type in b"123456":  # links, devices, folders and pipes have no bytes, whatever they say
        return 0
    if "size" in records and head.type not in b"LKxgX":
        if not records["size"].isdigit():
            raise ValueError(f"malformed PAX size {records['size']!r}")
        return int(records["size"])
    return head.size


def _printable(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _past_zeros(read: Read, place: int, stop: int) -> int:
    while place < stop:
        block = read(place, min(BLOCK, stop - place))
        if any(block):
            return place
        if len(block) < BLOCK:
            break
        place += BLOCK
    return stop


def _next_header(read: Read, place: int, stop: int) -> int:
    """The next byte at which a header or an end marker stands."""
    while place + BLOCK <= stop:
        block = bytes(read(place, BLOCK))
        if len(block) < BLOCK:
            break
        # The magic keeps image bytes, which may hold anything, from being taken for a header.
        if block[257:262] == b"ustar":
            try:
                _parse(block)
            except ValueError:
                pass
            else:
                return place
        place += BLOCK
    return stop
