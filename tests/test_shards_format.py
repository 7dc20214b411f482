"""What a shard set is on disk: manifest, index, and samples of a byte range."""

import dataclasses
import io
import pickle
import tarfile

import pytest
from archives import jpeg, small_archive, tar_bytes

from shards.build.pack import BuildConfig, build
from shards.build.writer import sample_bytes
from shards.dataset.format import Manifest, Shard, open_set
from shards.dataset.sample import parse_samples
from shards.dataset.store import absolute, read_bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("format")
    build(
        [small_archive(folder / "fall11_whole.tar")],
        folder / "set",
        BuildConfig(shard_samples=10, resize_short=32, val_per_class=2),
    )
    return open_set(folder / "set")


def test_manifest_survives_json():
    manifest = Manifest(
        classes=("n01", "n02"), splits={"train": (Shard("a.tar", 1, 2, "ff"),)}, label="json:x"
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}', '{"version": 1}', "null"])
def test_a_file_that_is_not_a_manifest_is_refused(text):
    with pytest.raises(ValueError, match="is not a manifest"):
        Manifest.from_json(text)


def test_a_missing_set_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m shards build .*python -m shards index"):
        open_set(tmp_path / "none")


def test_a_set_travels_to_another_process_and_stays_the_same(made):
    again = pickle.loads(pickle.dumps(made))
    assert again.fingerprint == made.fingerprint and again.manifest == made.manifest
    shard = made.manifest.splits["train"][0]
    assert again.read_index(shard).equals(made.read_index(shard))


def test_any_range_between_samples_holds_exactly_those_samples(made):
    shard = made.manifest.splits["train"][0]
    rows = made.read_index(shard).to_pylist()
    data = read_bytes(made.fs, made.path(shard))
    for first in range(len(rows)):
        for last in range(first, len(rows)):
            piece = data[rows[first]["start"] : rows[last]["stop"]]
            records = list(parse_samples(piece, shard.name))
            assert [r.key for r in records] == [row["key"] for row in rows[first : last + 1]]
            assert [list(r.classes) for r in records] == [
                row["classes"] for row in rows[first : last + 1]
            ]
    for row, one in zip(rows, parse_samples(data, shard.name), strict=True):
        assert bytes(one.image) == data[row["offset"] :][: row["size"]]


def test_our_tars_are_plain_ustar_with_the_label_first(made):
    for shard in made.manifest.splits["train"]:
        with tarfile.open(made.path(shard)) as file:
            members = file.getmembers()
        assert {m.type for m in members} == {tarfile.REGTYPE}
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}
        assert [m.name.rpartition(".")[2] for m in members] == ["cls", "jpg"] * shard.samples
        assert not any(m.pax_headers for m in members)


def test_several_classes_are_read_from_json_and_the_first_stands_in_cls():
    data, at = sample_bytes("k", b"image", (3, 1))
    (record,) = parse_samples(data, "here")
    assert record.classes == (3, 1)
    assert data[at : at + 5] == b"image"
    with tarfile.open(fileobj=io.BytesIO(data + bytes(1024))) as file:
        assert file.extractfile("k.cls").read() == b"3"


