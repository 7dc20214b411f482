"""Shards that others wrote: indexed where they lie, with warnings, and read by our reader."""

import json
import random
import shutil
import tarfile
from pathlib import Path

import pytest
import s3_server
import webdataset
from archives import WNIDS, contents, encoded, jpeg, small_archive, synthetic_image, tar_bytes

from pipeline.data.dataset import Dataset
from pipeline.data.reader import SampleReader, View
from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.build.progress import StageProgress
from shards.check.index import index
from shards.check.info import describe
from shards.check.verify import verify
from shards.dataset import store
from shards.dataset.format import open_set
from shards.dataset.sample import parse_samples
from vit.config import ImageConfig


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


def trained_on(folder, split: str = "train", **options) -> list[tuple[str, str]]:
    """Key and fault of every sample of a split, as training reads them."""
    dataset = Dataset.open([str(folder)], split, slice_samples=3)
    reader = SampleReader(dataset=dataset, view=View(images=ImageConfig(), size=16), **options)
    rows = reader(dataset.order(7).spans(0, dataset.samples))
    return sorted(zip(rows["key"].tolist(), rows["fault"].tolist(), strict=True))


def sample(key: str, label: int = 0, image: bytes | None = None) -> list[tuple[str, bytes]]:
    """The members of a sample."""
    data = jpeg(label) if image is None else image
    return [(f"{key}.cls", str(label).encode()), (f"{key}.jpg", data)]


