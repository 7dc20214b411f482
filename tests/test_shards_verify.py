"""Verify finds every kind of fault and names it; repair makes the shard that was."""

import gzip
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import WNIDS, class_images, contents, jpeg, nested, small_archive, tar_bytes

from shards.__main__ import main
from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.build.repair import repair as repair_files
from shards.check.index import index
from shards.check.verify import verify
from shards.dataset.format import open_set

CONFIG = BuildConfig(resize_short=32, shard_samples=8, val_per_class=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    source = small_archive(folder / "fall11_whole.tar")
    build([source], folder / "set", CONFIG)
    return folder / "set"


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "set")
    return tmp_path / "set"


def faults(folder, **options) -> list[str]:
    return [str(fault) for fault in verify(str(folder), **options).faults]


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as file:
        return [(m.name, file.extractfile(m).read()) for m in file]


def rewrite(path: Path, change) -> None:
    path.write_bytes(tar_bytes(change(members(path)), tarfile.USTAR_FORMAT))


def test_a_whole_set_has_no_faults(made):
    found = verify(str(made))
    assert not found.faults and found.samples == 24 and found.decoded
    assert "no faults in 24 samples of 4 shards; every image decoded" in str(found)
    assert not verify(str(made), quick=True).decoded


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def first(folder):
    shard = open_set(folder).manifest.splits["train"][0]
    return folder / shard.name, open_set(folder).read_index(shard).to_pylist()


def repair(location, result):
    return repair_files(location, {fault.shard for fault in result.faults})


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path, rows: flip(path, rows[2]["offset"] + 300), "SHA-256 of its image"),
        (lambda path, rows: flip(path, rows[2]["start"] + 5), "not a tar header"),
        (lambda path, rows: flip(path, rows[2]["start"] + 512), "label"),
        (lambda path, rows: path.write_bytes(path.read_bytes()[:-3000]), "cut short"),
        (lambda path, rows: path.write_bytes(path.read_bytes()[: rows[3]["start"]]),
         "not in the tar"),
        (lambda path, rows: path.unlink(), "missing"),
        (lambda path, rows: path.write_bytes(b""), "0 bytes"),
        (lambda path, rows: path.with_suffix(".parquet").unlink(), "index cannot be read"),
        (lambda path, rows: path.with_suffix(".parquet").write_bytes(b"no"), "index cannot"),
        (lambda path, rows: rewrite(path, lambda m: m[:4] + m[6:]), "the index has"),
        (lambda path, rows: rewrite(path, lambda m: [*m[2:4], *m[:2], *m[4:]]), "the index has"),
        (lambda path, rows: rewrite(path, lambda m: m[:-1]), "no image, only"),
        (lambda path, rows: rewrite(path, lambda m: [(m[0][0], b"99"), *m[1:]]), "label 99"),
        (lambda path, rows: rewrite(path, lambda m: [m[0], *m]), "in one sample"),
        (lambda path, rows: rewrite(path, lambda m: [m[0], (m[1][0], jpeg(1)[:900]), *m[2:]]),
         "does not decode"),
        (lambda path, rows: rewrite(path, lambda m: [m[0], (m[1][0], jpeg(1)), *m[2:]]),
         "96x64 pixels"),
    ],
)  # fmt: skip
def test_damage_is_named_by_shard_and_repaired(copy, made, damage, says, repaired):
    damage(*first(copy))
    found = verify(str(copy))
    assert any(says in str(fault) for fault in found.faults), str(found)
    assert {fault.shard for fault in found.faults} == {"train-00000.tar"}
    if repaired:
        assert list(repair(str(copy), found)) == ["train-00000.tar"]
        assert contents(copy) == contents(made)


def test_quick_leaves_decoding_out_and_nothing_else(copy):
    path, rows = first(copy)
    flip(path, rows[2]["offset"] + 300)
    assert any(rows[2]["key"] in fault for fault in faults(copy, quick=True))
    assert not any("decode" in fault for fault in faults(copy, quick=True))


def test_shards_that_do_not_belong_and_counts_that_differ_are_faults(copy):
    (copy / "train-00009.tar").write_bytes(tar_bytes([]))
    info = (copy / "_info.json").read_text()
    (copy / "_info.json").write_text(
        info.replace('"train-00000.tar"', '"x.tar"', 1).replace("6", "7")
    )
    found = verify(str(copy))
    assert {fault.shard for fault in found.faults} == {"train-00009.tar", "_info.json"}
    assert list(repair(str(copy), found)) == ["_info.json"]
    (stray,) = verify(str(copy)).faults  # it may be somebody's own
    assert stray.shard == "train-00009.tar" and "move it away" in stray.reason


def test_a_key_that_occurs_in_two_shards_is_a_fault(tmp_path):
    for name in ("train-0.tar", "train-1.tar"):
        (tmp_path / name).write_bytes(tar_bytes([("same.cls", b"0"), ("same.jpg", jpeg(1))]))
    index(str(tmp_path))
    assert faults(tmp_path) == [
        "train-0.tar: same: a key that occurs twice",
        "train-1.tar: same: a key that occurs twice",
    ]


def test_repair_of_a_compressed_source_and_of_kept_bytes(tmp_path):
    classes = {wnid: class_images(wnid, 5) for wnid in WNIDS[:2]}
    source = tmp_path / "winter21_whole.tar.gz"
    source.write_bytes(gzip.compress(nested(classes)))
    build([source], tmp_path / "set", BuildConfig(keep_bytes=True, val_fraction=0))
    before = contents(tmp_path / "set")
    flip(tmp_path / "set" / "train-00000.tar", 4000)
    list(repair(str(tmp_path / "set"), verify(str(tmp_path / "set"))))
    assert contents(tmp_path / "set") == before


