"""Killed at any time and started again, a build ends with the bytes of an undisturbed one."""

import dataclasses
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from archives import WNIDS, class_images, contents, jpeg, nested, small_archive, tar_bytes
from pyarrow import fs as pafs

from shards.build import catalogue, transcode, unit
from shards.build.config import BuildConfig, TranscodeConfig
from shards.build.pack import build
from shards.build.transcode import Transcoded, Unusable
from shards.dataset import store
from shards.dataset.format import open_set
from support import lease
from support.files import AlreadyLocked

CONFIG = BuildConfig(resize_short=48, shard_samples=12, val_per_class=3)
ROOT = Path(__file__).parent.parent

DRIVER = """
import sys
from shards.build import unit
from shards.build.config import BuildConfig
from shards.build.pack import build, serial
unit.SMALLEST = 40_000
run = serial
if sys.argv[3] == "ray":
    import ray
    from shards.build.ray_map import ray_map as run
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
             object_store_memory=100_000_000)
sys.stdout.write("ready\\n")
sys.stdout.flush()
build([sys.argv[1]], sys.argv[2], BuildConfig(resize_short=48, shard_samples=12, val_per_class=3),
      run=run)
sys.stdout.write("done\\n")
"""


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(unit, "SMALLEST", 40_000)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_archive(tmp_path_factory.mktemp("kill") / "fall11_whole.tar", 5, 60)


@pytest.fixture(scope="module")
def undisturbed(source):
    """The files of a build that nothing disturbed, and the seconds it takes."""
    out = source.parent / "undisturbed"
    process, start = driver(source, out, "serial"), time.monotonic()
    assert process.stdout.readline() == "done\n" and process.wait(60) == 0
    return made(out), time.monotonic() - start


def made(out: Path) -> dict[str, bytes]:
    """The files of a build but for its lease, which a build may be killed while giving back."""
    return {name: data for name, data in contents(out).items() if "lease" not in name}


def driver(source: Path, out: Path, run: str) -> subprocess.Popen:
    """A build in a process group of its own, once it has imported everything."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(source), str(out), run],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("moment", range(10))
def test_a_build_killed_at_a_random_moment_is_finished_by_a_restart(
    source, undisturbed, tmp_path, moment
):
    files, seconds = undisturbed
    out = tmp_path / "out"
    chance = random.Random(moment)
    process = driver(source, out, "serial")
    time.sleep((moment + chance.random()) / 10 * seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path for path in out.rglob("part-*.parquet")}
    before = {path: path.stat().st_mtime_ns for path in done}
    build([source], out, CONFIG)
    assert made(out) == files
    if not (out / "work").exists():
        kept = [path for path in done if path.stat().st_mtime_ns == before[path]]
        assert len(kept) == len(done), "what was finished is not made twice"


def test_a_build_killed_again_and_again_ends_the_same(source, undisturbed, tmp_path):
    files, seconds = undisturbed
    for attempt in range(4):
        process = driver(source, tmp_path / "out", "serial")
        time.sleep(seconds * (0.2 + 0.1 * attempt))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    build([source], tmp_path / "out", CONFIG)
    assert made(tmp_path / "out") == files


@pytest.mark.ray
def test_ray_tasks_give_the_bytes_of_one_process(source, undisturbed, tmp_path, ray_cluster):
    from shards.build.ray_map import ray_map

    build([source], tmp_path / "out", CONFIG, run=ray_map)
    # Workers import the module anew, but units are cut by the driver.
    assert made(tmp_path / "out") == undisturbed[0]


@pytest.mark.ray
def test_a_killed_worker_loses_nothing(source, undisturbed, tmp_path, ray_cluster):
    from shards.build.ray_map import ray_map

    def dying(function, items, careful=None):
        marker = tmp_path / getattr(function, "func", function).__name__

        def dies_once(item):
            """Kill the worker in the middle of its first task."""
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(item)

        return ray_map(dies_once, items, careful)

    build([source], tmp_path / "out", CONFIG, run=dying)
    assert (tmp_path / "catalogue_unit").exists() and (tmp_path / "write_shards").exists()
    assert made(tmp_path / "out") == undisturbed[0]


@pytest.mark.ray
def test_a_task_that_fails_for_good_stops_the_build(ray_cluster):
    from shards.build.ray_map import ray_map

    def fails(item):
        raise OSError(f"no such {item}")

    with pytest.raises(OSError, match="no such"):
        list(ray_map(fails, range(5)))


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_of_ray_is_finished_by_a_restart(source, undisturbed, tmp_path):
    process = driver(source, tmp_path / "out", "ray")
    while not list((tmp_path / "out").glob("catalogue/part-0000[0-9].parquet")):
        time.sleep(0.02)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    build([source], tmp_path / "out", CONFIG)
    assert made(tmp_path / "out") == undisturbed[0]


BUSY = """
import sys, time
from support import lease
lease.RENEW_S = 0.2
from shards.build import unit
from shards.build.config import BuildConfig
from shards.build.pack import build
unit.SMALLEST = 40_000

