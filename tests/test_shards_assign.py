"""Which images a shard set takes, and which of them are val: copies, classes, draws, exclusions."""

import dataclasses
import hashlib
import itertools
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import WNIDS, class_images, jpeg, nested, tar_bytes
from pyarrow import fs as pafs

from shards.build import assign, catalogue, class_stats, exclude
from shards.build.lookalikes import Lookalikes
from shards.build.pack import BuildConfig, build
from shards.dataset.format import open_set

LOCAL = pafs.LocalFileSystem()


def row(number, *wnids, content=None, **fields):
    """A row of a catalogue; rows with the same content are copies."""
    content = hashlib.sha256(str(number if content is None else content).encode()).digest()
    stored = hashlib.sha256(content).digest()
    phash = int.from_bytes(stored[:8], "big") & ~1
    return {
        **{"source": 0, "archive": "a.tar", "member": f"{wnids[0] if wnids else ''}_{number}.JPEG"},
        **{"path": "/a.tar", "offset": 1000 * number, "size": 900, "sha256": content},
        **{"wnids": list(wnids), "split": "", "problem": "", "phash": phash, "spool_offset": 0},
        **{"stored_size": 800, "stored_width": 8, "stored_height": 8, "stored_sha256": stored},
        **fields,
    }


def assigned(folder, rows, config, classes=None, known=None, unit_rows=10**9, progress=None):
    """The tally, and the rows of each split, of an assignment of these rows."""
    folder.mkdir(exist_ok=True)
    (folder / "plan").mkdir(exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, len(rows), unit_rows)):
        parts.append(str(folder / f"part-{number}.parquet"))
        table = pa.Table.from_pylist(rows[start : start + unit_rows], catalogue.SCHEMA)
        pq.write_table(table, parts[-1])
    tally = assign.assign(LOCAL, str(folder), parts, config, classes, "x", known, progress)
    splits = {s: pq.read_table(folder / f"plan/{s}.parquet").to_pylist() for s in tally.images}
    return tally, splits


def members(rows):
    return {row["member"] for row in rows}


def index(folder, split):
    given = open_set(folder)
    shards = given.manifest.splits.get(split, ())
    return {row["key"]: row for shard in shards for row in given.read_index(shard).to_pylist()}


def test_the_val_split_of_the_sources_stays_whole_and_train_loses_its_copies_of_it(tmp_path):
    shared = jpeg(1)
    train = [(f"train/{WNIDS[0]}/a.jpg", shared), (f"train/{WNIDS[0]}/b.jpg", jpeg(2))]
    val = [
        (f"val/{WNIDS[1]}/c.jpg", shared),
        *((f"val/{wnid}/twin.jpg", jpeg(3)) for wnid in WNIDS[:3]),
    ]
    (tmp_path / "alone.tar").write_bytes(tar_bytes(val))
    (tmp_path / "both.tar").write_bytes(tar_bytes(train + val))
    config = BuildConfig(keep_bytes=True, classes=str(tmp_path / "list"))
    (tmp_path / "list").write_text("\n".join(WNIDS))
    build([tmp_path / "alone.tar"], tmp_path / "alone", config)
    report = build([tmp_path / "both.tar"], tmp_path / "both", config)
    expected, found = (index(tmp_path / name, "val") for name in ("alone", "both"))
    labels = [{key: row["classes"] for key, row in rows.items()} for rows in (expected, found)]
    assert labels[0] == labels[1] and len(found) == 4 and found["c"]["classes"] == [1]
    assert (report.images, report.crossing, report.duplicates) == ({"train": 1, "val": 4}, 1, 0)
    gone = pq.read_table(tmp_path / "both/duplicates.parquet").to_pylist()
    assert [r["member"] for r in gone] == [f"train/{WNIDS[0]}/a.jpg"]
    assert gone[0]["reason"] == f"same bytes as the val image both.tar: val/{WNIDS[1]}/c.jpg"