def shard_file(folder: Path, name: str, *samples: list[tuple[str, bytes]]) -> Path:
    """A shard of these samples."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(tar_bytes(member for one in samples for member in one))
    return folder / name


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


def test_an_image_that_cannot_be_read_is_named_and_does_not_stop_the_rest(tmp_path):
    shard_file(tmp_path, "a.tar", *(sample(f"k{n}") for n in range(4)), sample("bad", 0, b"text"))
    found = index(str(tmp_path))
    assert found.splits == {"train": 5}
    (said,) = [text for text in found.warnings if "max_bad_samples" in text]
    assert said.startswith("1 images cannot be read") and "a.tar: bad.jpg is not an image" in said
    faults = verify(str(tmp_path), quick=True).faults
    assert [(fault.shard, fault.key) for fault in faults] == [("a.tar", "bad")]
    assert "does not decode" in faults[0].reason
    read = trained_on(tmp_path, skip=True)
    assert [key for key, fault in read if not fault] == ["k0", "k1", "k2", "k3"]
    told = describe(str(tmp_path))
    assert told.splits["train"].unreadable == 1 and sum(told.short_side.values()) == 4
    assert "1 unreadable" in str(told)


def test_all_samples_that_cannot_be_used_are_listed_at_once_and_nothing_is_written(tmp_path):
    good = shard_file(tmp_path, "a.tar", sample("k0"), [("k1.jpg", jpeg(1))])
    twice = [*sample("k2"), ("k2.jpg", jpeg(3))]
    shard_file(
        tmp_path, "b.tar", twice, [("k3.cls", b"0")], sample("k4"), sample("k5"), sample("k4")
    )
    (tmp_path / "c.tar").write_bytes(good.read_bytes()[:-3000].rstrip(b"\0"))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="shards build") as error:
        index(str(tmp_path))
    for text in (
        "7 faults in",
        "a.tar: byte 4608: sample 'k1' has no label",
        "a second 'k2.jpg' in one sample",
        "sample 'k3' has no image",
        "members of k4 are not contiguous",
        "c.tar: byte",
    ):
        assert text in str(error.value), text
    assert contents(tmp_path) == before


def test_an_empty_shard_is_an_empty_shard_and_a_set_of_them_is_refused(tmp_path):
    shard_file(tmp_path, "0.tar")
    for label in (None, "json:label"):
        with pytest.raises(ValueError, match="its shards have no samples; download"):
            index(str(tmp_path), label=label)
    shard_file(tmp_path, "1.tar", sample("k0"), sample("k1"))
    found = index(str(tmp_path))
    assert "warning: 1 shards are empty: 0.tar" in str(found)
    assert [s.samples for s in open_set(tmp_path).manifest.splits["train"]] == [0, 2]
    assert not verify(str(tmp_path)).faults and len(trained_on(tmp_path)) == 2


def test_files_that_macos_adds_are_passed_over_everywhere(tmp_path):
    def with_extra(key: str) -> list[tuple[str, bytes]]:
        return [
            pair
            for name, data in sample(f"d/{key}")
            for pair in ((f"d/._{key}.{name[-3:]}", b"\0\5\x16\7"), (name, data))
        ]

    keys = [f"k{n}" for n in range(7)]
    shard_file(tmp_path / "set", "train-0.tar", *map(with_extra, keys))
    (tmp_path / "set" / "._train-0.tar").write_bytes(b"\0\5\x16\7")
    assert index(str(tmp_path / "set"), classes_file(tmp_path)).splits == {"train": 7}
    assert not verify(str(tmp_path / "set")).faults
    assert trained_on(tmp_path / "set") == [(f"d/{key}", "") for key in keys]
    report = build([tmp_path / "set"], tmp_path / "out", BuildConfig(val_fraction=0))
    assert report.files == 7 and report.quarantined_count == 0


def test_shards_in_folders_of_splits_are_seen_and_read(tmp_path):
    shard_file(tmp_path, "train/00000.tar", sample("a"), sample("b"))
    shard_file(tmp_path, "val/00000.tar", sample("c"))
    shard_file(tmp_path, "validation/00000.tar", sample("d"))
    assert index(str(tmp_path)).splits == {"train": 2, "val": 2}
    assert trained_on(tmp_path) == [("a", ""), ("b", "")]
    assert trained_on(tmp_path, "val") == [("c", ""), ("d", "")]
    assert not verify(str(tmp_path)).faults
    shard_file(tmp_path, "train/00001.tar", sample("e"))
    (stray,) = verify(str(tmp_path)).faults
    assert stray.shard == "train/00001.tar" and "index the set again" in stray.reason
    index(str(tmp_path))
    assert len(trained_on(tmp_path)) == 3 and not verify(str(tmp_path)).faults


def test_a_timm_set_that_is_not_wholly_there_is_usable_and_says_what_is_missing(tmp_path):
    names = [f"imagenet1k-train-{n:04d}.tar" for n in range(3)]
    shard_file(tmp_path, names[1], sample("a"), sample("b"))
    split = {"name": "train", "filenames": names, "shard_lengths": [9, 2, 9], "num_samples": 20}
    info = json.dumps({"name": "imagenet1k", "splits": {"train": split}})
    (tmp_path / "_info.json").write_text(info)
    said = str(index(str(tmp_path)))
    assert "warning: 2 shards of _info.json are not there and are left out" in said
    assert said.endswith(f"{names[0]}, {names[2]}")
    assert not verify(str(tmp_path)).faults and len(trained_on(tmp_path)) == 2
    assert (tmp_path / "_info.json").read_text() == info
    (tmp_path / "_info.json").write_text(info.replace("9, 2, 9", "9, 3, 9"))
    assert [str(f) for f in verify(str(tmp_path)).faults] == [
        "_info.json: its counts differ from the manifest's"
    ]


def test_what_img2dataset_publishes_is_indexed_verified_and_read(tmp_path):
    """Its members, fields and sidecars; the class comes from a column that was passed through."""
    for number in range(2):
        members = []
        for n in range(5):
            key, data = f"{number:05d}{n:04d}", jpeg(n)
            fields = {
                "caption": "a fish", "url": "https://example.org/1.jpg", "label": str(n % 3),
                "key": key, "status": "success", "error_message": None, "width": 96, "height": 64,
                "original_width": 96, "original_height": 64, "exif": "{}", "sha256": "00" * 32,
            }  # fmt: skip
            members += [(f"{key}.jpg", data), (f"{key}.json", json.dumps(fields).encode()),
                        (f"{key}.txt", b"a fish")]  # fmt: skip
        (tmp_path / f"{number:05d}.tar").write_bytes(tar_bytes(members, tarfile.PAX_FORMAT))
        (tmp_path / f"{number:05d}.parquet").write_bytes(b"theirs")
        (tmp_path / f"{number:05d}_stats.json").write_text('{"count": 5}')
    before = contents(tmp_path)
    for label in (None, "json:label"):
        found = index(str(tmp_path), classes_file(tmp_path), label)
        assert (found.splits, found.label, found.classes) == ({"train": 10}, "json:label", 3)
    assert before.items() <= contents(tmp_path).items()
    assert not verify(str(tmp_path)).faults and len(trained_on(tmp_path)) == 10
    with pytest.raises(ValueError, match="no class number in any of json:caption"):
        index(str(tmp_path), label="json:caption")
    with pytest.raises(ValueError, match=r"label rule 'label' is unknown; known are cls and json"):
        index(str(tmp_path), label="label")


@pytest.mark.parametrize("value", ["3", ["3", "1"], 3.0, [3]])
def test_class_numbers_as_text_are_class_numbers(tmp_path, value):
    members = [("a.jpg", jpeg(1)), ("a.json", json.dumps({"label": value}).encode())]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert index(str(tmp_path)).label == "json:label"
    ((row,),) = [
        t.to_pylist() for t in map(open_set(tmp_path).read_index, manifest_shards(tmp_path))
    ]
    assert row["classes"] == ([3, 1] if value == ["3", "1"] else [3])


def manifest_shards(folder):
    return open_set(folder).manifest.shards


def test_a_set_that_was_built_is_never_indexed(tmp_path):
    folder = tmp_path / "set"
    config = BuildConfig(resize_short=32, val_fraction=0)
    build([small_archive(tmp_path / "fall11_whole.tar", 1, 3)], folder, config)
    refused = "was built by `python -m shards build`.*python -m shards verify"
    whole = contents(folder)

    def refuses() -> None:
        before = contents(folder)
        with pytest.raises(ValueError, match=refused):
            index(str(folder))
        assert contents(folder) == before

    refuses()
    (folder / "manifest.json").write_text("{")  # what the report says is still enough
    refuses()
    (folder / "manifest.json").write_bytes(whole["manifest.json"])
    (folder / "report.json").unlink()
    refuses()


def test_indexing_again_replaces_the_index_only_when_it_is_whole(tmp_path):
    shard_file(tmp_path, "a.tar", sample("k0"), sample("k1"))
    index(str(tmp_path))
    first = contents(tmp_path)
    (tmp_path / "b.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match="1 faults|2 faults"):
        index(str(tmp_path))
    assert first.items() <= contents(tmp_path).items()
    assert [key for key, _ in trained_on(tmp_path)] == ["k0", "k1"]
    shard_file(tmp_path, "b.tar", sample("k2"))
    for _ in range(3):
        index(str(tmp_path))
        assert [key for key, _ in trained_on(tmp_path)] == ["k0", "k1", "k2"]
        assert not verify(str(tmp_path)).faults
        assert len([name for name in contents(tmp_path) if name.endswith(".parquet")]) == 2
    shutil.rmtree(tmp_path / open_set(tmp_path).manifest.index_folder)
    assert index(str(tmp_path)).splits == {"train": 3}
    (tmp_path / "manifest.json").write_text("{")
    assert index(str(tmp_path)).splits == {"train": 3}


def test_index_verify_and_a_build_read_every_byte_of_an_object_store_once(tmp_path, monkeypatch):
    objects = s3_server.Objects()
    with s3_server.serving("bkt", objects) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(store, "REMOTE_BLOCK", 1 << 20)
        noise = random.Random(0).randbytes(40_000)
        size = 0
        for number in range(2):
            data = tar_bytes(
                member
                for n in range(40)
                for member in sample(f"{WNIDS[n % 3]}_{number}{n}", n % 3, jpeg(n) + noise)
            )
            objects.objects[f"bkt/set/train-{number}.tar"], size = data, size + len(data)
        seen: list[StageProgress] = []
        for stage, read in (
            ("index", lambda: index("s3://bkt/set", progress=seen.append)),
            ("verify", lambda: verify("s3://bkt/set", quick=True, progress=seen.append)),
            (
                "build",
                lambda: build(["s3://bkt/set"], tmp_path / "out", BuildConfig(val_fraction=0)),
            ),
        ):
            objects.reads.clear()
            read()
            of_tars = [got for path, got in objects.reads if path.endswith(".tar")]
            assert size <= sum(of_tars) <= 1.05 * size, stage
            assert sum(got for _, got in objects.reads) <= 1.05 * size, stage
            assert len(of_tars) <= 2 * -(-size // 2 // store.REMOTE_BLOCK) + 2, stage
        stages = [StageProgress(s, n, 2, 40 * n, size // 2 * n) for s in ("index", "verify")
                  for n in (1, 2)]  # fmt: skip
        assert seen == stages
        index("s3://bkt/set")
        assert not verify("s3://bkt/set", quick=True).faults
        indexes = [path for path in objects.objects if path.endswith(".parquet")]
        assert sorted(indexes) == [f"bkt/set/index-2/train-{n}.parquet" for n in range(2)]


def test_of_a_set_without_any_usable_label_a_few_samples_are_listed(tmp_path):
    shard_file(tmp_path, "a.tar", sample("k0"), *([(f"n{n}.jpg", b"")] for n in range(500)))
    with pytest.raises(ValueError, match="500 faults") as error:
        index(str(tmp_path))
    assert len(str(error.value)) < 20_000 and str(error.value).endswith("... 500 in all")
