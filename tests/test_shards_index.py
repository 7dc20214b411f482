"""Shards that others wrote: indexed where they lie, with warnings, and read by our reader."""

import json
import random
import tarfile

import pytest
import webdataset
from archives import WNIDS, contents, encoded, jpeg, synthetic_image, tar_bytes

from shards.check.index import index
from shards.check.verify import verify
from shards.dataset import store
from shards.dataset.format import open_set, parse_samples


def records(folder):
    given = open_set(folder)
    for split, shards in given.manifest.splits.items():
        for shard in shards:
            data = store.read_bytes(given.fs, given.path(shard))
            rows = given.read_index(shard).to_pylist()
            for row, one in zip(
                rows, parse_samples(data, shard.name, given.manifest.label), strict=True
            ):
                assert row["key"] == one.key and row["classes"] == list(one.classes)
                assert data[row["offset"] :][: row["size"]] == one.image
                again = parse_samples(data[row["start"] : row["stop"]], "", given.manifest.label)
                assert [r.key for r in again] == [one.key]
                yield split, one.key, given.manifest.classes[one.classes[0]]


def shuffled_keys(count: int, seed: int = 0) -> list[tuple[str, int]]:
    labels = [n % 3 for n in range(count)]
    random.Random(seed).shuffle(labels)
    return [(f"{WNIDS[label]}_{n}", label) for n, label in enumerate(labels)]


def test_shards_of_timm(tmp_path):
    """Keys are file names; labels in cls and json; _info.json says splits."""
    names = {"train": ["imagenet22k-train-0000.tar"], "validation": ["imagenet22k-val-0000.tar"]}
    for split, (name,) in names.items():
        members = []
        for key, label in shuffled_keys(30, len(split)):
            key += split[0]
            fields = {"label": label, "class_name": "x", "width": 96, "height": 64}
            members += [(f"{key}.cls", str(label).encode()), (f"{key}.jpg", jpeg(label)),
                        (f"{key}.json", json.dumps(fields).encode())]  # fmt: skip
        (tmp_path / name).write_bytes(tar_bytes(members, tarfile.PAX_FORMAT))
    info = {"name": "imagenet22k", "splits": {
        split: {"name": split, "filenames": files, "shard_lengths": [30], "num_samples": 30}
        for split, files in names.items()}}  # fmt: skip
    (tmp_path / "_info.json").write_text(json.dumps(info))
    before = contents(tmp_path)
    found = index(str(tmp_path))
    assert (found.splits, found.label, found.classes) == ({"train": 30, "val": 30}, "cls", 3)
    assert not found.warnings
    assert open_set(tmp_path).manifest.classes == WNIDS[:3]
    assert all(key.startswith(wnid) for _, key, wnid in records(tmp_path))
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not verify(str(tmp_path)).faults


def test_shards_of_img2dataset_keep_their_parquet(tmp_path):
    """Labels in json alone, images named jpg, a Parquet of their own beside each tar."""
    members = []
    for key, label in shuffled_keys(40):
        key = key.rpartition("_")[2].zfill(9)
        fields = {"caption": "x", "status": "success", "label": label, "key": key}
        members += [(f"{key}.jpg", jpeg(label)), (f"{key}.json", json.dumps(fields).encode()),
                    (f"{key}.txt", b"a caption")]  # fmt: skip
    (tmp_path / "00000.tar").write_bytes(tar_bytes(members))
    (tmp_path / "00000.parquet").write_bytes(b"theirs")
    found = index(str(tmp_path))
    assert (found.label, found.splits) == ("json:label", {"train": 40})
    assert (tmp_path / "00000.parquet").read_bytes() == b"theirs"
    assert "no unique WordNet id for 3 of 3 classes" in found.warnings[0]
    assert len(list(records(tmp_path))) == 40 and not verify(str(tmp_path)).faults


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "JPEG", "png", "webp"])
def test_shards_of_webdataset_with_every_kind_of_image(tmp_path, extension):
    kind = {"jpg": "JPEG", "JPEG": "JPEG"}.get(extension, extension.upper())
    path = tmp_path / "set-train-000000.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for key, label in shuffled_keys(12):
            image = encoded(synthetic_image(label), kind)
            writer.write({"__key__": f"a/b/{key}", extension: image, "cls": str(label).encode()})
    assert index(str(tmp_path)).splits == {"train": 12}
    assert len(list(records(tmp_path))) == 12 and not verify(str(tmp_path)).faults


def test_shards_in_class_order_are_warned_of(tmp_path):
    members = []
    for n in range(60):
        members += [(f"{n:04d}.cls", str(n // 20).encode()), (f"{n:04d}.jpg", jpeg(n // 20))]
    (tmp_path / "val-0.tar").write_bytes(tar_bytes(members))
    found = index(str(tmp_path), classes_file(tmp_path))
    assert found.splits == {"val": 60}
    assert "not shuffled: 97% of neighbouring samples share a class" in str(found)


def classes_file(folder) -> str:
    (folder / "names.txt").write_text("\n".join(WNIDS[:3]))
    return str(folder / "names.txt")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b""), ("b.cls", b"0"), ("a.cls", b"0")], "a are not contiguous"),
        ([("a.cls", b"0"), ("a.jpg", b"text")], "is not an image"),
        ([("a.cls", b"7"), ("a.jpg", jpeg(1))], "label 7 occurs, but .* has 3"),
        ([("a.txt", b"caption"), ("a.jpg", jpeg(1))], "give --label"),
        ([("a.cls", b"0")], "has no image"),
    ],
)
def test_shards_that_cannot_be_used_say_why(tmp_path, members, message):
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    label = "cls" if "contiguous" in message else None
    with pytest.raises(ValueError, match=message):
        index(str(tmp_path), classes_file(tmp_path), label)
    assert not (tmp_path / "manifest.json").exists()


def test_a_truncated_shard_is_not_indexed_short(tmp_path):
    data = tar_bytes([("a.cls", b"0"), ("a.jpg", jpeg(1)), ("b.cls", b"0"), ("b.jpg", jpeg(2))])
    (tmp_path / "a.tar").write_bytes(data[:2500])
    with pytest.raises(ValueError, match=r"a\.tar: byte .*truncated"):
        index(str(tmp_path))


def test_a_folder_without_shards_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shards"):
        index(str(tmp_path))
