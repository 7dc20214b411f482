"""Killed at any time and started again, a build ends with the bytes of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archives import contents, small_archive

from shards.build import unit
from shards.build.config import BuildConfig
from shards.build.pack import build

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
    return contents(out), time.monotonic() - start


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
    assert contents(out) == files
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
    assert contents(tmp_path / "out") == files


@pytest.mark.ray
def test_ray_tasks_give_the_bytes_of_one_process(source, undisturbed, tmp_path, ray_cluster):
    from shards.build.ray_map import ray_map

    build([source], tmp_path / "out", CONFIG, run=ray_map)
    # Workers import the module anew, but units are cut by the driver.
    assert contents(tmp_path / "out") == undisturbed[0]


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
    assert contents(tmp_path / "out") == undisturbed[0]


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
    assert contents(tmp_path / "out") == undisturbed[0]
