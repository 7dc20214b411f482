"""One forward pass: every byte once and in order, samples whole, memory flat, damage reported."""

import hashlib
import random
import tarfile
import tracemalloc

import pytest
from archives import WNIDS, jpeg, tar_bytes
from pyarrow.fs import LocalFileSystem

from shards.build.archive import Part, RawSource, Source
from shards.build.entry import entries
from shards.build.unit import Unit
from shards.dataset import store, tar, walker
from shards.dataset.walker import ShardWalker

LOCAL = LocalFileSystem()


@pytest.fixture
def places(monkeypatch):
    """The places of all reads, in order."""
    real, seen = store.read_range, []

    def counted(file, path, offset, size):
        seen.append((offset, size))
        return real(file, path, offset, size)

    monkeypatch.setattr(store, "read_range", counted)
    return seen


def walked(path, data: bytes):
    """Samples by key, damage and hash."""
    path.write_bytes(data)
    damage = []
    with ShardWalker(LOCAL, str(path), "a.tar") as walk:
        samples = list(walk.samples(lambda *what: damage.append(what)))
        return samples, damage, walk.sha256()


@pytest.mark.parametrize("block", [512, 700, 5000, 1 << 20])
def test_every_byte_is_read_once_in_order_and_hashed(tmp_path, places, monkeypatch, block):
    monkeypatch.setattr(store, "LOCAL_BLOCK", block)
    monkeypatch.setattr(walker, "BEHIND", 16_384)
    members = [
        (f"d/{n}.{extension}", random.Random(n).randbytes(n * 700))
        for n in range(9)
        for extension in ("jpg", "cls")
    ]
    data = tar_bytes(members, tarfile.PAX_FORMAT)
    samples, damage, sha256 = walked(tmp_path / "a.tar", data)
    assert {f"{s.key}.{e}": bytes(part) for s in samples for e, part in s.parts.items()} == dict(
        members
    )
    for sample in samples:
        for extension, member in sample.members.items():
            assert data[member.offset :][: member.size] == sample.parts[extension]
    assert not damage and sha256 == hashlib.sha256(data).hexdigest()
    ends = [offset + size for offset, size in places]
    assert [offset for offset, _ in places] == [0, *ends[:-1]] and ends[-1] == len(data)


def test_damage_is_passed_over_wherever_blocks_end(tmp_path, monkeypatch):
    monkeypatch.setattr(walker, "BEHIND", 0)
    members = [(f"{n}.jpg", bytes([n + 1]) * 900) for n in range(6)]
    data = bytearray(tar_bytes(members))
    data[2 * 1536 + 3] ^= 0xFF
    for block in (512, 1536, 4000):
        monkeypatch.setattr(store, "LOCAL_BLOCK", block)
        samples, damage, sha256 = walked(tmp_path / "a.tar", bytes(data))
        assert [sample.key for sample in samples] == ["0", "1", "3", "4", "5"]
        assert [place for place, _ in damage] == [2 * 1536]
        assert sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("size", "whole"), [(0, 0), (512, 0), (1000, 0), (1536, 1), (3000, 2)])
def test_a_cut_shard_has_damage(tmp_path, size, whole):
    data = tar_bytes([(f"{n}.jpg", bytes(900)) for n in range(2)])
    samples, damage, _ = walked(tmp_path / "a.tar", data[:size])
    assert damage and sum(s.members["jpg"].size == 900 for s in samples) == whole


def test_a_file_too_large_for_memory_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(walker, "LARGEST", 1 << 20)
    path, large = tmp_path / "a.tar", 64 << 20
    with path.open("wb") as file:  # a sparse file
        file.write(tar.header("a.cls", 1) + b"0".ljust(512, b"\0") + tar.header("a.jpg", large))
        file.seek(large, 1)
        file.write(tar.header("b.cls", 1) + b"1".ljust(512, b"\0") + tar.END)
    damage = []
    tracemalloc.start()
    with ShardWalker(LOCAL, str(path), "a.tar") as walk:
        found = [(s.key, list(s.parts)) for s in walk.samples(lambda *what: damage.append(what))]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [("a", ["cls"]), ("b", ["cls"])]
    assert damage == [
        (1024, f"with 'a.jpg' sample 'a' has {large + 1} bytes, at most {1 << 20} are read")
    ]
    assert peak < 12 << 20


