"""What a build makes of its settings: order, splits, classes, duplicates; and how it fails."""

import dataclasses
import itertools
import json
import multiprocessing
import random
import re
import resource
import shutil
import signal
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from archives import (
    WNIDS,
    class_images,
    contents,
    failing_storage,
    jpeg,
    nested,
    small_archive,
    tar_bytes,
)

from shards.build import assign, bucket, unit
from shards.build.pack import BuildConfig, build
from shards.check.verify import verify
from shards.dataset import store
from shards.dataset.format import open_set
from support.lease import LeaseLost

SMALL = BuildConfig(resize_short=32, shard_samples=10, val_per_class=2)


def rows(folder, split):
    given = open_set(folder)
    return [
        row
        for shard in given.manifest.splits.get(split, ())
        for row in given.read_index(shard).to_pylist()
    ]


@pytest.fixture
def source(tmp_path):
    return small_archive(tmp_path / "fall11_whole.tar", classes=4, images=12)


@pytest.fixture
def small_units(monkeypatch):
    """Parts of a few images, so that a small archive makes many tasks."""
    monkeypatch.setattr(unit, "SMALLEST", 30_000)


def shuffled(function, items, careful=None):
    """Tasks in any order, results as they come."""
    items = list(items)
    random.Random(7).shuffle(items)
    return map(function, items)


def test_shards_are_equal_to_within_one_and_every_image_is_in_one(source, tmp_path):
    report = build([source], tmp_path / "out", SMALL)
    given = open_set(tmp_path / "out")
    sizes = [shard.samples for shard in given.manifest.splits["train"]]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == 40 and len(sizes) == 4
    keys = [row["key"] for split in ("train", "val") for row in rows(tmp_path / "out", split)]
    assert len(set(keys)) == len(keys) == 48
    assert report.images == {"train": 40, "val": 8}


def test_samples_are_shuffled_over_all_shards(tmp_path):
    source = small_archive(tmp_path / "a.tar", classes=5, images=60)
    build([source], tmp_path / "out", BuildConfig(resize_short=32, shard_samples=60))
    labels = [row["classes"][0] for row in rows(tmp_path / "out", "train")]
    alike = np.mean([a == b for a, b in itertools.pairwise(labels)])
    assert 0.1 < alike < 0.3  # 0.2 by chance, 1 in the order of the archive


def test_another_seed_is_another_order_of_the_same_split(source, tmp_path):
    build([source], tmp_path / "a", SMALL)
    build([source], tmp_path / "b", BuildConfig(**{**vars(SMALL), "seed": 1}))
    for split in ("train", "val"):
        a, b = ([row["key"] for row in rows(tmp_path / name, split)] for name in "ab")
        assert sorted(a) == sorted(b) and a != b


@pytest.mark.usefixtures("small_units")
def test_parallel_builds_give_identical_bytes(source, tmp_path):
    build([source], tmp_path / "serial", SMALL)
    build([source], tmp_path / "shuffled", SMALL, run=shuffled)
    with multiprocessing.get_context("fork").Pool(3) as pool:

        def run(function, items, careful=None):
            return pool.imap_unordered(function, items)

        build([source], tmp_path / "pool", SMALL, run=run)
    assert len(list((tmp_path / "serial" / "catalogue").iterdir())) > 3
    expected = contents(tmp_path / "serial")
    assert contents(tmp_path / "shuffled") == expected
    assert contents(tmp_path / "pool") == expected


def test_the_cut_into_units_does_not_change_the_shards(source, tmp_path, monkeypatch):
    build([source], tmp_path / "one", SMALL)
    monkeypatch.setattr(unit, "SMALLEST", 30_000)
    monkeypatch.setattr(assign, "BUCKET_ROWS", 5)
    build([source], tmp_path / "many", SMALL)
    for name, data in contents(tmp_path / "one").items():
        if name.endswith(".tar") or name == "manifest.json" or name.startswith("train"):
            assert (tmp_path / "many" / name).read_bytes() == data, name