def slow(function, items, careful=None):
    for item in items:
        yield function(item)
        sys.stdout.write("task\\n")
        sys.stdout.flush()
        sys.stdin.readline()  # waits

build([sys.argv[1]], sys.argv[2], BuildConfig(resize_short=48, shard_samples=12, val_per_class=3),
      run=slow)
"""


def test_a_second_build_into_the_same_folder_is_refused_and_disturbs_nothing(
    source, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    out = tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(source), str(out)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "task\n"
    before = made(out)
    with pytest.raises(AlreadyLocked, match=f"process {first.pid} "):
        build([source], out, CONFIG)
    with pytest.raises(AlreadyLocked):  # with other settings too
        build([source], out, dataclasses.replace(CONFIG, seed=1))
    assert made(out) == before
    first.communicate("\n" * 999, timeout=60)
    assert first.returncode == 0
    assert made(out) == undisturbed[0]
    assert (out / "catalogue/lease.json").read_bytes() == b"{}"  # given back


class Killed(BaseException):
    """In place of a signal."""


def killed_build(source: Path, out: Path, function: str, after: int) -> None:
    """A build that ends when so many tasks of one stage are done."""

    def run(task, items, careful=None):
        name = getattr(task, "func", task).__name__
        for number, item in enumerate(items):
            if name == function and number == after:
                raise Killed
            yield task(item)

    with pytest.raises(Killed):
        build([source], out, CONFIG, run=run)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("lose", [cut, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("stage", ["catalogue_unit", "write_shards"])
def test_a_spool_that_a_power_loss_took_is_made_again(source, undisturbed, tmp_path, lose, stage):
    killed_build(source, tmp_path / "out", stage, 3)
    lose(tmp_path / "out" / "work" / "spool" / "00001.bin")
    build([source], tmp_path / "out", CONFIG)
    assert made(tmp_path / "out") == undisturbed[0]


@pytest.mark.parametrize("what", ["train-00001.tar", "train-00001.parquet", "plan/tally.json"])
def test_a_file_that_a_power_loss_took_is_made_again(source, undisturbed, tmp_path, what):
    killed_build(source, tmp_path / "out", "write_shards", 4)
    (tmp_path / "out" / what).unlink()
    build([source], tmp_path / "out", CONFIG)
    assert made(tmp_path / "out") == undisturbed[0]


@pytest.mark.parametrize("at", range(4))
def test_killed_while_it_cleans_up_the_next_run_does(
    source, undisturbed, tmp_path, at, monkeypatch
):
    """Of an earlier build in the folder there are shards, parts and a plan, too."""
    out, calls = tmp_path / "out", []
    build([source], out, dataclasses.replace(CONFIG, shard_samples=5, keep_work=True))
    (out / "manifest.json").unlink()
    (out / "report.json").unlink()
    delete = store.discard

    class Dying(pafs.LocalFileSystem):
        def delete_dir(self, path: str) -> None:
            """Killed in the middle of it."""
            next((out / "work" / "spool").iterdir()).unlink()
            raise Killed

    def discard(system, path):
        calls.append(path)
        if (
            path.endswith("train-00030.tar")
            and at == 0
            or path.endswith("00031.parquet")
            and at == 1
        ):
            raise Killed
        delete(system, path)

    with monkeypatch.context() as patch:
        patch.setattr(store, "discard", discard)
        if at >= 2:
            patch.setattr(store, "locate", lambda place: (Dying(), str(place)))
        with pytest.raises(Killed):
            build([source], out, CONFIG)
    assert (out / "work").exists()
    if at != 3:
        build([source], out, CONFIG)
    else:
        build([source], out, dataclasses.replace(CONFIG, keep_work=True))
        assert (out / "work").exists()
        build([source], out, CONFIG)
    assert made(out) == undisturbed[0]


def test_a_touched_archive_and_another_library_leave_a_finished_build_finished(
    source, undisturbed, tmp_path, monkeypatch
):
    copy = shutil.copy(source, tmp_path / source.name)
    build([copy], tmp_path / "out", CONFIG)
    before = contents(tmp_path / "out")
    os.utime(copy, (1, 1))
    monkeypatch.setattr(catalogue, "codecs", lambda: {"Pillow": "99"})
    encode = transcode._encoded
    monkeypatch.setattr(transcode, "_encoded", lambda pixels, quality: encode(pixels, 10))
    build([copy], tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == before


def test_a_build_that_goes_on_with_another_library_records_both(source, tmp_path, monkeypatch):
    killed_build(source, tmp_path / "out", "catalogue_unit", 3)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("part-*.parquet")}
    monkeypatch.setattr(catalogue, "codecs", lambda: {"Pillow": "99"})
    report = build([source], tmp_path / "out", CONFIG)
    assert {p: p.stat().st_mtime_ns for p in before} == before and len(before) == 3
    found = open_set(tmp_path / "out").manifest.settings["codecs"]
    assert len(found) == 2 and {"Pillow": "99"} in found
    assert any("2 versions of the libraries" in warning for warning in report.warnings)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_source_by_another_path_is_the_same_source(
    source, undisturbed, tmp_path, monkeypatch, compress
):
    """Even on the way: the units that were found do not hold where the archive was."""
    (tmp_path / "in").mkdir()
    first = tmp_path / "in" / source.name
    first.write_bytes(compress(source.read_bytes()))
    build([first], tmp_path / "at-once", CONFIG)
    monkeypatch.chdir(tmp_path / "in")
    killed_build(f"../in/./{source.name}", tmp_path / "out", "catalogue_unit", 3)
    killed_build(f"file://{first}", tmp_path / "out", "write_shards", 2)
    (tmp_path / "moved").mkdir()
    moved = first.rename(tmp_path / "moved" / source.name)
    killed_build(moved, tmp_path / "out", "write_shards", 4)
    for path in (tmp_path / "out" / "work" / "spool").iterdir():
        path.unlink()  # so that the images are read again
    build([moved], tmp_path / "out", CONFIG)
    shutil.copy(moved, first)
    before = contents(tmp_path / "out")
    build([first], tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == before
    one, other = (contents(tmp_path / name) for name in ("out", "at-once"))
    del one["report.json"], other["report.json"]  # where the archive was
    assert one == other


def test_settings_that_do_not_fit_are_refused_before_the_archive_is_read(tmp_path, monkeypatch):
    name = f"imagenet21k_resized/imagenet21k_train/{WNIDS[0]}/{{}}.JPEG"
    noise = random.Random(0).randbytes(40_000_000)
    small = [(name.format(number), jpeg(number)) for number in range(9)]
    data = tar_bytes([*small, (name.format("large"), noise)])
    path = tmp_path / "imagenet21k_resized.tar.gz"
    path.write_bytes(gzip.compress(data, 1))
    read, sizes = store.read_range, []

    def counted(file, path, offset, size):
        sizes.append(size)
        return read(file, path, offset, size)

    monkeypatch.setattr(store, "read_range", counted)
    with pytest.raises(ValueError, match="have their own val split"):
        build([path], tmp_path / "out", BuildConfig(val_per_class=50))
    assert 0 < sum(sizes) < 10_000_000
    assert not (tmp_path / "out").exists()


CRASHING = jpeg(7, 50, 50)


def crashing(data: bytes, config: TranscodeConfig, hashed: bool) -> Transcoded:
    """The decoder, which one image kills."""
    if data == CRASHING:
        os.kill(os.getpid(), signal.SIGSEGV)
    return transcode.transcode(data, config, hashed)


def test_an_image_that_kills_its_decoder_is_unusable_and_the_others_are_fine(monkeypatch):
    monkeypatch.setattr(catalogue, "transcode", crashing)
    with catalogue.IsolatedDecoder() as decode:
        for data in (jpeg(1), CRASHING, jpeg(2), CRASHING, b"broken", jpeg(3)):
            if data == CRASHING:
                with pytest.raises(Unusable, match="killed the process"):
                    decode(data, CONFIG.transcode, False)
            elif data == b"broken":
                with pytest.raises(Unusable, match="no image in a known format"):
                    decode(data, CONFIG.transcode, False)
            else:
                made = transcode.transcode(data, CONFIG.transcode, False)
                assert decode(data, CONFIG.transcode, False) == made


def test_an_image_that_crashes_is_quarantined_by_name(tmp_path, monkeypatch):
    """As on a cluster, where the careful function follows on workers that were killed."""
    images = [*class_images(WNIDS[0], 3), ("crash.JPEG", CRASHING)]
    (tmp_path / "a.tar").write_bytes(nested({WNIDS[0]: images}))
    monkeypatch.setattr(catalogue, "transcode", crashing)

    def run(function, items, careful=None):
        return map(careful or function, items)

    report = build([tmp_path / "a.tar"], tmp_path / "out", BuildConfig(val_fraction=0), run=run)
    assert report.images == {"train": 3}
    (row,) = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert row["member"] == "crash.JPEG" and "killed the process" in row["problem"]
