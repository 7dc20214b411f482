"""After `verify --repair` a set is as it was built, byte for byte, or as it was before."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from archives import WNIDS, class_images, contents, jpeg, nested, small_archive
from pyarrow import fs as pafs

from shards.__main__ import main
from shards.build import gzip_reader, transcode
from shards.build import repair as repair_module
from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.build.repair import repair
from shards.check.verify import verify
from shards.dataset import store
from shards.dataset.format import open_set

CONFIG = BuildConfig(resize_short=32, shard_samples=8, val_per_class=2)
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr(store, "sync", lambda path: None)  # for speed


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set with an image of two classes, which has a .json too."""
    folder = tmp_path_factory.mktemp("repair")
    classes = {wnid: class_images(wnid, 8) for wnid in WNIDS[:3]}
    classes[WNIDS[1]].append(("copy.JPEG", classes[WNIDS[0]][0][1]))
    (folder / "a.tar").write_bytes(nested(classes))
    build([folder / "a.tar"], folder / "set", CONFIG)
    return folder / "set"


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "set")
    return tmp_path / "set"


def faulty(folder: Path, **options) -> set[str]:
    return {fault.shard for fault in verify(str(folder), **options).faults}


def repaired(folder: Path) -> list[str]:
    """The files that were put back, as by the command."""
    names = []
    for _ in range(2):
        names += list(repair(str(folder), faulty(folder, quick=True)))
    return names


def files(folder: Path) -> dict[str, bytes]:
    """The set without the lease and the folder of a repair that was killed."""
    found = contents(folder)
    return {
        name: data
        for name, data in found.items()
        if name != "catalogue/lease.json" and not name.startswith("work/repair/")
    }


def flip(path: Path, place: int, mask: int = 0xFF) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= mask
    path.write_bytes(data)


def with_json(folder: Path) -> tuple[Path, dict]:
    """The shard of the image of two classes, and its row of the index."""
    given = open_set(folder)
    for shard in given.manifest.shards:
        for row in given.read_index(shard).to_pylist():
            if len(row["classes"]) > 1:
                return folder / shard.name, row
    raise AssertionError


PLACES = {
    "header of the label": lambda row: row["start"] + 3,
    "checksum of a header": lambda row: row["start"] + 150,
    "label": lambda row: row["start"] + 512,
    "padding of the label": lambda row: row["start"] + 600,
    "header of the image": lambda row: row["offset"] - 512,
    "image": lambda row: row["offset"] + row["size"] // 2,
    "end of the image": lambda row: row["offset"] + row["size"] - 1,
    "padding of the image": lambda row: row["offset"] + row["size"],
    "header of the classes": lambda row: row["stop"] - 1024,
    "classes": lambda row: row["stop"] - 512 + 13,
    "padding of the classes": lambda row: row["stop"] - 1,
    "end of the tar": lambda row: -1,
    "end of the tar, first block": lambda row: -1024,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_byte_of_a_shard_is_found_and_put_back(copy, made, place):
    path, row = with_json(copy)
    flip(path, PLACES[place](row), 1)
    assert faulty(copy, quick=True) == {path.name}
    assert repaired(copy) == [path.name]
    assert contents(copy) == contents(made)


def test_a_flipped_byte_of_an_index_is_found_or_changes_nothing_that_is_read(copy, made):
    """The pages have checksums; what describes them is mostly statistics, and a version."""
    path = (copy / "train-00000.tar").with_suffix(".parquet")
    whole, draw, found = path.read_bytes(), random.Random(0), 0
    table = pq.read_table(path)
    pages = range(len(whole) // 2)
    for place in [*draw.sample(pages, 30), *draw.sample(range(len(whole)), 50)]:
        flip(path, place, 1 << draw.randrange(8))
        if faulty(copy, quick=True):
            assert repaired(copy) == ["train-00000.tar"]
            assert contents(copy) == contents(made)
            found += 1
        else:
            assert open_set(copy).read_index(open_set(copy).manifest.shards[0]).equals(table)
            path.write_bytes(whole)
    assert found > 40


TEXTS = ("manifest.json", "_info.json", "classes.txt")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("how", ["flipped", "missing", "cut", "empty", "noise"])
def test_a_damaged_text_is_found_and_put_back(copy, made, name, how):
    path, draw = copy / name, random.Random(name)
    if how == "flipped":
        for place in draw.sample(range(path.stat().st_size), 10):
            flip(path, place, 1)
            assert repaired(copy)[-1] == name
            assert contents(copy) == contents(made)
        return
    data = {"cut": path.read_bytes()[:-9], "empty": b"", "noise": b"\xff\0[1]"}.get(how)
    path.write_bytes(data) if data is not None else path.unlink()
    assert name in faulty(copy, quick=True)
    assert repaired(copy) == [name]
    assert contents(copy) == contents(made)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["classes"].reverse(),
        lambda m: m["splits"]["train"].pop(),
        lambda m: m["splits"]["train"].reverse(),
        lambda m: m["splits"].pop("val"),
        lambda m: m["splits"]["train"][0].update(samples=3),
        lambda m: m["splits"]["train"][0].update(sha256="0" * 64),
        lambda m: m["settings"].update(quality=10),
        lambda m: m.update(label="json:classes"),
        lambda m: m.update(source=[]),
    ],
)
def test_a_manifest_that_is_wrong_is_found_and_put_back(copy, made, change):
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    assert "manifest.json" in faulty(copy, quick=True)
    assert "manifest.json" in repaired(copy)
    assert contents(copy) == contents(made)


