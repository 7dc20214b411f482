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
from archives import WNIDS, contents, encoded, jpeg, nested, synthetic_image, tar_bytes

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
    cuts = [data[: draw.randrange(len(data))] for _ in range(40)]
    cuts += [data[: n * len(data) // 10 // 512 * 512] for n in range(10)]
    fuzz(name, tmp_path, whole, cuts, 0 if name.endswith(".gz") else 10)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_flipped_byte_loses_no_image_that_is_not_named(name, tmp_path, whole):
    data, draw = ARCHIVES[name], random.Random(name)
    busy = [place for place, byte in enumerate(data) if byte]  # much of a small tar is padding
    places = [draw.choice(busy) for _ in range(80)] + draw.sample(range(len(data)), 20)
    damaged = [flipped(data, place, 1 << draw.randrange(8)) for place in places]
    fuzz(name, tmp_path, whole, damaged, 5 if name.endswith(".gz") else 100)
