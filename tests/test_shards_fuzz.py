"""Broken images and broken archives: nothing crashes, each is reported, all good images arrive."""

import base64
import bz2
import dataclasses
import gzip
import io
import json
import lzma
import random
import re
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from archives import WNIDS, class_images, encoded, jpeg, nested, synthetic_image, tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.build.catalogue import DamagedSource
from shards.build.config import TranscodeConfig
from shards.build.pack import BuildConfig, build
from shards.build.transcode import Unusable, transcode, unpacked
from shards.dataset.format import open_set

CONFIG = BuildConfig(keep_bytes=True, val_fraction=0)
GOOD = class_images(WNIDS[0], 8)
WHOLE = jpeg(1, 200, 150)


def chunk(kind: bytes, data: bytes) -> bytes:
    return (len(data)).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    chunks = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def patched(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def marker(data: bytes, code: int) -> int:
    return data.index(bytes([0xFF, code]))


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.jpg", WHOLE)
    return buffer.getvalue()


BROKEN_IMAGES = {
    "empty": b"",
    "one byte": b"\xff",
    "zeros": bytes(5000),
    "text": b"404 Not RawSource\n" * 50,
    "html": b"<!DOCTYPE html><html><body>flickr: photo unavailable</body></html>",
    "noise": np.random.default_rng(0).bytes(5000),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "pdf": b"%PDF-1.4\n%\xe2\xe3\n1 0 obj\n<<>>\nendobj\n",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "zip": zipped(),
    "tar": tar_bytes([("a.jpg", WHOLE)]),
    "bzip2": bz2.compress(WHOLE),
    "xz": lzma.compress(WHOLE),
    "tiff": encoded(synthetic_image(1), "TIFF"),
    "soi only": b"\xff\xd8",
    "soi eoi": b"\xff\xd8\xff\xd9",
    "cut in the header": WHOLE[:100],
    "cut before the scan": WHOLE[: marker(WHOLE, 0xDA)],
    "cut in the scan": WHOLE[: len(WHOLE) // 2],
    "cut and closed": WHOLE[: len(WHOLE) // 2] + b"\xff\xd9",
    "last bytes gone": WHOLE[:-3],
    "zeros in the scan": patched(WHOLE, len(WHOLE) // 2, bytes(2000)),
    "no quantisation table": WHOLE.replace(b"\xff\xdb", b"\xff\xfe"),
    "no huffman table": jpeg(1, 200, 150, optimize=True).replace(b"\xff\xc4", b"\xff\xfe"),
    "no frame": WHOLE.replace(b"\xff\xc0", b"\xff\xfe"),
    "frame of zero size": patched(WHOLE, marker(WHOLE, 0xC0) + 5, bytes(4)),
    "twelve bits": patched(WHOLE, marker(WHOLE, 0xC0) + 4, b"\x0c"),
    "lossless frame": WHOLE.replace(b"\xff\xc0", b"\xff\xc3"),
    "nine components": patched(WHOLE, marker(WHOLE, 0xC0) + 9, b"\x09"),
    "huge frame": patched(WHOLE, marker(WHOLE, 0xC0) + 5, b"\xff\xff\xff\xff"),
    "taller than its data": patched(WHOLE, marker(WHOLE, 0xC0) + 5, b"\x08\x00"),
    "bytes swapped in front": b"\xd8\xff" + WHOLE[2:],
    "line ends translated": WHOLE.replace(b"\n", b"\r\n").replace(b"\x00", b"\x20"),
    "upper bits lost": bytes(b & 0x7F for b in WHOLE),
    "as base64": base64.b64encode(WHOLE),
    "cut cmyk": jpeg(1, 200, 150, mode="CMYK")[:-1500] + b"\xff\xd9",
    "cut progressive": jpeg(1, 200, 150, progressive=True)[:3000],
    "gzip cut": gzip.compress(WHOLE)[:-400],
    "gzip of nothing": gzip.compress(b""),
    "gzip with a wrong sum": gzip.compress(WHOLE)[:-8] + b"\1\2\3\4" + gzip.compress(WHOLE)[-4:],
    "gzip of text": gzip.compress(b"hello"),
    "gzip of gzip": gzip.compress(gzip.compress(WHOLE)),
    "gzip header only": b"\x1f\x8b\x08",
    "png cut": encoded(synthetic_image(2), "PNG")[:-2000],
    "png with a wrong sum": patched(encoded(synthetic_image(2), "PNG"), 400, b"\0\1\2\3"),
    "png header only": encoded(synthetic_image(2), "PNG")[:33],
    "png without pixels": png(64, 64),
    "png of zero size": png(0, 0),
    "png bomb": png(60000, 60000, data=bytes(9999)),
    "png with a bad depth": png(64, 64, depth=7, data=bytes(64 * 193)),
    "gif cut": encoded(synthetic_image(2).quantize(64), "GIF")[:200],
    "gif header only": b"GIF89a",
    "bmp cut": encoded(synthetic_image(2), "BMP")[:800],
    "bmp with a wild header": patched(encoded(synthetic_image(2), "BMP"), 14, b"\xff\xff\xff\x7f"),
    "webp cut": encoded(synthetic_image(2), "WEBP")[:200],
}


def arrived(folder) -> set[str]:
    given = open_set(folder)
    return {
        key
        for shard in given.manifest.splits.get("train", ())
        for key in given.read_index(shard)["key"].to_pylist()
    }


def quarantined(folder) -> list[dict]:
    return pq.read_table(folder / "quarantine.parquet").to_pylist()


@pytest.fixture(scope="module")
def broken_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    broken = [(f"{name.replace(' ', '-')}.JPEG", data) for name, data in BROKEN_IMAGES.items()]
    members = [item for pair in zip(broken, [*GOOD, *[None] * 99], strict=False) for item in pair]
    (folder / "a.tar").write_bytes(nested({WNIDS[0]: [m for m in members if m]}))
    return folder, build([folder / "a.tar"], folder / "out", CONFIG)


def test_there_are_at_least_forty_kinds():
    assert len(BROKEN_IMAGES) >= 40 and len(BROKEN_ARCHIVES) >= 15


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_a_broken_image_is_reported_with_a_reason(broken_set, name):
    folder, _ = broken_set
    member = f"{name.replace(' ', '-')}.JPEG"
    (row,) = [row for row in quarantined(folder / "out") if row["member"] == member]
    assert len(row["problem"]) > 8 and row["archive"] == f"a.tar/{WNIDS[0]}.tar"


def test_all_good_images_among_broken_ones_arrive(broken_set):
    folder, report = broken_set
    assert arrived(folder / "out") == {name.removesuffix(".JPEG") for name, _ in GOOD}
    assert report.quarantined_count == len(BROKEN_IMAGES)
    assert report.files == len(BROKEN_IMAGES) + len(GOOD)
    assert sum(report.reasons.values()) == report.quarantined_count


INNER = tar_bytes(GOOD)
SECOND = tar_bytes(class_images(WNIDS[1], 3))
NAMES = {name.removesuffix(".JPEG") for name, _ in GOOD}
NAMES_2 = {f"{WNIDS[1]}_{n}" for n in range(3)}
FIRST_SIZE = 512 + -(-len(GOOD[0][1]) // 512) * 512


def outer(*inner: tuple[str, bytes], **options) -> bytes:
    return tar_bytes(inner, **options)


def two(first: bytes) -> bytes:
    return outer((f"{WNIDS[0]}.tar", first), (f"{WNIDS[1]}.tar", SECOND))


def special(kind: bytes, name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "n.tar"
    return tar_bytes([(info, b""), (f"{WNIDS[0]}.tar", INNER), (f"{WNIDS[1]}.tar", SECOND)])


# name: archive, good images that must arrive, what the reason must say
BROKEN_ARCHIVES = {
    "inner empty": (two(b""), NAMES_2, "end-of-archive"),
    "inner text": (two(b"not a tar" * 100), NAMES_2, "header"),
    "inner zeros": (two(bytes(2048)), NAMES_2, "the class has no file"),
    "inner gzip": (two(gzip.compress(INNER)), NAMES_2, "header"),
    "inner cut in an image": (two(INNER[:3000]), NAMES_2, "truncated"),
    "inner cut in a header": (two(INNER[: FIRST_SIZE + 100]),
                              NAMES_2 | {f"{WNIDS[0]}_0"}, "inside a header"),
    "inner cut between members": (two(INNER[:FIRST_SIZE]),
                                  NAMES_2 | {f"{WNIDS[0]}_0"}, "end-of-archive"),
    "inner first header damaged": (two(b"\xff" * 512 + INNER[512:]),
                                   NAMES_2 | NAMES - {f"{WNIDS[0]}_0"}, "header"),
    "inner header damaged": (two(patched(INNER, FIRST_SIZE, b"\xff" * 200)),
                             NAMES_2 | NAMES - {f"{WNIDS[0]}_1"}, "checksum|header|digit|literal"),
    "inner size damaged": (two(patched(INNER, FIRST_SIZE + 124, b"9999999999\0")),
                           NAMES_2 | NAMES - {f"{WNIDS[0]}_1"}, "checksum"),
    "inner zeroed block": (two(patched(INNER, FIRST_SIZE, bytes(512))),
                           NAMES_2 | NAMES - {f"{WNIDS[0]}_1"}, "header|checksum"),
    "inner twice": (two(INNER + tar_bytes([("late.JPEG", jpeg(90))])),
                    NAMES_2 | NAMES | {"late"}, None),
    "outer cut in the last class": (two(INNER)[: len(INNER) + 3000], NAMES, "truncated"),
    "outer cut between classes": (outer((f"{WNIDS[0]}.tar", INNER))[: 512 + len(INNER)],
                                  NAMES, "end-of-archive"),
    "outer header damaged": (patched(two(INNER), 512 + len(INNER), b"\xff" * 300),
                             NAMES, "header|checksum|digit|literal"),
    "outer with a text file": (outer(("README", b"hello"), (f"{WNIDS[0]}.tar", INNER)),
                               NAMES, "not a class tar"),
    "outer with resource forks": (outer((f"._{WNIDS[0]}.tar", b"x"), (f"{WNIDS[0]}.tar", INNER)),
                                  NAMES, "not a class tar"),
    "outer with a compressed class": (
        outer((f"{WNIDS[1]}.tar.gz", b"x"), (f"{WNIDS[0]}.tar", INNER)),
        NAMES, "a compressed class tar",
    ),
    "outer with a link": (special(b"2", f"{WNIDS[2]}.tar"), NAMES | NAMES_2, "symbolic link"),
    "outer with a device": (special(b"3", f"{WNIDS[2]}.tar"), NAMES | NAMES_2, "character device"),
    "gzip cut": (gzip.compress(two(INNER), 1)[:-300], NAMES, "gzip|truncated|cut"),
    "gzip with a wrong sum": (gzip.compress(two(INNER))[:-8] + b"\1\2\3\4\5\6\7\0",
                              NAMES | NAMES_2, "gzip"),
    "gzip followed by noise": (gzip.compress(two(INNER)) + b"noise" * 9, NAMES | NAMES_2, "gzip"),
}  # fmt: skip


HARMLESS = (
    *("inner twice", "outer with a text file", "outer with resource forks"),
    *("outer with a link", "outer with a device"),
)
"""Where nothing can be missing that is not named."""


@pytest.mark.parametrize("name", BROKEN_ARCHIVES)
def test_a_broken_archive_is_reported_and_its_good_images_arrive(tmp_path, name):
    data, good, reason = BROKEN_ARCHIVES[name]
    (tmp_path / "a.tar").write_bytes(data)
    allowing = dataclasses.replace(CONFIG, allow_damaged_source=True)
    if name in HARMLESS:
        report = build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
    else:
        with pytest.raises(DamagedSource, match="--allow-damaged-source"):
            build([tmp_path / "a.tar"], tmp_path / "out", CONFIG)
        assert not (tmp_path / "out" / "manifest.json").exists()
        report = build([tmp_path / "a.tar"], tmp_path / "out", allowing)
        source = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]
        assert source[-1]["damage"]
    assert arrived(tmp_path / "out") >= good
    if reason is not None:
        reasons = " ".join(row["problem"] for row in quarantined(tmp_path / "out"))
        assert report.quarantined_count and re.search(reason, reasons), reasons


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 3), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
       st.floats(0, 1))  # fmt: skip
def test_any_damage_gives_an_image_or_a_reason(kind, changes, cut):
    png = encoded(synthetic_image(3), "PNG")
    whole = (jpeg(3), jpeg(3, progressive=True), png, gzip.compress(jpeg(3)))[kind]
    data = bytearray(whole)
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    data = bytes(data[: len(data) if cut > 0.5 else int(2 * cut * len(data))])
    try:
        made = transcode(unpacked(data), TranscodeConfig(resize_short=32))
    except Unusable as error:
        assert str(error)
    else:
        assert made.jpeg


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "a description"
SMALL, PALETTE = synthetic_image(3, 60, 40), synthetic_image(3, 60, 40).quantize(50)
WITH_ALPHA = Image.merge("RGBA", [*SMALL.split(), SMALL.convert("L")])
SOUND_IMAGES = {
    "jpeg": jpeg(3, 60, 40, exif=EXIF.tobytes()),
    "cmyk": jpeg(3, 60, 40, mode="CMYK"),
    "png": encoded(WITH_ALPHA, "PNG", exif=EXIF),
    "palette": encoded(PALETTE, "PNG", transparency=bytes(range(50))),
    "gif": encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(90)]),
    "bmp": encoded(PALETTE, "BMP"),
    "webp": encoded(WITH_ALPHA, "WEBP", exif=EXIF.tobytes()),
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """With a few bytes changed, lost or added, most of them in the headers."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(draw.choice((len(changed), min(len(changed), 200))))
        length = draw.choice((0, 1, 1, 1, 4, 30))
        new = draw.choice((draw.randbytes(length), b"\xff" * length, bytes(length), b""))
        changed[at : at + length] = new
        changed = changed or bytearray(1)
    return bytes(changed)


@pytest.mark.parametrize("kind", SOUND_IMAGES)
def test_hundreds_of_mutations_give_an_image_or_a_reason_and_no_output(kind, capfd):
    draw, usable = random.Random(kind), 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number in range(400):
            config = TranscodeConfig(resize_short=32, keep_bytes=number % 2 == 0)
            try:
                transcode(mutated(SOUND_IMAGES[kind], draw), config, hashed=True)
            except Unusable as error:
                assert str(error)
            else:
                usable += 1
    assert 0 < usable < 400
    assert not told and capfd.readouterr() == ("", "")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_any_damage_to_an_archive_is_survived(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("wild")
    data = bytearray(two(INNER))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    (folder / "a.tar").write_bytes(data)
    try:
        build([folder / "a.tar"], folder / "out", CONFIG)
    except ValueError as error:
        assert "not recognised" in str(error) or isinstance(error, DamagedSource)
    else:
        assert (folder / "out" / "manifest.json").exists()