def test_copies_merge_within_train_of_which_small_classes_are_a_part(tmp_path):
    rows = [
        *(row(0, "n1", content="x", split="train"), row(1, "n2", content="x", split="small")),
        *(row(2, "n3", content="y", split="train"), row(3, "n4", content="y", split="train")),
        *(row(4, "n5", content="y", split="val"), row(5, "n1", split="train")),
    ]
    tally, splits = assigned(tmp_path, rows, BuildConfig(small_classes=True))
    assert (tally.merged, tally.crossing) == (1, 2)
    assert {r["member"]: r["classes"] for r in splits["train"]} == {
        "n1_0.JPEG": [0, 1],
        "n1_5.JPEG": [0],
    }
    assert members(splits["val"]) == {"n5_4.JPEG"} and splits["val"][0]["classes"] == [4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/in1k", ("data/in1k", ("val",))),
        ("data/in1k:train", ("data/in1k", ("train",))),
        ("data/in1k:train,val", ("data/in1k", ("train", "val"))),
        ("s3://bucket/in1k", ("s3://bucket/in1k", ("val",))),
        ("s3://KEY:SECRET@bucket/in1k", ("s3://KEY:SECRET@bucket/in1k", ("val",))),
        ("s3://b/s?region=eu:all", ("s3://b/s?region=eu", ("all",))),
        ("s3://b/s?endpoint_override=h:9000", ("s3://b/s?endpoint_override=h:9000", ("val",))),
        ("s3://b/s?endpoint_override=h:9000:val", ("s3://b/s?endpoint_override=h:9000", ("val",))),
    ],
)
def test_an_excluded_set_is_a_location_and_splits(text, expected):
    assert exclude.parse(text) == expected


@pytest.fixture
def other(tmp_path):
    """A set with images 0 to 2 of a class in train and 3 to 5 in val."""
    images = class_images(WNIDS[0], 6)
    rows = [
        (f"{'train' if n < 3 else 'val'}/{WNIDS[0]}/{n}.jpg", d) for n, (_, d) in enumerate(images)
    ]
    (tmp_path / "other.tar").write_bytes(tar_bytes(rows))
    build([tmp_path / "other.tar"], tmp_path / "other", BuildConfig(keep_bytes=True))
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("splits", "left"),
    [("", "01267"), (":val", "01267"), (":train", "34567"), (":train,val", "67"), (":all", "67")],
)
def test_the_val_split_of_an_excluded_set_is_left_out_unless_other_splits_are_named(
    other, tmp_path, splits, left
):
    (tmp_path / "a.tar").write_bytes(nested({WNIDS[0]: class_images(WNIDS[0], 8)}))
    config = BuildConfig(keep_bytes=True, exclude=(f"{other}{splits}",), val_fraction=0)
    report = build([tmp_path / "a.tar"], tmp_path / "out", config)
    assert set(index(tmp_path / "out", "train")) == {f"{WNIDS[0]}_{n}" for n in left}
    named = {"": ["val"], ":all": ["train", "val"]}.get(splits, splits[1:].split(","))
    assert {k: v for k, v in report.left_out.items() if "other" in k} == {
        f"{way} other:{split}": 3 * (way == "same bytes as")
        for split, way in itertools.product(named, ("same bytes as", "looks like"))
    }
    assert open_set(tmp_path / "out").manifest.settings["exclude"] == [
        f"{open_set(other).fingerprint}:{split}" for split in named
    ]


def test_an_unknown_split_of_an_excluded_set_is_refused_before_anything_starts(other, tmp_path):
    (tmp_path / "a.tar").write_bytes(nested({WNIDS[0]: class_images(WNIDS[0], 8)}))
    with pytest.raises(ValueError, match="no split 'test', it has train, val; give .*:all"):
        build([tmp_path / "a.tar"], tmp_path / "out", BuildConfig(exclude=(f"{other}:test",)))
    assert not (tmp_path / "out").exists()


def test_exclusion_leaves_the_val_split_of_the_sources_whole(other, tmp_path):
    images = class_images(WNIDS[0], 6)
    rows = [
        (f"{'val' if n > 3 else 'train'}/{WNIDS[0]}/{n}.jpg", d) for n, (_, d) in enumerate(images)
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(rows))
    config = BuildConfig(keep_bytes=True, exclude=(str(other),))
    assert build([tmp_path / "a.tar"], tmp_path / "out", config).images == {"train": 3, "val": 2}


@pytest.mark.parametrize("distance", range(8))
def test_the_nearest_lookalikes_are_those_of_a_comparison_of_all_pairs(distance):
    random = np.random.default_rng(distance)
    known = random.integers(0, 2**63, 300, np.uint64)
    flips, most = np.zeros(1200, np.uint64), random.integers(0, 12, 1200)
    for n in range(12):
        flips |= (np.uint64(1) << random.integers(0, 64, 1200, np.uint64)) * (n < most)
    rows = np.append(known[random.integers(0, 300, 1200)] ^ flips, [np.uint64(0)])
    known[:3] = 0
    bits = np.bitwise_count(rows[:, None] ^ known[None]).astype(int)
    bits[:, known == 0] = bits[rows == 0] = 99
    places, found = Lookalikes(pa.chunked_array([known]), distance).nearest(
        pa.chunked_array([rows])
    )
    within = bits.min(1) <= distance
    assert 0 < within.sum() < 1200 and np.array_equal(places >= 0, within)
    assert np.array_equal(places[within], bits.argmin(1)[within])
    assert np.array_equal(found[within], bits.min(1)[within])