def test_everything_at_once_is_put_back(copy, made):
    for path in copy.glob("*.tar"):
        flip(path, 700)
    (copy / "train-00000.parquet").unlink()
    (copy / "train-00001.parquet").write_bytes(b"no")
    for name in TEXTS:
        (copy / name).unlink()
    assert main(["verify", str(copy), "--workers", "0", "--repair"]) == 0
    assert contents(copy) == contents(made)


@pytest.mark.parametrize("where", ["report.json", "plan/tally.json", "plan/train.parquet"])
def test_without_its_notes_a_set_is_left_as_it_is(copy, where):
    flip(copy / "train-00000.tar", 700)
    if where == "plan/tally.json":
        (copy / "manifest.json").unlink()
    (copy / where).write_bytes(b"no")
    before = files(copy)
    with pytest.raises((ValueError, OSError)):
        repaired(copy)
    assert files(copy) == before


@pytest.mark.parametrize("place", range(8))
def test_a_flipped_byte_in_the_plan_changes_no_shard(copy, made, place):
    """It is found, or it is where nothing is read."""
    path = copy / "plan" / "train.parquet"
    whole = path.read_bytes()
    flip(path, 4 + place * (len(whole) - 8) // 8, 1)
    flip(copy / "train-00000.tar", 700)
    before = files(copy)
    try:
        repaired(copy)
    except (ValueError, OSError):
        assert files(copy) == before
    path.write_bytes(whole)
    repaired(copy)
    assert contents(copy) == contents(made)


def test_with_another_encoder_the_set_is_left_as_it_is(copy, made, monkeypatch):
    encoded = transcode._encoded
    flip(copy / "train-00000.tar", 700)
    (copy / "_info.json").unlink()
    before = files(copy)
    with monkeypatch.context() as patch:
        patch.setattr(transcode, "_encoded", lambda pixels, quality: encoded(pixels, quality - 1))
        with pytest.raises(ValueError, match="image libraries"):
            repaired(copy)
    assert files(copy) == before
    repaired(copy)
    assert contents(copy) == contents(made)


def test_without_its_sources_a_set_is_left_as_it_is(tmp_path):
    source = small_archive(tmp_path / "a.tar")
    build([source], tmp_path / "set", CONFIG)
    whole = contents(tmp_path / "set")
    flip(tmp_path / "set" / "train-00000.tar", 700)
    before = files(tmp_path / "set")
    source.rename(tmp_path / "elsewhere.tar")
    with pytest.raises(FileNotFoundError, match=f"no source at {source}"):
        repaired(tmp_path / "set")
    assert files(tmp_path / "set") == before
    (tmp_path / "elsewhere.tar").rename(source)
    repaired(tmp_path / "set")
    assert contents(tmp_path / "set") == whole


class Moves(pafs.LocalFileSystem):
    """The local disk, on which `stop` is called before a move."""

    def __init__(self, at: int, stop) -> None:
        super().__init__()
        self.left, self.stop = at, stop

    def move(self, source: str, target: str) -> None:
        """Move a file, unless it is the last move of this process."""
        self.left -= 1
        if self.left < 0:
            self.stop()
        super().move(source, target)


def with_moves(at: int, stop):
    return lambda location: (Moves(at, stop), str(location))


def damage_all(folder: Path) -> None:
    """Two shards, an index, and all texts that follow from the manifest."""
    flip(folder / "train-00000.tar", 700)
    flip(folder / "train-00001.tar", 700)
    (folder / "train-00001.parquet").unlink()
    (folder / "_info.json").unlink()
    (folder / "classes.txt").write_bytes(b"no")


def check_each(folder: Path, before: dict, whole: dict) -> None:
    """Every file is as before or whole, and another repair finishes it."""
    for name, data in files(folder).items():
        if not name.endswith(store.TEMPORARY):  # of the process that was killed
            assert data in (before.get(name), whole[name])
    repaired(folder)
    assert files(folder) == whole


@pytest.mark.parametrize("at", range(12))
def test_a_move_that_fails_leaves_each_file_whole_or_as_it_was(copy, made, at, monkeypatch):
    damage_all(copy)
    before, whole = files(copy), files(made)

    def fail():
        raise OSError(5, "the storage went away")

    names = faulty(copy, quick=True)
    with monkeypatch.context() as patch:
        patch.setattr(repair_module.store, "locate", with_moves(at, fail))
        try:
            list(repair(str(copy), names))
        except OSError:
            assert files(copy).keys() <= whole.keys()
        else:
            assert at > 8 and files(copy) == whole
    check_each(copy, before, whole)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_shards_repair as tests
from shards.build import repair
at = int(sys.argv[2])
if at >= 0:
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    repair.store.locate = tests.with_moves(at, kill)
sys.stdout.write("ready\\n")
sys.stdout.flush()
list(repair.repair(sys.argv[1], sys.argv[3].split(",")))
"""


def repairing(folder: Path, at: int) -> subprocess.Popen:
    """A repair that kills itself at a move, if `at` is one, once it has imported everything."""
    script = KILLED.format(tests=str(Path(__file__).parent))
    names = ",".join(faulty(folder, quick=True))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(at), names],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("at", [0, 1, 3, 5, 6, 8])
def test_a_repair_killed_at_a_move_leaves_each_file_whole_or_as_it_was(copy, made, at):
    damage_all(copy)
    before, whole = files(copy), files(made)
    assert repairing(copy, at).wait(60) == -signal.SIGKILL
    check_each(copy, before, whole)
    assert not (copy / "work").exists()


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1])
def test_a_repair_killed_at_any_moment_leaves_each_file_whole_or_as_it_was(copy, made, delay_s):
    damage_all(copy)
    before, whole = files(copy), files(made)
    process = repairing(copy, -1)
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    check_each(copy, before, whole)


def zipped(data: bytes) -> bytes:
    """A gzip file of many deflate blocks, as each point needs the border of two."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31, 1)
    return packer.compress(data) + packer.flush()


def test_repair_from_gzip_inflates_only_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(gzip_reader, "SPACING", 1 << 14)
    monkeypatch.setattr(store, "LOCAL_BLOCK", 1 << 13)
    content = nested(
        {
            wnid: [(f"{wnid}_{n}.JPEG", jpeg(100 * number + n, 200, 150)) for n in range(20)]
            for number, wnid in enumerate(WNIDS[:3])
        }
    )
    (tmp_path / "a.tar.gz").write_bytes(zipped(content))
    config = BuildConfig(resize_short=32, shard_samples=3, val_fraction=0)
    build([tmp_path / "a.tar.gz"], tmp_path / "set", config)
    whole = contents(tmp_path / "set")
    flip(tmp_path / "set" / "train-00004.tar", 700)
    call, inflated = gzip_reader._Inflater.__call__, []

    def counted(*args):
        result = call(*args)
        inflated.append(len(result[0]))
        return result

    monkeypatch.setattr(gzip_reader._Inflater, "__call__", counted)
    assert repaired(tmp_path / "set") == ["train-00004.tar"]
    assert contents(tmp_path / "set") == whole
    assert sum(inflated) < len(content) / 2


def test_a_set_from_shards_is_put_back(made, tmp_path):
    shutil.copytree(made, tmp_path / "old")
    config = BuildConfig(resize_short=24, shard_samples=5)
    build([tmp_path / "old"], tmp_path / "set", config)
    whole = contents(tmp_path / "set")
    flip(tmp_path / "set" / "train-00001.tar", 700)
    (tmp_path / "set" / "manifest.json").unlink()
    assert set(repaired(tmp_path / "set")) == {"train-00001.tar", "manifest.json"}
    assert contents(tmp_path / "set") == whole
    (tmp_path / "old" / "manifest.json").unlink()
    flip(tmp_path / "set" / "train-00001.tar", 700)
    before = files(tmp_path / "set")
    with pytest.raises(ValueError, match="python -m shards index"):
        repaired(tmp_path / "set")
    assert files(tmp_path / "set") == before


def test_a_kept_spool_stays(tmp_path):
    source = small_archive(tmp_path / "a.tar")
    build([source], tmp_path / "set", BuildConfig(resize_short=32, keep_work=True))
    whole = contents(tmp_path / "set")
    assert any(name.startswith("work/spool") for name in whole)
    flip(tmp_path / "set" / "train-00000.tar", 700)
    repaired(tmp_path / "set")
    assert contents(tmp_path / "set") == whole


def test_a_set_with_a_class_list_is_put_back_without_the_file(tmp_path):
    source = small_archive(tmp_path / "a.tar")
    (tmp_path / "list.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(WNIDS)))
    config = BuildConfig(resize_short=32, classes=str(tmp_path / "list.txt"))
    build([source], tmp_path / "set", config)
    whole = contents(tmp_path / "set")
    (tmp_path / "list.txt").unlink()
    flip(tmp_path / "set" / "train-00000.tar", 700)
    (tmp_path / "set" / "manifest.json").unlink()
    repaired(tmp_path / "set")
    assert contents(tmp_path / "set") == whole
