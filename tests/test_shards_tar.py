"""Walking tar headers: the same members as tarfile, and nothing but ValueError on damage."""

import io
import tarfile

import pytest
from archives import tar_bytes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shards.dataset import tar

MEMBERS = [(f"n01440764_{number}.JPEG", bytes([number]) * (number * 300)) for number in range(5)]


def reader(data):
    return lambda offset, size: data[offset : offset + size]


def walked(data, damage=None):
    return list(tar.walk(reader(data), 0, len(data), "a.tar", damage))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.jpg", "d/" * 40 + "a.jpg", "x" * 180 + ".jpg", "å/ü.jpg"])
def test_walk_finds_what_tarfile_finds(format, name):
    if format == tarfile.USTAR_FORMAT and len(name) > 150:
        pytest.skip("USTAR has no names this long")
    data = tar_bytes([*MEMBERS, (name, b"image" * 200)], format)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(m.name, m.offset_data, m.size) for m in file]
    assert [(m.name, m.offset, m.size) for m in walked(data)] == expected


def test_float_times_and_global_headers_of_pax_are_passed_over():
    info = tarfile.TarInfo("a.jpg")
    info.mtime = 1.5
    buffer = io.BytesIO()
    headers = {"comment": "made elsewhere"}
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers
    ) as file:
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    (member,) = walked(buffer.getvalue())
    assert (member.name, member.size, member.kind) == ("a.jpg", 3, "file")


def test_our_headers_are_read_by_tarfile_and_have_fixed_owner_mode_and_time():
    data = tar.header("k.jpg", 3) + b"abc".ljust(512, b"\0") + tar.END
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        (member,) = file
    assert (member.name, member.size, member.mtime, member.uid, member.gid, member.mode) == (
        "k.jpg", 3, 0, 0, 0, 0o644,
    )  # fmt: skip
    assert data[257:265] == b"ustar\x0000"


@pytest.mark.parametrize(("name", "size"), [("a.cls", 1), ("k" * 96 + ".jpg", 8**11 - 1)])
def test_our_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    assert tar.header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(ValueError, match="does not fit"):
        tar.header("k" * 101, 1)


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "named pipe"),
        (tarfile.DIRTYPE, "folder"),
    ],
)
def test_kinds_of_members_that_are_not_files_are_named(type_, kind):
    info = tarfile.TarInfo("x")
    info.type, info.linkname = type_, "../../etc/passwd"
    members = walked(tar_bytes([(info, b""), *MEMBERS]))
    assert members[0].kind == kind
    assert [m.kind for m in members[1:]] == ["file"] * len(MEMBERS)


def test_large_base_256_sizes_are_read():
    block = bytearray(tar.header("big.jpg", 0))
    block[124:136] = (1 << 95 | 9 << 30).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    assert tar._parse(bytes(block)).size == 9 << 30


@pytest.mark.parametrize(
    ("cut", "reason"), [(100, "inside a header"), (700, "truncated"), (-5000, "truncated")]
)
def test_cut_tars_raise_with_name_and_byte(cut, reason):
    data = tar_bytes([("a.jpg", bytes(9000))])[:10240][:cut]
    with pytest.raises(ValueError, match=rf"a\.tar: byte \d+: .*{reason}"):
        walked(data)


def test_a_changed_header_fails_its_checksum():
    data = bytearray(tar_bytes(MEMBERS))
    data[3] ^= 1
    with pytest.raises(ValueError, match="byte 0: not a tar header: its checksum"):
        walked(bytes(data))


def test_data_after_the_end_marker_is_an_error_unless_damage_is_reported():
    data = tar_bytes(MEMBERS) + tar_bytes([("late.jpg", b"x")])
    with pytest.raises(ValueError, match="after the end-of-archive"):
        walked(data)
    assert walked(data, lambda *_: None)[-1].name == "late.jpg"


@pytest.mark.parametrize("members", [MEMBERS, [], [("in.tar", tar_bytes(MEMBERS))]])
def test_an_end_marker_is_found_behind_the_last_member_alone(members):
    raw = tar_bytes(members)
    last = max((member.stop for member in walked(raw)), default=0)
    assert tar.ends(reader(raw), last, len(raw))
    assert not tar.ends(reader(raw), last, last)  # even if an inner tar ends there with its own


def test_after_damage_the_walk_continues_at_the_next_header():
    data = bytearray(tar_bytes(MEMBERS))
    second = walked(bytes(data))[2].start
    data[second : second + 512] = b"\xff" * 512
    found = []
    names = [m.name for m in walked(bytes(data), lambda *what: found.append(what))]
    assert names == [name for name, _ in (*MEMBERS[:2], *MEMBERS[3:])]
    assert [offset for offset, _ in found] == [second]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10239), st.integers(0, 255)), max_size=30), st.data())
@example([(124, 0x80), (130, 0xFF)], None)
def test_no_damage_raises_anything_but_value_error(changes, data):
    raw = bytearray(tar_bytes(MEMBERS, tarfile.PAX_FORMAT)[:10240])
    for place, value in changes:
        raw[place] = value
    if data is not None:
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        walked(bytes(raw))
    except ValueError as error:
        assert "a.tar: byte" in str(error)
    members = walked(bytes(raw), lambda *_: None)
    assert all(m.offset + m.size <= len(raw) for m in members)