def test_many_pairs_of_lookalikes_take_little_memory():
    hashes = np.random.default_rng(0).integers(0, 2**12, 3000, np.uint64) << np.uint64(26)
    hashes = pa.chunked_array([hashes | np.uint64(1 << 63)])  # 3,000 x 3,000 pairs agree in a band
    tracemalloc.start()
    try:
        places, _ = Lookalikes(hashes, 4).nearest(hashes)
        assert (places >= 0).all() and tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def draw(folder, rows, **settings):
    config = BuildConfig(**{"val_per_class": 3, "exclude_distance": 0} | settings)
    tally, splits = assigned(folder, rows, config, unit_rows=settings.get("unit_rows", 10**9))
    return tally, members(splits["val"]), members(splits["train"])


def overlapping(random, classes=30, images=3000):
    """Images of one to four of some classes, of which the later ones have more images."""
    share = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    return [
        row(
            n,
            *(
                f"n{c:02d}"
                for c in random.choice(classes, random.choice([1, 1, 2, 4]), False, share)
            ),
        )
        for n in range(images)
    ]


@pytest.mark.parametrize("per_class", [1, 7, 1000])
def test_every_class_keeps_three_quarters_of_its_images_in_train(tmp_path, per_class):
    rows = overlapping(np.random.default_rng(per_class))
    _, val, _ = draw(tmp_path, rows, val_per_class=per_class)
    for wnid in {wnid for r in rows for wnid in r["wnids"]}:
        of_class = {r["member"] for r in rows if wnid in r["wnids"]}
        assert len(of_class & val) <= len(of_class) // 4
        alone = {r["member"] for r in rows if r["wnids"] == [wnid]}
        wanted = min(per_class, len(of_class) // 4)
        assert len(of_class & val) >= min(wanted, len(alone)), wnid


def test_a_class_that_shares_all_its_images_is_not_drawn_away(tmp_path):
    rows = [row(n, "n0", f"n{1 + n}") for n in range(5)]
    rows += [row(10 + n, f"n{1 + n % 5}") for n in range(200)]
    _, val, _ = draw(tmp_path, rows, val_per_class=40)
    assert len(val & {r["member"] for r in rows[:5]}) <= 1 and len(val) >= 40


def test_classes_that_are_left_out_draw_no_images(tmp_path):
    rows = [row(n, "n0", "n1") for n in range(6)] + [row(10 + n, "n1") for n in range(94)]
    _, alone, _ = draw(tmp_path / "a", [r | {"wnids": ["n1"]} for r in rows])
    _, rare, _ = draw(tmp_path / "b", rows, min_per_class=10)
    assert len(rare) == 3 and rare == alone


def test_the_draw_depends_on_content_alone(tmp_path, monkeypatch):
    rows = overlapping(np.random.default_rng(5), classes=8, images=400)
    _, val, train = draw(tmp_path / "a", rows, val_per_class=9)
    assert draw(tmp_path / "b", rows, val_per_class=9, seed=3)[1:] == (val, train)
    monkeypatch.setattr(assign, "BUCKET_ROWS", 37)
    tally, splits = assigned(
        tmp_path / "c", rows[::-1], BuildConfig(val_per_class=9, exclude_distance=0), unit_rows=23
    )
    assert members(splits["val"]) == val and members(splits["train"]) == train


def test_a_class_without_a_usable_image_keeps_its_number_and_is_named(tmp_path):
    broken = [row(n, "n1", problem="no image in a known format") for n in range(3)]
    nowhere = row(9, problem="no class: neither a folder nor a list of labels gives one")
    rows = [row(3, "n0"), *broken, row(4, "n2"), nowhere]
    tally, splits = assigned(tmp_path / "a", rows, BuildConfig())
    assert tally.classes == ("n0", "n1", "n2")
    assert (tally.empty, tally.missing) == (("n1",), 1)
    assert {r["member"]: r["classes"] for r in splits["train"]} == {
        "n0_3.JPEG": [0],
        "n2_4.JPEG": [2],
    }
    rare, _ = assigned(tmp_path / "b", [*rows, row(7, "n2")], BuildConfig(min_per_class=2))
    assert (rare.classes, rare.empty, rare.missing) == (("n2",), ("n1",), 0)


def test_classes_of_a_list_without_any_image_are_counted(tmp_path):
    rows = [row(0, "n0"), row(1, "n2"), row(2, "n8", problem="not an image")]
    tally, _ = assigned(tmp_path, rows, BuildConfig(), classes=("n0", "n1", "n2", "n3"))
    assert (tally.missing, tally.empty) == (2, ())


def test_the_image_with_the_most_classes_is_named(tmp_path):
    rows = [row(n, f"n{n:03d}", content="placeholder") for n in range(300)] + [row(300, "n000")]
    tally, _ = assigned(tmp_path, rows, BuildConfig())
    assert tally.most_labels == (300, "a.tar: n000_0.JPEG")


def test_train_images_that_look_like_drawn_val_images_are_listed_and_stay(tmp_path):
    rows = [row(n, "n0") for n in range(60)]
    for n, first in enumerate(rows[:30]):
        rows[30 + n]["phash"] = first["phash"] ^ (0b110 << n)
    rows[5]["phash"] = None
    tally, splits = assigned(tmp_path, rows, BuildConfig(val_fraction=0.4))
    val = {r["member"]: r for r in splits["val"]}
    pairs = dict(
        zip(*([r["member"] for r in half] for half in (rows[:30], rows[30:])), strict=True)
    )
    pairs |= {b: a for a, b in pairs.items()}
    del pairs[pairs.pop("n0_5.JPEG")]
    expected = {(t["key"], val[pairs[t["member"]]]["key"]) for t in splits["train"]
                if pairs.get(t["member"]) in val}  # fmt: skip
    found = pq.read_table(tmp_path / "near-duplicates.parquet").to_pylist()
    assert {(r["key"], r["val_key"]) for r in found} == expected and len(expected) > 5
    assert {r["bits"] for r in found} == {2} and tally.near == len(found)
    assert len(splits["train"]) + len(splits["val"]) == 60


def test_a_val_split_of_the_sources_is_not_compared_with_train(tmp_path):
    rows = [row(0, "n0", split="train", phash=14), row(1, "n0", split="val", phash=14)]
    tally, _ = assigned(tmp_path, rows, BuildConfig())
    assert tally.near == 0 and not pq.read_table(tmp_path / "near-duplicates.parquet").num_rows


def test_temporary_files_take_no_more_disk_than_announced(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    rows = [row(n, f"n{random.integers(10**6):08d}", member=f"n{n % 10**6:08d}_{n}.JPEG",
                archive=f"n{n // 500:08d}.tar", path="/data/winter21_whole.tar",
                offset=100_000 * n, size=int(random.integers(200_000)),
                spool_offset=15_000 * n, stored_size=int(random.integers(30_000)))
            for n in range(12_000)]  # fmt: skip
    monkeypatch.setattr(assign, "BUCKET_ROWS", 3000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    sizes = []

    def measure(_):
        files = (tmp_path / "temporary").rglob("*")
        sizes.append(sum(path.stat().st_size for path in files if path.is_file()))

    assigned(tmp_path / "out", rows, BuildConfig(val_per_class=5), unit_rows=1500, progress=measure)
    assert assign.temporary_bytes(12_000) / 2 < max(sizes) <= assign.temporary_bytes(12_000)
    assert not list((tmp_path / "temporary").iterdir())


def test_progress_of_the_assignment_ends_at_its_total(tmp_path):
    said = []
    rows = [row(n, "n0") for n in range(100)]
    assigned(tmp_path, rows, BuildConfig(val_per_class=5), unit_rows=10, progress=said.append)
    assert {p.stage for p in said} == {"plan"} and said[-1].images == 100
    assert [p.done for p in said] == sorted({p.done for p in said})
    assert said[-1].done == said[-1].total == 10 + 3 + 1


def test_a_finished_assignment_says_the_same_again(tmp_path):
    rows = [row(n, "n0", f"n{n}") for n in range(20)] + [row(99, "n99", problem="cut")]
    tally, _ = assigned(tmp_path, rows, BuildConfig(val_per_class=3))
    before = (tmp_path / "plan/train.parquet").stat().st_mtime_ns
    assert assigned(tmp_path, rows, BuildConfig(val_per_class=3))[0] == tally
    assert (tmp_path / "plan/train.parquet").stat().st_mtime_ns == before
    assert json.loads(json.dumps(dataclasses.asdict(tally)))["empty"] == ["n99"]


def test_a_set_of_no_usable_image_has_an_empty_assignment(tmp_path):
    tally, splits = assigned(tmp_path, [row(0, "n0", problem="cut")], BuildConfig(val_per_class=3))
    assert (tally.images, splits, tally.empty) == ({}, {}, ("n0",))
    assert class_stats.Tally(classes=("n0",), empty=("n0",), missing=1) == tally
