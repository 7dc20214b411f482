"""Damaged archives: no set calls itself complete that lacks an image which is not named.

Each kind of archive is damaged in many ways and built. The build fails, or the set has the classes
and images of the whole archive less those in quarantine.parquet. With --allow-damaged-source the
manifest tells the damage, and what arrived is right.
"""

import dataclasses
import gzip
import io
import json
import random
import tarfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from archives import WNIDS, contents, jpeg, nested, tar_bytes

from shards.build import archive, gzip_reader, published, source, unit
from shards.build.catalogue import DamagedSource
from shards.build.config import BuildConfig
from shards.build.gzip_reader import BEGIN, GzipReader
from shards.build.pack import build
from shards.dataset import store
from shards.dataset.format import open_set

CONFIG = BuildConfig(keep_bytes=True, val_fraction=0)
ALLOWING = dataclasses.replace(CONFIG, allow_damaged_source=True)
SMALL_UNITS = [(unit, "SMALLEST", 6000), (archive, "PART_BYTES", 2500)]
SMALL_UNITS += [(gzip_reader, "SPACING", 4000)]


@pytest.fixture(autouse=True)
def many_units(monkeypatch):
    """Units, parts and points that are small enough for small archives to have many."""
    for place in SMALL_UNITS:
        monkeypatch.setattr(*place)
    monkeypatch.setattr(store, "sync", lambda path: None)  # hundreds of builds


def image(number: int) -> bytes:
    return jpeg(number, 40, 30)


def images(number: int, count: int = 5) -> list[tuple[str, bytes]]:
    wnid = WNIDS[number]
    return [(f"{wnid}_{n}.JPEG", image(100 * number + n)) for n in range(count)]


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info, b""


def flat_members(classes: int = 3) -> list:
    """Members of a tar as GNU tar writes it: each folder, and then what is in it."""
    members = [folder("set")]
    for split, first in (("train", 0), ("val", 3)):
        members.append(folder(f"set/{split}"))
        for number in range(classes):
            some = images(number)[first : 3 if split == "train" else None]
            members.append(folder(f"set/{split}/{WNIDS[number]}"))
            members += [(f"set/{split}/{WNIDS[number]}/{name}", data) for name, data in some]
    return members


def zipped(data: bytes) -> bytes:
    """A gzip file of many deflate blocks, as each point needs the border of two."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31, 1)
    return packer.compress(data) + packer.flush()


PLAIN = {
    "class-tars": nested({WNIDS[number]: images(number) for number in range(3)}),
    "flat": tar_bytes(flat_members()),
}
ARCHIVES = PLAIN | {f"{name}.gz": zipped(data) for name, data in PLAIN.items()}


def set_of(out: Path) -> tuple[tuple[str, ...], dict]:
    """Classes, and for each file of the sources that is in the set: bytes, classes and split."""
    given, found = open_set(out), {}
    classes = given.manifest.classes
    for split, shards in given.manifest.splits.items():
        plan = pq.read_table(out / "plan" / f"{split}.parquet").to_pylist()
        keys = {row["key"]: (row["archive"], row["member"]) for row in plan}
        for shard in shards:
            tar = (out / shard.name).read_bytes()
            for row in given.read_index(shard).to_pylist():
                data = tar[row["offset"] : row["offset"] + row["size"]]
                wnids = [classes[number] for number in row["classes"]]
                found[keys[row["key"]]] = data, wnids, split
    return classes, found


def quarantined(out: Path) -> set[tuple[str, str]]:
    rows = pq.read_table(out / "quarantine.parquet").to_pylist()
    return {(row["archive"], row["member"]) for row in rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sets of the whole archives."""
    sets = {}
    for name, data in ARCHIVES.items():
        place = tmp_path_factory.mktemp("whole")
        (place / "a.tar").write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            for small in SMALL_UNITS:
                patch.setattr(*small)
            build([place / "a.tar"], place / "out", CONFIG)
        sets[name] = set_of(place / "out")
        assert len(sets[name][1]) == 15 and not quarantined(place / "out")
        assert len(list((place / "out" / "catalogue").glob("unit-*"))) > 2
    return sets


