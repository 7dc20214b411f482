"""Tar headers: writing USTAR headers, and walking the members of a tar.

Headers are parsed directly, because `tarfile` takes several times longer per member.
"""

import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)
"""The end-of-archive marker."""
NO_END = "no end-of-archive marker: the archive may be cut short"

Read = Callable[[int, int], bytes | memoryview]
Damage = Callable[[int, str], None]

_KINDS = {
    **dict.fromkeys((b"0", b"\0", b"7"), "file"),
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"5": "folder",
    b"6": "named pipe",
    b"S": "sparse file",
}
_NO_DATA = b"123456"  # links, devices, folders and pipes have no data, whatever their size field
_METADATA = b"LKxgX"
_ZEROS = bytes(BLOCK)
_TEMPLATE = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_LONGEST_RECORD = 1 << 20  # bytes of a long name or PAX record; larger ones count as damage


class Member(NamedTuple):
    """One member of a tar."""

    name: str
    kind: str
    """"file", "folder", "symbolic link", ..."""
    start: int
    """Byte of its first header."""
    offset: int
    """First byte of its data."""
    size: int

    @property
    def stop(self) -> int:
        """End of the member, including its padding."""
        return self.offset + padded(self.size)


class Truncated(ValueError):
    """The archive ends inside a member; `member` has the size of the remaining part."""

    def __init__(self, reason: str, member: Member) -> None:
        super().__init__(reason)
        self.member = member


class _Header(NamedTuple):
    name: bytes
    size: int
    type: bytes


def padded(size: int) -> int:
    """Size with padding to a whole number of blocks."""
    return size + -size % BLOCK


def header(name: str, size: int) -> bytes:
    """A USTAR header with fixed owner, mode and time, so that equal members give equal bytes."""
    text = name.encode("ascii")
    if len(text) > 100 or size >= 8**11:
        raise ValueError(f"{name!r} ({size} bytes) does not fit a USTAR header; shorten the name")
    block = bytearray(_TEMPLATE)
    block[: len(text)] = text
    block[124:135] = b"%011o" % size
    block[148:156] = b" " * 8  # the checksum counts its own field as spaces
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU base-256, for sizes of 8 GiB and more
        return int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
    return int(field.replace(b"\0", b" ").strip() or b"0", 8)


def _parse(block: bytes) -> _Header:
    """The fields of a header block; raises ValueError if it is not one."""
    try:
        stored = _number(block[148:156])
        # adler32 sums bytes in C: its low half is 1 + sum modulo 65521.
        summed = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 256
        # Old tars summed signed characters.
        if (summed - stored) % 65521 and stored != sum(struct.unpack("148b8x356b", block)) + 256:
            raise ValueError("its checksum differs")
        size = _number(block[124:136])
    except ValueError as error:
        raise ValueError(f"not a tar header: {error}") from None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return _Header(name, size, block[156:157])


def _pax(data: bytes) -> dict[str, str]:
    """Records of a PAX header; each is its length, a space, key=value and a line feed."""
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
    """Members whose headers are in bytes [start, stop), in order.

    Without `damage`, a malformed archive raises ValueError with `where` and the byte. With it, the
    byte and the reason are passed to `damage`, and the walk continues at the next valid header. A
    member that the end cuts short is then yielded with the size of its remaining part. If the end
    is unknown, `stop` may be beyond it.
    """
    place = start
    while place < stop:
        try:
            member = _member(read, place, stop)
        except ValueError as error:
            if damage is None:
                raise ValueError(f"{where}: byte {place}: {error}") from None
            damage(place, str(error))
            if isinstance(error, Truncated):
                yield error.member
                return
            place = _next_block(read, place + BLOCK, stop, _is_header)
            continue
        if member is None:
            place = _next_block(read, place, stop, any)
            if place < stop and damage is None:
                raise ValueError(f"{where}: byte {place}: data after the end-of-archive marker")
            continue
        if member.stop > stop and damage is None:
            raise ValueError(
                f"{where}: byte {member.start}: cut inside the padding of {member.name!r}"
            )
        yield member
        place = member.stop


def ends(read: Read, last: int, stop: int) -> bool:
    """Whether an end-of-archive marker follows the last member, which ends at byte `last`.

    The last bytes of the file do not show this: they may be the marker of an inner tar.
    """
    marker = read(last, min(len(END), max(stop - last, 0)))
    return len(marker) > 0 and not any(marker)


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
        place += BLOCK
        name = records.get("path") or long_name or _printable(head.name)
        # V7 tars mark folders by a slash.
        kind = "folder" if name.endswith("/") else _KINDS.get(head.type, "special file")
        member = Member(name, kind, start, place, _size(records, head))
        if place + member.size > stop:
            raise Truncated(
                f"the archive is truncated: {name!r} needs {member.size} bytes and {stop - place} "
                "are left",
                member._replace(size=stop - place),
            )
        if head.type not in _METADATA:
            return member
        if head.size > _LONGEST_RECORD:
            raise ValueError(f"a metadata record of {head.size} bytes")
        data = bytes(read(place, head.size))
        if head.type == b"L":
            long_name = _printable(data.split(b"\0", 1)[0])
        elif head.type in b"xX":
            records = _pax(data)
        place += padded(head.size)


def _size(records: dict[str, str], head: _Header) -> int:
    if head.type in _NO_DATA:
        return 0
    if "size" not in records or head.type in _METADATA:
        return head.size
    if not records["size"].isdigit():
        raise ValueError(f"malformed PAX size {records['size']!r}")
    return int(records["size"])


def _printable(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _next_block(read: Read, start: int, stop: int, wanted: Callable[[bytes], bool]) -> int:
    """The byte of the first wanted block in [start, stop); stop if there is none."""
    for place in range(start, stop, BLOCK):
        block = bytes(read(place, min(BLOCK, stop - place)))
        if wanted(block):
            return place
        if len(block) < BLOCK:
            break
    return stop


def _is_header(block: bytes) -> bool:
    # The magic number makes it unlikely that image data is taken for a header.
    if len(block) < BLOCK or block[257:262] != b"ustar":
        return False
    try:
        _parse(block)
    except ValueError:
        return False
    return True