def test_files_with_one_key_for_all_of_them_do_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(walker, "LARGEST", 5000)
    members = [(f"image.{n}.jpg", bytes(900)) for n in range(9)]
    (sample,), damage, _ = walked(tmp_path / "a.tar", tar_bytes(members))
    assert len(sample.parts) == 5 and len(damage) == 4
    assert "sample 'image' has 5400 bytes" in damage[0][1]


def read(part):
    """The entries of a shard, as a build reads them."""
    raw = RawSource(part.path, LOCAL, part.path, part.stop, is_folder=False)
    return list(entries(Source(raw=raw, kind="webdataset"), Unit(0, 0, (part,))))


def source(path, members, **options):
    data = tar_bytes(members)
    path.write_bytes(data)
    given = {"stop": len(data), "classes": WNIDS, **options}
    part = Part(path=str(path), archive=path.name, layout="samples", **given)
    return read(part)


def orders():
    """The members of three samples, together and mixed."""
    members = [(f"{k}.{e}", d) for n, k in enumerate("abc")
               for e, d in (("cls", str(n).encode()), ("jpg", jpeg(n)))]  # fmt: skip
    yield members
    yield members[::2] + members[1::2]
    yield members[1::2] + members[::2]
    yield [members[n] for n in (0, 2, 1, 4, 3, 5)]


@pytest.mark.parametrize("members", orders())
def test_a_build_merges_the_members_of_a_sample_wherever_they_are(tmp_path, members):
    found = source(tmp_path / "a.tar", members)
    assert sorted((e.member, e.wnids, e.data, e.problem) for e in found) == [
        (f"{key}.jpg", (WNIDS[n],), jpeg(n), "") for n, key in enumerate("abc")
    ]


def test_contiguous_samples_come_while_the_shard_is_read_and_keep_no_bytes(tmp_path):
    """Also those without a label, which might follow later."""
    noise = random.Random(0).randbytes(1 << 20)
    members = [(f"{n}.jpg", noise) for n in range(40)]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    part = Part(path=str(tmp_path / "a.tar"), archive="a", layout="samples", classes=WNIDS,
                stop=(tmp_path / "a.tar").stat().st_size)  # fmt: skip
    tracemalloc.start()
    problems = [entry.problem for entry in read(part)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(problems) == 40 and all("has no label" in problem for problem in problems)
    assert peak < 20 << 20


def test_no_image_is_lost_where_a_key_occurs_twice(tmp_path):
    whole = [("a.cls", b"0"), ("a.jpg", jpeg(1)), ("b.cls", b"1"), ("b.jpg", jpeg(2))]
    again = [("a.cls", b"2"), ("a.jpg", jpeg(3))]
    found = source(tmp_path / "a.tar", [*whole, *again])
    assert [(e.data, e.wnids) for e in found] == [
        (jpeg(1), WNIDS[:1]), (jpeg(2), WNIDS[1:2]), (jpeg(3), WNIDS[2:3]),
    ]  # fmt: skip


def test_faults_of_a_shard_are_entries_of_the_build(tmp_path):
    path = tmp_path / "a.tar"
    members = [("a.cls", b"0"), ("a.jpg", jpeg(1)), ("b.cls", b"1"), ("b.jpg", jpeg(2))]
    found = source(path, [*members[:2], members[1], *members[2:]])
    assert [e.problem for e in found] == ["a second 'a.jpg' in one sample", "", ""]
    found = source(path, members, stop=99)
    assert found[0].problem == f"{path.stat().st_size} bytes, 99 were expected"
    data = tar_bytes(members)
    path.write_bytes(data[: data.index(jpeg(2)) + 100])
    part = Part(path=str(path), archive="a", layout="samples", stop=path.stat().st_size,
                classes=WNIDS)  # fmt: skip
    problems = [entry.problem for entry in read(part) if not entry.member]
    assert any("truncated" in problem for problem in problems)