def try_build(place: Path, data: bytes, config: BuildConfig) -> Path | None:
    """Build an archive in a new folder; the set, or None if the build fails as it should."""
    out = place / f"out-{len(list(place.iterdir()))}"
    (place / "a.tar").write_bytes(data)
    try:
        build([place / "a.tar"], out, config)
    except DamagedSource:
        assert not (out / "manifest.json").exists()
        return None
    except ValueError as error:
        assert "not recognised" in str(error) or "empty file" in str(error)
        assert not out.exists()
        return None
    return out


def check(out: Path, whole: tuple, changed: set) -> None:
    """The set is that of the whole archive less what is named; `changed` may have other bytes."""
    classes, samples = set_of(out)
    assert classes == whole[0]
    assert whole[1].keys() - samples.keys() <= quarantined(out)
    check_samples(samples, whole, changed)


def check_samples(samples: dict, whole: tuple, changed: set) -> None:
    """Every sample is one of the whole archive."""
    for place, (data, wnids, split) in samples.items():
        assert (wnids, split) == whole[1][place][1:]
        assert data == whole[1][place][0] or place in changed


def content(data: bytes) -> bytes:
    """What can be read of an archive."""
    if data[:2] != b"\x1f\x8b":
        return data
    inflate, found = zlib.decompressobj(31), b""
    try:
        for byte in data:
            found += inflate.decompress(bytes([byte]))
    except zlib.error:
        pass
    return found