def test_a_finished_build_is_left_alone_and_says_the_same(source, tmp_path):
    report = build([source], tmp_path / "out", SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    calls = []
    assert build([source], tmp_path / "out", SMALL, progress=calls.append) == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert not calls


def test_another_set_in_the_folder_is_not_overwritten(source, tmp_path):
    build([source], tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="other sources or settings"):
        build([source], tmp_path / "out", BuildConfig(quality=80))
    shutil.rmtree(tmp_path / "out" / "catalogue")
    (tmp_path / "out" / "report.json").unlink()
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds .*, which this command has not made"):
        build([source], tmp_path / "out", SMALL)
    assert contents(tmp_path / "out") == before


def test_the_output_cannot_lie_in_a_source(tmp_path):
    (tmp_path / "shards").mkdir()
    shutil.copy(small_archive(tmp_path / "a.tar"), tmp_path / "shards" / "n00000001.tar")
    for out in ("shards", "shards/out"):
        with pytest.raises(ValueError, match="lies in the source"):
            build([tmp_path / "shards"], tmp_path / out, SMALL)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["n00000001.tar"]


def test_a_finished_set_that_lost_a_file_is_not_called_complete(source, tmp_path):
    build([source], tmp_path / "out", SMALL)
    (tmp_path / "out" / "train-00001.tar").unlink()
    with pytest.raises(ValueError, match=r"train-00001.tar missing .*verify .* --repair"):
        build([source], tmp_path / "out", SMALL)


def test_an_edited_class_list_is_another_one(tmp_path):
    (tmp_path / "wds").mkdir()
    members = [(f"{n}.{e}", d) for n in range(4)
               for e, d in (("cls", str(n).encode()), ("jpg", jpeg(n)))]  # fmt: skip
    (tmp_path / "wds" / "train-0.tar").write_bytes(tar_bytes(members))
    names = tmp_path / "names.txt"
    config = BuildConfig(classes=str(names), val_fraction=0)

    def stopping(function, items, careful=None):
        if "write_shards" in str(function):
            raise KeyboardInterrupt
        return map(function, items)

    names.write_text("\n".join(reversed(WNIDS[:4])))
    with pytest.raises(KeyboardInterrupt):
        build([tmp_path / "wds"], tmp_path / "out", config, run=stopping)
    names.write_text("\n".join(WNIDS[:4]))
    build([tmp_path / "wds"], tmp_path / "out", config)
    found = {row["key"]: row["classes"] for row in rows(tmp_path / "out", "train")}
    assert found == {str(n): [n] for n in range(4)}


def test_a_killed_build_with_other_settings_leaves_no_counts_of_it(source, tmp_path, monkeypatch):
    """Killed between the assignment of another build and its counts, the first goes on."""

    def stopping(function, items, careful=None):
        if "write_shards" in str(function):
            raise KeyboardInterrupt
        return map(function, items)

    with pytest.raises(KeyboardInterrupt):
        build([source], tmp_path / "out", SMALL, run=stopping)
    real = store.write_bytes

    def killed(system, path, data):
        if path.endswith("tally.json"):
            raise KeyboardInterrupt
        real(system, path, data)

    other = dataclasses.replace(SMALL, min_per_class=5, val_per_class=1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            build([source], tmp_path / "out", other)
    build([source], tmp_path / "out", SMALL)
    build([source], tmp_path / "clean", SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_a_build_whose_lease_is_lost_stops_and_publishes_nothing(source, tmp_path):
    def losing(function, items, careful=None):
        lease = tmp_path / "out" / "catalogue" / "lease.json"
        fields = json.loads(lease.read_text())
        lease.write_text(json.dumps({**fields, "owner": {**fields["owner"], "pid": 1}}))
        return map(function, items)

    with pytest.raises(LeaseLost, match="has taken over"):
        build([source], tmp_path / "out", SMALL, run=losing)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_unfinished_build_with_other_settings_leaves_nothing_behind(source, tmp_path):
    def stopping(function, items, careful=None):
        for number, item in enumerate(items):
            if number == 3 and "write_shards" in str(function):
                raise KeyboardInterrupt
            yield function(item)

    with pytest.raises(KeyboardInterrupt):
        build([source], tmp_path / "out", BuildConfig(shard_samples=2), run=stopping)
    assert (tmp_path / "out" / "train-00002.tar").exists()
    build([source], tmp_path / "out", SMALL)
    build([source], tmp_path / "clean", SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_progress_counts_images_and_tasks(source, tmp_path):
    said = []
    build([source], tmp_path / "out", SMALL, progress=said.append)
    assert [(p.stage, p.done, p.total) for p in said if p.done == p.total] == [
        ("catalogue", 1, 1),
        ("plan", 5, 5),
        ("shards", 5, 5),
    ]
    assert said[-1].images == 48


def test_copies_are_merged_with_all_their_classes(tmp_path):
    shared = jpeg(500)
    classes = {
        WNIDS[0]: [*class_images(WNIDS[0], 3), (f"{WNIDS[0]}_9.JPEG", shared)],
        WNIDS[1]: [(f"{WNIDS[1]}_9.JPEG", shared), (f"{WNIDS[1]}_10.JPEG", shared)],
    }
    (tmp_path / "a.tar").write_bytes(nested(classes))
    report = build([tmp_path / "a.tar"], tmp_path / "out", BuildConfig(val_fraction=0))
    found = {row["key"]: row["classes"] for row in rows(tmp_path / "out", "train")}
    assert found[f"{WNIDS[0]}_9"] == [0, 1] and len(found) == 4
    assert (report.duplicates, report.multi_label) == (2, 1)
    table = pq.read_table(tmp_path / "out" / "duplicates.parquet").to_pylist()
    assert [row["member"] for row in table] == [f"{WNIDS[1]}_9.JPEG", f"{WNIDS[1]}_10.JPEG"]
    assert all(f"{WNIDS[0]}_9.JPEG" in row["reason"] for row in table)


def test_identical_images_never_fall_on_both_sides(tmp_path):
    # The same forty images in three classes, so that each class would draw its own val images.
    images = class_images(WNIDS[0], 40)
    classes = {wnid: [(f"{wnid}_{i}.JPEG", d) for i, (_, d) in enumerate(images)]
               for wnid in WNIDS[:3]}  # fmt: skip
    (tmp_path / "a.tar").write_bytes(nested(classes))
    config = BuildConfig(val_fraction=0.3, keep_bytes=True)
    build([tmp_path / "a.tar"], tmp_path / "out", config)
    train, val = ({r["sha256"] for r in rows(tmp_path / "out", s)} for s in ("train", "val"))
    assert not train & val and len(train | val) == 40 and 4 < len(val) < 20


def test_an_image_in_both_splits_of_the_source_stays_in_val(tmp_path):
    image = jpeg(1)
    members = [("train/n00000001/a.jpg", image), ("train/n00000001/b.jpg", jpeg(2))]
    (tmp_path / "a.tar").write_bytes(tar_bytes([*members, ("val/n00000001/c.jpg", image)]))
    report = build([tmp_path / "a.tar"], tmp_path / "out", BuildConfig(keep_bytes=True))
    assert report.images == {"train": 1, "val": 1} and report.crossing == 1


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (2, 2), (50, 3)])
def test_val_per_class_takes_at_most_a_quarter(source, tmp_path, asked, got):
    build([source], tmp_path / "out", BuildConfig(val_per_class=asked))
    labels = [row["classes"][0] for row in rows(tmp_path / "out", "val")]
    assert [labels.count(number) for number in range(4)] == [got] * 4


def test_val_shards_are_as_many_as_asked(source, tmp_path):
    build([source], tmp_path / "out", BuildConfig(val_per_class=3, val_shards=5))
    shards = open_set(tmp_path / "out").manifest.splits["val"]
    assert len(shards) == 5 and {shard.samples for shard in shards} == {2, 3}


def test_classes_with_too_few_images_are_left_out(tmp_path):
    classes = {WNIDS[0]: class_images(WNIDS[0], 9), WNIDS[1]: class_images(WNIDS[1], 3)}
    (tmp_path / "a.tar").write_bytes(nested(classes))
    report = build([tmp_path / "a.tar"], tmp_path / "out", BuildConfig(min_per_class=4))
    assert open_set(tmp_path / "out").manifest.classes == WNIDS[:1]
    assert report.left_out == {"class with fewer images than --min-per-class": 3}


def test_a_class_list_fixes_the_numbers(source, tmp_path):
    (tmp_path / "list.txt").write_text(f"n99999999\n{WNIDS[2]}\n{WNIDS[0]}\n")
    config = BuildConfig(classes=str(tmp_path / "list.txt"), val_fraction=0)
    report = build([source], tmp_path / "out", config)
    found = rows(tmp_path / "out", "train")
    assert {(row["key"][:9], row["classes"][0]) for row in found} == {(WNIDS[2], 1), (WNIDS[0], 2)}
    assert report.left_out == {"class not in the list of --classes": 24}
    built_in = BuildConfig(classes="1k", val_fraction=0)
    build([source], tmp_path / "1k", built_in)
    assert len(open_set(tmp_path / "1k").manifest.classes) == 1000


def test_names_that_tars_would_stumble_over_become_plain_unique_keys(tmp_path):
    names = [
        "a.b.c.jpg",
        "a_b_c.jpg",
        "x" * 150 + ".jpg",
        "ü ö.jpg",
        ".hidden.jpg",
        "0001",
        "a/b.jpg",
    ]
    members = [(name, jpeg(seed)) for seed, name in enumerate(names)]
    (tmp_path / "a.tar").write_bytes(nested({WNIDS[0]: members}))
    build([tmp_path / "a.tar"], tmp_path / "out", BuildConfig(val_fraction=0))
    keys = [row["key"] for row in rows(tmp_path / "out", "train")]
    assert len(set(keys)) == len(names) and max(map(len, keys)) < 95
    assert all(re.fullmatch("[A-Za-z0-9_-]+", key) for key in keys)
    assert not verify(str(tmp_path / "out")).faults


def test_manifest_keeps_settings_and_source_and_no_place_of_this_machine(source, tmp_path):
    build([source], tmp_path / "out", SMALL)
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    fields = json.loads(text)
    assert fields["settings"]["resize_short"] == 32 and fields["settings"]["codecs"][0]["Pillow"]
    assert fields["source"] == [
        {"name": "fall11_whole.tar", "kind": "class-tars", "bytes": source.stat().st_size}
    ]


def test_timm_reads_its_info(source, tmp_path):
    build([source], tmp_path / "out", SMALL)
    splits = json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]
    given = open_set(tmp_path / "out").manifest
    for name, split in splits.items():
        assert split["name"] == name
        assert split["filenames"] == [shard.name for shard in given.splits[name]]
        assert split["shard_lengths"] == [shard.samples for shard in given.splits[name]]
        assert split["num_samples"] == sum(split["shard_lengths"])


def test_hostile_members_write_nothing_outside(tmp_path):
    hostile = []
    for name, kind in (
        ("../../evil.jpg", b"0"), ("/tmp/evil.jpg", b"0"), ("link.jpg", b"2"), ("hard.jpg", b"1"),
        ("char.jpg", b"3"), ("block.jpg", b"4"), ("fifo.jpg", b"6"), ("..", b"0"),
        ("a/../../b.jpg", b"0"),
    ):  # fmt: skip
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        hostile.append((info, jpeg(3) if kind == b"0" and name != ".." else b""))
    inner = tar_bytes([*hostile, *class_images(WNIDS[0], 3)])
    outer = [(f"{WNIDS[0]}.tar", inner), ("../../n02.tar", tar_bytes([("x.jpg", jpeg(4))])),
             ("/n03.tar", tar_bytes([("y.jpg", jpeg(5))]))]  # fmt: skip
    box = tmp_path / "box"
    box.mkdir()
    (box / "a.tar").write_bytes(tar_bytes(outer))
    before = set(tmp_path.rglob("*"))
    report = build([box / "a.tar"], box / "deep" / "out", BuildConfig(val_fraction=0))
    new = set(tmp_path.rglob("*")) - before
    assert all((box / "deep") in (path, *path.parents) for path in new)
    assert not any(path.is_symlink() or path.is_fifo() for path in new)
    assert {"a symbolic link", "a hard link", "a character device"} <= {
        q.reason.split(",")[0] for q in report.quarantined
    }
    assert {row["key"] for row in rows(box / "deep" / "out", "train")} >= {
        f"{WNIDS[0]}_{n}" for n in range(3)
    }


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("what", ["read", "write"])
@pytest.mark.parametrize("fails_at", [0, 3, 11, 40])
def test_a_storage_error_leaves_nothing_half_written_and_a_restart_finishes(
    source, tmp_path, monkeypatch, what, fails_at
):
    monkeypatch.setattr(store, "PAUSES_S", (0.01, 0.01))
    real = store.locate
    system = failing_storage(fails_at, what)
    monkeypatch.setattr(store, "locate", lambda place: (system, real(place)[1]))
    doing = f"cannot {what} .*the storage went away.*run the same command again"
    with pytest.raises(OSError, match=doing):
        build([source], tmp_path / "out", SMALL)
    left = list((tmp_path / "out").rglob("*"))
    assert not any(path.name.endswith(store.TEMPORARY) for path in left)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(store, "locate", real)
    build([source], tmp_path / "out", SMALL)
    build([source], tmp_path / "clean", SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def _limited(source, out, limit):
    """In a process of its own: files may not grow beyond limit, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        build([source], out, SMALL)
    except OSError as error:
        if "cannot write" in str(error) and "run the same command again" in str(error):
            raise SystemExit(7) from error
        raise


@pytest.mark.parametrize("limit", [4096, 20_000])
def test_a_full_disk_says_so_and_a_restart_finishes(source, tmp_path, limit):
    process = multiprocessing.get_context("fork").Process(
        target=_limited, args=(source, tmp_path / "out", limit)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 7
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(path.name.endswith(store.TEMPORARY) for path in left)
    build([source], tmp_path / "out", SMALL)
    build([source], tmp_path / "clean", SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_a_folder_that_cannot_be_made_says_so(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot create the folder .*give another --out"):
        build([source], tmp_path / "file" / "out", SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_per_class": 1, "val_fraction": 0.1}, "give one"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"shard_samples": 0}, "shard_samples"),
        ({"exclude_distance": 9}, "exclude_distance"),
        ({"min_per_class": 0}, "min_per_class"),
        ({"val_shards": 0}, "val_shards"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BuildConfig(**settings)


def test_the_order_hash_is_a_permutation_that_depends_on_the_seed():
    values = np.arange(10_000, dtype=np.uint64)
    a, b = bucket.mixed(values, 0), bucket.mixed(values, 1)
    assert len(np.unique(a)) == len(values) and not np.array_equal(a, b)
    assert abs(np.mean(a / 2.0**64) - 0.5) < 0.02
    assert assign.shard_sizes(10, 3) == [4, 3, 3]