@pytest.mark.parametrize(
    ("label", "members", "classes"),
    [
        ("cls", [("a.cls", b" 7\n")], (7,)),
        ("cls", [("a.cls", b"7"), ("a.json", b'{"label": 3}')], (7,)),
        ("cls", [("a.json", b'{"classes": [4, 5]}'), ("a.cls", b"4")], (4, 5)),
        ("json:label", [("a.json", b'{"label": 3}')], (3,)),
        ("json:label", [("a.json", b'{"label": [3, 9]}')], (3, 9)),
        ("json:label", [("a.json", b'{"label": "3"}')], (3,)),
        ("json:label", [("a.json", b'{"label": ["3", 9.0]}')], (3, 9)),
        ("cls", [("._a.cls", b"\0\5"), ("a.cls", b"7"), (".DS_Store", b"x")], (7,)),
    ],
)
@pytest.mark.parametrize("extension", ["jpg", "jpeg", "JPEG", "png", "webp"])
def test_labels_and_extensions_of_other_writers_are_read(label, members, classes, extension):
    data = tar_bytes([*members, (f"a.{extension}", b"image")], tarfile.PAX_FORMAT)
    (record,) = parse_samples(data, "here", label)
    assert (record.key, bytes(record.image), record.classes) == ("a", b"image", classes)
    assert record.extension == extension.lower()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.cls", b"1")], "has no image"),
        ([("a.jpg", b"x")], "has no label"),
        ([("a.cls", b"cat"), ("a.jpg", b"x")], "has no label"),
        ([("a.cls", b"-1"), ("a.jpg", b"x")], "count from 0"),
        ([("a.cls", b"1"), ("a.cls", b"1"), ("a.jpg", b"x")], "a second"),
        ([("a.cls", b"1"), ("b.jpg", b"x")], "has no image"),
        ([("a.json", b"{"), ("a.jpg", b"x")], "has no label"),
        ([("a.cls", b"99999999"), ("a.jpg", b"x")], "count from 0 to 9999999"),
    ],
)
def test_malformed_samples_raise_with_place_and_key(members, reason):
    with pytest.raises(ValueError, match=rf"here: byte \d+.*{reason}"):
        list(parse_samples(tar_bytes(members), "here"))


@pytest.mark.parametrize(
    "value", ["2.5", "true", '"cat"', "null", "[]", "{}", '"2.5"', "Infinity", "NaN", "deep"]
)
def test_what_is_no_class_number_is_no_label(value):
    value = value.replace("deep", "[" * 5000)
    members = [("a.jpg", b"x"), ("a.json", f'{{"label": {value}}}'.encode())]
    with pytest.raises(ValueError, match="has no label|labels count"):
        list(parse_samples(tar_bytes(members), "here", "json:label"))


def test_a_missing_index_says_which_command_makes_it(made, tmp_path):
    shard = Shard("none.tar", 1, 1, "")
    with pytest.raises(FileNotFoundError, match="shards verify --repair"):
        made.read_index(shard)
    indexed = dataclasses.replace(made.manifest, settings={"indexed": True})
    with pytest.raises(FileNotFoundError, match="shards index"):
        dataclasses.replace(made, manifest=indexed).read_index(shard)


def test_a_range_cut_at_any_byte_raises_or_ends_between_members():
    data = b"".join(sample_bytes(f"k{n}", jpeg(n, 16, 16), (n,))[0] for n in range(3))
    whole = [r.key for r in parse_samples(data, "here")]
    for cut in range(1, len(data)):
        try:
            keys = [r.key for r in parse_samples(data[:cut], "here")]
        except ValueError as error:
            assert "here: byte" in str(error)
        else:
            assert cut % 512 == 0 and keys == whole[: len(keys)]


def test_locations_are_kept_without_their_secrets(tmp_path, monkeypatch):
    assert absolute("s3://KEY:SECRET@bucket/a?x=y") == "s3://bucket/a?x=y"
    monkeypatch.chdir(tmp_path)
    assert absolute("set") == str(tmp_path / "set")
    with pytest.raises(ValueError, match=r"'nope://b' cannot be opened") as error:
        open_set("nope://KEY:SECRET@b")
    assert "SECRET" not in str(error.value).partition("cannot")[0]


@pytest.mark.ray
def test_ray_reads_our_shards(made, ray_cluster):
    import ray.data

    paths = [made.path(shard) for shard in made.manifest.splits["train"]]
    rows = ray.data.read_webdataset(paths, decoder=None, override_num_blocks=2).take_all()
    expected = {
        row["key"]: row["classes"]
        for shard in made.manifest.splits["train"]
        for row in made.read_index(shard).to_pylist()
    }
    assert {row["__key__"]: [int(row["cls"])] for row in rows} == expected