def members(name: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Where the image bytes of each file are in an archive."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(PLAIN[name])) as outer:
        for member in outer:
            if member.name.endswith(".tar"):
                start = member.offset_data
                with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                    for one in inner:
                        begin = start + one.offset_data
                        found[f"a.tar/{member.name}", one.name] = begin, begin + one.size
            elif member.isfile():
                stop = member.offset_data + member.size
                found["a.tar", member.name] = member.offset_data, stop
    return found


def changed_images(name: str, data: bytes) -> set[tuple[str, str]]:
    """Files whose bytes in a damaged archive differ from those in the whole one."""
    plain, found = PLAIN[name.removesuffix(".gz")], content(data)
    places = members(name.removesuffix(".gz"))
    return {place for place, (a, b) in places.items() if plain[a:b] != found[a:b]}


def flipped(data: bytes, place: int, mask: int = 0xFF) -> bytes:
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


def fuzz(name: str, tmp_path: Path, whole: dict, damaged: list[bytes], most_built: int) -> None:
    """Build each damaged archive without and with permission."""
    built = 0
    for number, data in enumerate(damaged):
        is_gzip = name.endswith(".gz")
        out = try_build(tmp_path, data, CONFIG)
        if out is not None:
            check(out, whole[name], set() if is_gzip else changed_images(name, data))
            built += 1
        elif number % 4 == 0 and (out := try_build(tmp_path, data, ALLOWING)):
            source = json.loads((out / "manifest.json").read_text())["source"]
            assert any(entry.get("damage") for entry in source)
            check_samples(set_of(out)[1], whole[name], changed_images(name, data))
    assert built <= most_built


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_cut_archive_is_never_a_smaller_set(name, tmp_path, whole):
    data = ARCHIVES[name]
    draw = random.Random(name)
    cuts = [data[: draw.randrange(len(data))] for _ in range(15)]
    cuts += [data[: n * len(data) // 10 // 512 * 512] for n in range(10)]
    fuzz(name, tmp_path, whole, cuts, 0 if name.endswith(".gz") else 10)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_flipped_byte_loses_no_image_that_is_not_named(name, tmp_path, whole):
    data, draw = ARCHIVES[name], random.Random(name)
    busy = [place for place, byte in enumerate(data) if byte]  # much of a small tar is padding
    places = [draw.choice(busy) for _ in range(40)] + draw.sample(range(len(data)), 10)
    damaged = [flipped(data, place, 1 << draw.randrange(8)) for place in places]
    fuzz(name, tmp_path, whole, damaged, 5 if name.endswith(".gz") else 100)


def flat(changes: dict[str, bytes | None]) -> bytes:
    """The flat tar with other content of some files, or without them."""
    members = [(m, changes.get(m, d) if isinstance(m, str) else d) for m, d in flat_members()]
    return tar_bytes((m, data) for m, data in members if data is not None)


def class_tars(changes: dict[str, bytes]) -> bytes:
    """The tar of class tars, some of which have other bytes."""
    tars = {WNIDS[number]: tar_bytes(images(number)) for number in range(3)} | changes
    return tar_bytes((f"{wnid}.tar", data) for wnid, data in tars.items())


BROKEN = {f"{WNIDS[1]}_{n}.JPEG": b"broken" for n in range(5)}
TRAIN = {f"set/train/{WNIDS[1]}/{name}": data for name, data in BROKEN.items()}
VAL = {f"set/val/{WNIDS[1]}/{name}": data for name, data in BROKEN.items()}
NOTHING = dict.fromkeys(TRAIN | VAL)
EMPTY = {
    "class tar": class_tars({WNIDS[1]: tar_bytes([])}),
    "class tar of no bytes": class_tars({WNIDS[1]: b""}),
    "class tar of broken images": class_tars({WNIDS[1]: tar_bytes(BROKEN.items())}),
    "class folder": flat(NOTHING),
    "class folder of broken images": flat(TRAIN | VAL),
    "last class folder": tar_bytes([*flat_members(2), folder(f"set/train/{WNIDS[2]}")]),
}


@pytest.mark.parametrize("compress", [bytes, zipped])
@pytest.mark.parametrize("name", EMPTY)
def test_a_class_without_an_image_is_no_class_less(name, compress, tmp_path):
    (tmp_path / "a.tar").write_bytes(compress(EMPTY[name]))
    with pytest.raises(DamagedSource, match=WNIDS[2 if "last" in name else 1]):
        build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
    build([tmp_path / "a.tar"], tmp_path / "out", ALLOWING)
    assert set_of(tmp_path / "out")[0] == WNIDS[:3]


def test_a_folder_that_holds_files_or_folders_is_no_empty_class(tmp_path):
    (tmp_path / "a.tar").write_bytes(PLAIN["flat"])
    assert build([tmp_path / "a.tar"], tmp_path / "out", CONFIG).quarantined_count == 0


def test_an_empty_folder_of_a_class_in_a_folder_is_no_class_less(tmp_path):
    for wnid in WNIDS[:3]:
        (tmp_path / "in" / wnid).mkdir(parents=True)
    for number in (0, 2):
        for name, data in images(number):
            (tmp_path / "in" / WNIDS[number] / name).write_bytes(data)
    with pytest.raises(DamagedSource, match=WNIDS[1]):
        build([tmp_path / "in"], tmp_path / "out", CONFIG)


@pytest.mark.parametrize("name", ["a.tar", "known.tar"])
def test_a_member_that_is_missing_from_a_published_archive_is_a_warning(
    name, tmp_path, monkeypatch
):
    """That of an archive which nobody knows cannot be noticed."""
    (tmp_path / "classes.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS[:3]))
    known = published.Archive("known", str(tmp_path / "classes.txt"), {"": 15})
    monkeypatch.setattr(published, "ARCHIVES", (known,))
    (tmp_path / name).write_bytes(PLAIN["class-tars"])
    assert not build([tmp_path / name], tmp_path / "whole", CONFIG).warnings
    data = class_tars({WNIDS[1]: tar_bytes(images(1)[1:])})
    (tmp_path / name).write_bytes(data)
    (warning,) = build([tmp_path / name], tmp_path / "out", CONFIG).warnings
    assert warning == f"{name} has 14 images; the published known has 15"
    del known
    monkeypatch.setattr(published, "ARCHIVES", ())
    assert not build([tmp_path / name], tmp_path / "unknown", CONFIG).warnings


BIG = nested({WNIDS[n]: [*images(n), (f"{WNIDS[n]}_x.JPEG", jpeg(n, 400, 300))] for n in range(4)})


@pytest.mark.parametrize("start", ["in an image", "at a member", "at a class"])
def test_zeros_to_the_end_are_no_end_of_the_archive(start, tmp_path):
    """A download whose space was reserved before it was cut."""
    with tarfile.open(fileobj=io.BytesIO(BIG)) as file:
        second = file.getmembers()[1]
    ends = {"at a class": second.offset, "at a member": second.offset + 512 + 512 + 1536}
    stop = ends.get(start, second.offset + 1500)
    (tmp_path / "a.tar").write_bytes(BIG[:stop] + bytes(len(BIG) - stop))
    with pytest.raises(DamagedSource, match="zeros"):
        build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)


def test_zeros_in_place_of_whole_members_are_damage(tmp_path):
    with tarfile.open(fileobj=io.BytesIO(BIG)) as file:
        first, second, third, _ = file.getmembers()
    start, stop = second.offset, third.offset
    (tmp_path / "a.tar").write_bytes(BIG[:start] + bytes(stop - start) + BIG[stop:])
    with pytest.raises(DamagedSource, match="zeros"):
        build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)


def test_an_image_that_the_archive_cuts_short_does_not_arrive(tmp_path):
    """Also if it only lacks its end marker, without which a JPEG is decoded elsewhere."""
    data, name = PLAIN["flat"], flat_members()[-1][0]
    stop = members("flat")["a.tar", name][1]
    (tmp_path / "a.tar").write_bytes(data[: stop - 1])
    build([tmp_path / "a.tar"], tmp_path / "out", ALLOWING)
    assert ("a.tar", name) in quarantined(tmp_path / "out")
    assert ("a.tar", name) not in set_of(tmp_path / "out")[1]


def sampled_sparsely(monkeypatch) -> None:
    """A fingerprint that does not see a single byte, as that of a large archive."""
    monkeypatch.setattr(source, "SAMPLE_BYTES", 4)


def damaged_at(name: str, where: str) -> bytes:
    """An archive with damage that shows only after much of it was read."""
    data = ARCHIVES[name]
    if where == "CRC":
        return flipped(data, len(data) - 6)
    if where == "image":  # and a header, so that the archive fails
        stops = sorted(members(name).values())
        data = flipped(data, stops[0][1] - 9, 1)
        return flipped(data, stops[-1][0] - 400)
    plain = bytearray(PLAIN[name.removesuffix(".gz")])
    place = sorted(members(name.removesuffix(".gz")).values())[1]
    plain[place[0] + 200 : place[0] + 210] = bytes(10)  # another image, whose CRC is that of before
    packed = zipped(bytes(plain))[: len(data) - 8].ljust(len(data) - 8, b"\0")
    return packed + data[-8:]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("class-tars.gz", "CRC"),
        ("flat.gz", "CRC"),
        ("class-tars.gz", "content"),
        ("flat.gz", "content"),
        ("flat", "image"),
        ("class-tars", "image"),
    ],
)
def test_the_repaired_archive_gives_the_clean_set(name, where, tmp_path, monkeypatch):
    """The size and all that identifies the archive are as before, and so are the names."""
    sampled_sparsely(monkeypatch)
    (tmp_path / "a.tar").write_bytes(ARCHIVES[name])
    build([tmp_path / "a.tar"], tmp_path / "clean", CONFIG)
    (tmp_path / "a.tar").write_bytes(damaged_at(name, where))
    for _ in range(2):
        with pytest.raises(DamagedSource):
            build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
    (tmp_path / "a.tar").write_bytes(ARCHIVES[name])
    build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


