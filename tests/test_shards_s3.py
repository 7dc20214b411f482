"""Builds from and to an object store: the same bytes, few requests, little read again."""

import gzip
import random
import re
from collections import Counter

import pytest
import s3_server
from archives import contents, jpeg, nested

from shards.build import gzip_reader, source, unit
from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.build.repair import repair
from shards.dataset import store
from support import lease

CLASSES, OF_CLASS, SHARDS = 12, 8, 4
CONFIG = BuildConfig(resize_short=32, shard_samples=CLASSES * OF_CLASS // SHARDS, val_fraction=0)
SET = re.compile(r"train-\d{5}\.(tar|parquet)|manifest\.json|_info\.json|classes\.txt")

SHARD = "train-N.tar"
PHASES = ("catalogue/part-N.parquet", "work/spool/N.bin", "plan/train.parquet", SHARD)


@pytest.fixture(params=["a.tar", "a.tar.gz"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def archives():
    """A tar of class tars by its name, plain and compressed; its images hardly compress."""
    chance = random.Random(0)
    classes = {
        f"n{label:08d}": [
            (f"n{label:08d}_{n}.JPEG", jpeg(100 * label + n) + chance.randbytes(40_000))
            for n in range(OF_CLASS)
        ]
        for label in range(CLASSES)
    }
    data = nested(classes)
    return {"a.tar": data, "a.tar.gz": gzip.compress(data, 1, mtime=0)}


@pytest.fixture
def objects(archives, monkeypatch):
    """An object store with both archives, whose sizes of blocks and units are small as well."""
    for module, name, value in (
        (unit, "SMALLEST", 300_000),  # one unit for each class
        (store, "LOCAL_BLOCK", 1 << 15),
        (store, "REMOTE_BLOCK", 1 << 17),
        (store, "PAUSES_S", (0.01,) * 5),
        (gzip_reader, "SPACING", 1 << 16),
        (gzip_reader, "_OUT", 1 << 15),
        (source, "SAMPLE_BYTES", 1 << 10),
        (lease, "SETTLE_S", 0.01),
    ):
        monkeypatch.setattr(module, name, value)
    objects = s3_server.Objects()
    with s3_server.serving("bkt", objects) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        objects.objects |= {f"bkt/{name}": data for name, data in archives.items()}
        yield objects


@pytest.fixture
def expected(objects, archives, name, tmp_path):
    """The set as a build from a local archive makes it."""
    (tmp_path / name).write_bytes(archives[name])
    build([tmp_path / name], tmp_path / "expected", CONFIG)
    return of_set(contents(tmp_path / "expected"))


def of_set(files):
    """The files of a set that do not say where it was built and from what."""
    return {name: data for name, data in files.items() if SET.fullmatch(name)}


def stored(objects):
    """Those of the set in the store."""
    place = "bkt/set/"
    return of_set({p.removeprefix(place): d for p, d in objects.objects.items() if place in p})


def read_of(objects, name):
    """Bytes that were read of an archive."""
    return sum(size for path, size in objects.reads if path == f"bkt/{name}")


def test_shards_in_an_object_store_have_the_bytes_of_local_ones(objects, expected, name):
    build([f"s3://bkt/{name}"], "s3://bkt/set", CONFIG)
    assert stored(objects) == expected and len(expected) == 2 * SHARDS + 3


def test_a_build_makes_few_requests_for_each_unit_and_shard(objects, archives, name):
    build([f"s3://bkt/{name}"], "s3://bkt/set", CONFIG)
    of_archive = Counter(method for method, place in objects.requests if place == f"bkt/{name}")
    blocks = len(archives[name]) / store.REMOTE_BLOCK
    passes = 2 if name == "a.tar.gz" else 1
    # for each unit: its header if the archive is not compressed, and blocks that are still small
    assert of_archive["GET"] <= passes * blocks + 6 * CLASSES + source.SAMPLES + 10
    assert of_archive["HEAD"] <= CLASSES + 6
    others = len(objects.requests) - of_archive.total()
    assert others <= 26 * CLASSES + 18 * SHARDS + 2 * CLASSES * SHARDS + 150


def test_every_phase_may_be_refused_once_and_no_task_starts_again(objects, expected, name):
    left = {(method, place) for method in ("GET", "PUT") for place in PHASES} - {("GET", SHARD)}
    left.add(("GET", f"bkt/{name}"))  # of its first four bytes, fewer than the refusal has
    calls = Counter()

    def is_busy(method, place):
        request = method, re.sub(r"\d{5}", "N", place.removeprefix("bkt/set/"))
        is_first = request in left
        left.discard(request)
        return is_first

    def counted(function, items, careful=None):
        for item in items:
            calls[function.func.__name__] += 1
            yield function(item)

    objects.is_busy = is_busy
    build([f"s3://bkt/{name}"], "s3://bkt/set", CONFIG, run=counted)
    assert not left, "every one of these requests was made"
    assert calls == {"catalogue_unit": CLASSES, "write_shards": SHARDS}
    assert stored(objects) == expected


def test_a_read_waits_for_a_store_that_is_busy_for_longer(objects, expected, tmp_path, name):
    gets = Counter()

    def is_busy(method, place):
        gets[method] += method == "GET" and place == f"bkt/{name}"
        return method == "GET" and 60 < gets["GET"] <= 72

    objects.is_busy = is_busy
    build([f"s3://bkt/{name}"], tmp_path / "out", CONFIG)
    assert gets["GET"] > 72
    assert of_set(contents(tmp_path / "out")) == expected


def test_a_restart_does_not_read_an_archive_from_its_beginning(objects, archives, expected, name):
    def killed(function, items, careful=None):
        for number, item in enumerate(items):
            if number == CLASSES - 2:
                raise KeyboardInterrupt
            yield function(item)

    with pytest.raises(KeyboardInterrupt):
        build([f"s3://bkt/{name}"], "s3://bkt/set", CONFIG, run=killed)
    objects.reads.clear()
    build([f"s3://bkt/{name}"], "s3://bkt/set", CONFIG)
    # two units of twelve, and twice if it is compressed
    assert read_of(objects, name) < 0.4 * len(archives[name])
    assert stored(objects) == expected


def test_repair_reads_only_the_images_of_a_shard_and_what_is_right_before_them(
    objects, archives, tmp_path, name
):
    out = tmp_path / "out"
    build([f"s3://bkt/{name}"], out, BuildConfig(resize_short=32, shard_samples=2, val_fraction=0))
    whole = contents(out)
    (out / "train-00003.tar").write_bytes(b"damaged")
    objects.reads.clear()
    assert list(repair(str(out), ["train-00003.tar"])) == ["train-00003.tar"]
    assert contents(out) == whole
    assert read_of(objects, name) < 0.2 * len(archives[name])