def index_of(path: Path) -> Path:
    return path.with_suffix(".parquet")


def emptied(path: Path, column: str) -> None:
    """Write the index anew with a null in a column."""
    table = pq.read_table(path)
    values = [None, *table[column].to_pylist()[1:]]
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, table[column].type)), path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "index cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"sha256", b"sha255")), "lacks"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "index cannot be read"),
        (lambda path: emptied(path, "key"), "lacks values of ['key']"),
        (lambda path: emptied(path, "classes"), "lacks values of ['classes']"),
        (lambda path: pq.write_table(pa.table({"key": [1, 2]}), path), "index cannot be read"),
    ],
)
def test_an_index_that_cannot_be_read_is_a_fault_of_its_shard(copy, damage, says):
    damage(index_of(copy / "train-00000.tar"))
    (found,) = verify(str(copy), quick=True).faults
    assert found.shard == "train-00000.tar" and says in found.reason


def test_a_shard_that_cannot_be_read_is_a_fault_and_the_others_are_checked(copy):
    path, _ = first(copy)
    path.unlink()
    path.mkdir()
    flip(copy / "train-00001.tar", 4000)
    found = {fault.shard: fault.reason for fault in verify(str(copy), quick=True).faults}
    assert "cannot be read" in found["train-00000.tar"] and "train-00001.tar" in found


def test_after_a_wrong_key_the_rest_of_the_tar_is_still_checked_and_no_end_is_missed(copy):
    path, rows = first(copy)
    rewrite(path, lambda m: [*m[2:4], *m[:2], *m[4:]])
    found = faults(copy)
    assert len([text for text in found if "the index has" in text]) == 1
    assert not any("cut short" in text for text in found)
    flip(path, rows[4]["start"] + 5)
    assert any("not a tar header" in text for text in faults(copy))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda m: m["splits"]["val"].append(m["splits"]["train"][0]),
            "'train-00000.tar' is listed twice",
        ),
        (lambda m: m["splits"]["train"][0].update(samples="6"), "must have a name, numbers"),
        (lambda m: m["splits"]["train"][0].update(bytes=-1), "must have a name, numbers"),
        (lambda m: m["splits"]["train"][0].pop("sha256"), "TypeError"),
        (lambda m: m.update(classes=[1, 2]), "must be texts"),
        (lambda m: m["classes"].append(m["classes"][0]), "a class is listed twice"),
        (lambda m: m.update(label="jpg"), "label rule 'jpg' is unknown"),
        (lambda m: m.update(settings=None), "TypeError"),
        (lambda m: m.update(splits=[]), "AttributeError"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_with_what_to_do(copy, change, says):
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = verify(str(copy)).faults
    assert fault.shard == "manifest.json" and says in fault.reason
    (copy / "report.json").unlink()
    with pytest.raises(ValueError, match="restore it from a copy"):
        verify(str(copy))


def test_a_class_number_beyond_the_class_list_is_a_fault(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["classes"].pop()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert any("label 2, but there are 2 classes" in text for text in faults(copy, quick=True))


def test_a_built_set_needs_its_info_and_an_indexed_one_does_not(copy, tmp_path):
    (copy / "_info.json").unlink()
    assert faults(copy, quick=True) == ["_info.json: cannot be read: FileNotFoundError"]
    (tmp_path / "a.tar").write_bytes(tar_bytes([("k.cls", b"0"), ("k.jpg", jpeg(1))]))
    index(str(tmp_path))
    (tmp_path / "_info.json").unlink()
    assert not faults(tmp_path)


def test_a_source_that_changed_cannot_repair(copy, tmp_path):
    source = tmp_path / "changed.tar"
    source.write_bytes(nested({wnid: class_images(wnid, 8, 500) for wnid in WNIDS[:3]}))
    saved = (copy / "report.json").read_text()
    old = json.loads(saved)["locations"][0]
    (copy / "report.json").write_text(saved.replace(old, str(source)))
    table = pq.read_table(copy / "plan" / "train.parquet")
    paths = [str(source)] * table.num_rows
    at = table.schema.get_field_index("path")
    schema = table.schema
    table = table.set_column(at, schema.field("path"), [paths])
    with pq.ParquetWriter(copy / "plan" / "train.parquet", schema) as writer:
        sizes = [s.samples for s in open_set(copy).manifest.splits["train"]]
        for number, size in enumerate(sizes):
            writer.write_table(table.slice(sum(sizes[:number]), size))
    flip(copy / "train-00000.tar", 4000)
    with pytest.raises(ValueError, match="differs from the catalogue|is not now"):
        list(repair(str(copy), verify(str(copy))))


def test_foreign_shards_cannot_be_repaired(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes([("k.cls", b"0"), ("k.jpg", jpeg(1))]))
    index(str(tmp_path))
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="was not made by"):
        list(repair(str(tmp_path), verify(str(tmp_path))))


def test_the_command_exits_with_1_on_faults_and_0_after_repair(copy, capsys):
    assert main(["verify", str(copy), "--workers", "0"]) == 0
    path, rows = first(copy)
    flip(path, rows[1]["offset"] + 200)
    assert main(["verify", str(copy), "--workers", "0", "--quick"]) == 1
    assert f"train-00000.tar: {rows[1]['key']}: " in capsys.readouterr().out
    assert main(["verify", str(copy), "--workers", "0", "--repair"]) == 0
    assert main(["verify", str(copy.parent / "none"), "--workers", "0"]) == 2