@pytest.mark.parametrize("name", ["class-tars", "flat"])
def test_a_class_that_was_broken_and_is_repaired_gives_the_clean_set(name, tmp_path, monkeypatch):
    sampled_sparsely(monkeypatch)
    whole = {"class-tars": nested({WNIDS[n]: images(n, 1) for n in range(3)})}.get(
        name, tar_bytes(m for m in flat_members() if not isinstance(m[0], str) or "_0." in m[0])
    )
    place = whole.index(images(1)[0][1])
    broken = flipped(whole, place)
    (tmp_path / "a.tar").write_bytes(whole)
    build([tmp_path / "a.tar"], tmp_path / "clean", CONFIG)
    (tmp_path / "a.tar").write_bytes(broken)
    with pytest.raises(DamagedSource, match="no image"):
        build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
    (tmp_path / "a.tar").write_bytes(whole)
    build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


@pytest.mark.parametrize("name", ["class-tars.gz", "flat.gz", "class-tars", "flat"])
def test_a_build_that_failed_goes_on_with_permission(name, tmp_path, whole):
    data = ARCHIVES[name]
    data = data[: len(data) * 3 // 5]
    assert try_build(tmp_path, data, CONFIG) is None
    build([tmp_path / "a.tar"], tmp_path / "out-0", ALLOWING)
    build([tmp_path / "a.tar"], tmp_path / "at-once", ALLOWING)
    assert contents(tmp_path / "out-0") == contents(tmp_path / "at-once")
    check_samples(set_of(tmp_path / "out-0")[1], whole[name], set())


class Killed(BaseException):
    """In place of a signal."""


def killed_build(path: Path, out: Path, config: BuildConfig, after: int) -> None:
    """A build that ends when so many units are catalogued."""

    def run(function, items, careful=None):
        for number, item in enumerate(items):
            if number == after:
                raise Killed
            yield function(item)

    with pytest.raises(Killed):
        build([path], out, config, run=run)


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("after", [1, 2])
def test_a_kill_on_the_way_through_a_damaged_archive_hides_no_damage(
    name, after, tmp_path, monkeypatch, whole
):
    """The CRC is that of all runs, and faults are told once."""
    sampled_sparsely(monkeypatch)
    data = ARCHIVES[name]
    if name.endswith(".gz"):
        data = flipped(data, len(data) - 6)
    else:
        data = flipped(data, sorted(members(name).values())[-1][0] - 400)
    (tmp_path / "a.tar").write_bytes(data)
    killed_build(tmp_path / "a.tar", tmp_path / "out", CONFIG, after)
    with pytest.raises(DamagedSource):
        build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
    killed_build(tmp_path / "a.tar", tmp_path / "allowed", ALLOWING, after)
    build([tmp_path / "a.tar"], tmp_path / "allowed", ALLOWING)
    build([tmp_path / "a.tar"], tmp_path / "at-once", ALLOWING)
    assert contents(tmp_path / "allowed") == contents(tmp_path / "at-once")


@pytest.mark.parametrize("compress", [bytes, zipped])
@pytest.mark.parametrize("after", range(1, 8))
def test_a_kill_at_a_border_among_faults_changes_nothing(compress, after, tmp_path):
    """Garbage after every other file, so that units end before, in and after faults."""
    pieces, garbage = [], b"garbage".ljust(512, b".") * 3
    for number, (member, data) in enumerate(flat_members()):
        pieces.append(tar_bytes([(member, data)])[: 512 + -(-len(data) // 512) * 512])
        pieces += [garbage] if number % 2 else []
    (tmp_path / "a.tar").write_bytes(compress(b"".join(pieces) + bytes(1024)))
    try:
        killed_build(tmp_path / "a.tar", tmp_path / "out", ALLOWING, after)
    except pytest.fail.Exception:
        assert after > 4  # there are fewer units
    build([tmp_path / "a.tar"], tmp_path / "out", ALLOWING)
    build([tmp_path / "a.tar"], tmp_path / "at-once", ALLOWING)
    assert contents(tmp_path / "out") == contents(tmp_path / "at-once")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compress", [bytes, zipped])
def test_long_names_at_the_borders_of_units_arrive(form, compress, tmp_path):
    deep = "set/" + "long/" * 25
    wanted = {}
    for number in range(3):
        for name, data in images(number):
            wanted[f"{deep}{'ä' * (form == tarfile.PAX_FORMAT)}x/{WNIDS[number]}/{name}"] = data
    (tmp_path / "a.tar").write_bytes(compress(tar_bytes(wanted.items(), form)))
    killed_build(tmp_path / "a.tar", tmp_path / "out", CONFIG, 2)
    build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
    found = {member: row[0] for (_, member), row in set_of(tmp_path / "out")[1].items()}
    assert found == wanted
    assert len(list((tmp_path / "out" / "catalogue").glob("unit-*"))) > 3


def parted(data: bytes, size: int) -> bytes:
    """A gzip file of many members, as bgzip writes it."""
    return b"".join(gzip.compress(data[n : n + size], mtime=0) for n in range(0, len(data), size))


@pytest.mark.parametrize("size", [700, 20_000])
def test_many_gzip_members_and_zeros_after_them_are_one_archive(size, tmp_path, whole):
    for tail in (b"", bytes(70_000)):
        data = parted(PLAIN["flat"], size) + tail
        (tmp_path / "a.tar").write_bytes(data)
        out = tmp_path / f"out-{len(tail)}"
        killed_build(tmp_path / "a.tar", out, CONFIG, 2)
        build([tmp_path / "a.tar"], out, CONFIG)
        check(out, whole["flat"], set())
        assert not quarantined(out)


def test_gzip_members_can_be_entered_between_them(tmp_path):
    data = random.Random(0).randbytes(60_000)
    (tmp_path / "a.gz").write_bytes(parted(data, 700))
    system, path = store.locate(tmp_path / "a.gz")
    with GzipReader(system, path, (BEGIN,)) as reader:
        assert reader(0, len(data)) == data
        points = reader.points
    assert len(points) == 1 + 60_000 // 4200
    for point in points:
        with GzipReader(system, path, (point,)) as reader:
            assert reader(point.start, len(data)) == data[point.start :]
            assert not reader.damage


def test_gzip_data_after_a_hole_of_zeros_is_damage(tmp_path):
    cut = sorted(members("flat").values())[3][1]
    cut += -cut % 512
    first, rest = gzip.compress(PLAIN["flat"][:cut] + bytes(1024)), gzip.compress(PLAIN["flat"])
    (tmp_path / "a.tar").write_bytes(first + bytes(100_000) + rest)
    with pytest.raises(DamagedSource, match="gzip"):
        build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)


def test_a_flipped_byte_in_a_shard_that_is_a_source_is_damage(tmp_path):
    """The manifest of the set has the hash of each shard."""
    (tmp_path / "a.tar").write_bytes(PLAIN["flat"])
    build([tmp_path / "a.tar"], tmp_path / "set", CONFIG)
    shard = open_set(tmp_path / "set").manifest.splits["train"][0]
    path = tmp_path / "set" / shard.name
    build([tmp_path / "set"], tmp_path / "again", CONFIG)
    row = open_set(tmp_path / "set").read_index(shard).to_pylist()[1]
    path.write_bytes(flipped(path.read_bytes(), row["offset"] + row["size"] // 2, 1))
    with pytest.raises(DamagedSource, match="SHA-256"):
        build([tmp_path / "set"], tmp_path / "out", CONFIG)
