"""Sources as they are distributed: recognised, said, and made into shards image for image."""

import gzip
import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from archives import (
    WNIDS,
    class_images,
    jpeg,
    nested,
    small_archive,
    tar_bytes,
)
from PIL import Image
from scipy.io import savemat

from shards.build.catalogue import DamagedSource
from shards.build.devkit import KAGGLE as SOLUTION
from shards.build.devkit import KAGGLE_HEADER as HEADER
from shards.build.devkit import labels
from shards.build.estimate import estimate
from shards.build.pack import BuildConfig, build, settings
from shards.build.source import find
from shards.dataset.format import open_set

KEPT = BuildConfig(keep_bytes=True, shard_samples=7, val_fraction=0.0)


def samples(folder) -> dict[str, tuple[bytes, list[str], str]]:
    """Image bytes, WordNet ids and split of every sample, as webdataset reads them."""
    given = open_set(folder)
    found = {}
    for split, shards in given.manifest.splits.items():
        paths = [str(folder / shard.name) for shard in shards]
        for sample in webdataset.WebDataset(paths, shardshuffle=False):
            numbers = [int(sample["cls"])]
            if "json" in sample:
                numbers = json.loads(sample["json"])["classes"]
            wnids = [given.manifest.classes[number] for number in numbers]
            assert sample["__key__"] not in found
            found[sample["__key__"]] = (sample["jpg"], wnids, split)
    return found


def write(folder, files: dict[str, bytes]):
    """Write files, by their paths in a folder; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def expected(classes: dict[str, list]) -> dict[str, tuple[bytes, list[str], str]]:
    return {
        name.removesuffix(".JPEG"): (data, [wnid], "train")
        for wnid, members in classes.items()
        for name, data in members
    }


@pytest.fixture(scope="module")
def classes():
    return {wnid: class_images(wnid, 6) for wnid in WNIDS[:4]}


@pytest.mark.parametrize("prefix", ["", "./", "fall11_whole/"])
def test_fall11_a_tar_of_class_tars(tmp_path, classes, prefix):
    (tmp_path / "fall11_whole.tar").write_bytes(nested(classes, prefix))
    report = build([tmp_path / "fall11_whole.tar"], tmp_path / "out", KEPT)
    assert samples(tmp_path / "out") == expected(classes)
    assert "class-tars, 4 classes, all of them in 1k" in report.sources[0]
    assert report.quarantined_count == 0


def test_winter21_a_compressed_tar_of_class_tars(tmp_path, classes):
    path = tmp_path / "winter21_whole.tar.gz"
    path.write_bytes(gzip.compress(nested(classes, "winter21_whole/"), mtime=0))
    build([path], tmp_path / "out", KEPT)
    assert samples(tmp_path / "out") == expected(classes)
    assert (tmp_path / "out" / "classes.txt").read_text().split() == sorted(classes)
    assert not (tmp_path / "out" / "work").exists()


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_the_processed_set_with_train_val_and_small_classes(tmp_path, compress, monkeypatch):
    monkeypatch.setattr("shards.build.archive.PART_BYTES", 20_000)  # so that it is cut into parts
    members = []
    for split, wnid in (("train", WNIDS[0]), ("val", WNIDS[0]), ("small_classes", WNIDS[1])):
        first = {"train": 0, "val": 100, "small_classes": 200}[split]
        folder = tarfile.TarInfo(f"imagenet21k_resized/imagenet21k_{split}/{wnid}")
        folder.type = tarfile.DIRTYPE
        members.append((folder, b""))
        members += [
            (f"imagenet21k_resized/imagenet21k_{split}/{wnid}/{first + n}_{name}", data)
            for n, (name, data) in enumerate(class_images(wnid, 5, first))
        ]
    path = tmp_path / "imagenet21k_resized.tar.gz"
    path.write_bytes(compress(tar_bytes(members)))
    report = build([path], tmp_path / "out", BuildConfig(keep_bytes=True))
    found = samples(tmp_path / "out")
    assert [split for _, _, split in found.values()].count("val") == 5
    assert report.images == {"train": 5, "val": 5}
    assert report.left_out == {"in imagenet21k_small_classes (--small-classes takes them)": 5}
    all_of_it = BuildConfig(keep_bytes=True, small_classes=True)
    assert build([path], tmp_path / "all", all_of_it).images == {"train": 10, "val": 5}
    with pytest.raises(ValueError, match="have their own val split"):
        build([path], tmp_path / "x", BuildConfig(val_per_class=1))


def devkit(order: list[str], truth: list[int]) -> bytes:
    """ILSVRC2012_devkit_t12 as far as labels go; an inner node of the hierarchy comes last."""
    kinds = [
        ("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"),
        ("num_children", "O"), ("children", "O"), ("wordnet_height", "O"),
    ]  # fmt: skip
    rows = [(n, wnid, "words", "gloss", 0, [], 0) for n, wnid in enumerate(order, 1)]
    rows.append((len(order) + 1, "n00001740", "entity", "all", 2, [1, 2], 9))
    mat = io.BytesIO()
    savemat(mat, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    lines = "".join(f"{number}\n" for number in truth).encode()
    folder = "ILSVRC2012_devkit_t12/data"
    return tar_bytes(
        [
            ("ILSVRC2012_devkit_t12/readme.txt", b"hello"),
            (f"{folder}/ILSVRC2012_validation_ground_truth.txt", lines),
            (f"{folder}/meta.mat", mat.getvalue()),
        ]
    )


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_ilsvrc2012_train_val_and_devkit(tmp_path, classes, compress):
    order = [WNIDS[2], WNIDS[0], WNIDS[3], WNIDS[1]]  # ILSVRC's order is not that of the ids
    truth = [2, 1, 4, 4, 3]
    val = [(f"ILSVRC2012_val_{n:08d}.JPEG", jpeg(70 + n)) for n in range(1, 6)]
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(nested(classes))
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(val))
    kit = tmp_path / ("devkit.tar.gz" if compress is gzip.compress else "devkit.tar")
    kit.write_bytes(compress(devkit(order, truth)))
    assert labels(find(str(kit)))["ILSVRC2012_val_00000003.JPEG"] == WNIDS[1]
    names = ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", kit.name]
    build([tmp_path / name for name in names], tmp_path / "out", BuildConfig(keep_bytes=True))
    wanted = expected(classes) | {
        name.removesuffix(".JPEG"): (data, [order[truth[n] - 1]], "val")
        for n, (name, data) in enumerate(val)
    }
    assert samples(tmp_path / "out") == wanted
    with pytest.raises(ValueError, match="give the devkit"):
        build([tmp_path / "ILSVRC2012_img_val.tar"], tmp_path / "x", BuildConfig())
    with pytest.raises(ValueError, match="devkit alone"):
        build([kit], tmp_path / "x", BuildConfig())


def test_a_folder_of_classes_and_one_with_splits(tmp_path, classes):
    for wnid, members in classes.items():
        for top in ("plain", "split/train"):
            (tmp_path / top / wnid).mkdir(parents=True)
            for name, data in members:
                (tmp_path / top / wnid / name).write_bytes(data)
    (tmp_path / "plain" / "notes.txt").write_text("hello")
    (tmp_path / "plain" / WNIDS[0] / "inner").mkdir()
    (tmp_path / "split" / "val" / WNIDS[0]).mkdir(parents=True)
    (tmp_path / "split" / "val" / WNIDS[0] / "other.jpg").write_bytes(jpeg(999))
    report = build([tmp_path / "plain"], tmp_path / "a", KEPT)
    assert samples(tmp_path / "a") == expected(classes)
    assert {q.member for q in report.quarantined} == {"notes.txt", "inner"}
    build([tmp_path / "split"], tmp_path / "b", BuildConfig(keep_bytes=True))
    assert samples(tmp_path / "b") == expected(classes) | {"other": (jpeg(999), [WNIDS[0]], "val")}


def test_folders_of_classes_may_have_files_of_macos_and_a_validation_folder(tmp_path, classes):
    source = write(
        tmp_path / "set",
        {f"train/{w}/{n}": data for w, members in classes.items() for n, data in members}
        | {f"validation/{WNIDS[0]}/other.jpg": jpeg(999)}
        | {f"train/{w}/{n}": b"Mac OS X" for w in classes for n in (".DS_Store", f"._{w}_0.JPEG")},
    )
    report = build([source], tmp_path / "out", BuildConfig(keep_bytes=True))
    wanted = expected(classes) | {"other": (jpeg(999), [WNIDS[0]], "val")}
    assert samples(tmp_path / "out") == wanted
    assert report.files == len(wanted) and report.quarantined_count == 0


def test_class_tars_may_have_files_of_macos(tmp_path, classes):
    hidden = {w: [(f"._{m[0][0]}", b"Mac OS X"), *m] for w, m in classes.items()}
    (tmp_path / "a.tar").write_bytes(nested(hidden))
    assert build([tmp_path / "a.tar"], tmp_path / "out", KEPT).quarantined_count == 0
    assert samples(tmp_path / "out") == expected(classes)


@pytest.mark.parametrize("content", [{}, {".DS_Store": b"Mac OS X"}])
def test_an_empty_class_folder_fails_the_build_and_keeps_its_number_if_that_is_allowed(
    tmp_path, classes, content
):
    source = write(
        tmp_path / "set", {f"{w}/{n}": data for w in WNIDS[1:3] for n, data in classes[w]}
    )
    write(source / WNIDS[0], content)
    with pytest.raises(DamagedSource, match=f"no image in {WNIDS[0]}"):
        build([source], tmp_path / "out", KEPT)
    allowed = BuildConfig(keep_bytes=True, val_fraction=0.0, allow_damaged_source=True)
    report = build([source], tmp_path / "out", allowed)
    assert open_set(tmp_path / "out").manifest.classes == WNIDS[:3]
    assert report.warnings[0] == "1 of 3 classes have no image"


def test_a_folder_of_class_tars_lists_what_else_is_in_it(tmp_path, classes):
    source = write(tmp_path / "tars", {f"{w}.tar": tar_bytes(m) for w, m in classes.items()})
    write(source, {"ILSVRC2012_bbox.tar": b"boxes", "README": b"hello", "notes/a.txt": b"hello"})
    report = build([source], tmp_path / "out", KEPT)
    assert samples(tmp_path / "out") == expected(classes)
    assert [(q.member, q.reason) for q in report.quarantined] == [
        ("ILSVRC2012_bbox.tar", "not a class tar (CLASS.tar)"),
        ("README", "not a class tar (CLASS.tar)"),
        ("notes", "a folder, not a class tar"),
    ]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_compressed_class_tar_fails_the_build_and_says_what_to_do(tmp_path, classes, is_folder):
    tars = {f"{w}.tar": tar_bytes(members) for w, members in classes.items()}
    tars[f"{WNIDS[1]}.tar.gz"] = gzip.compress(tars.pop(f"{WNIDS[1]}.tar"), mtime=0)
    source = write(tmp_path / "tars", tars)
    if not is_folder:
        source = tmp_path / "a.tar"
        source.write_bytes(tar_bytes(sorted(tars.items())))
    with pytest.raises(DamagedSource, match=f"{WNIDS[1]}.tar.gz: .*gunzip them, and give a folder"):
        build([source], tmp_path / "out", KEPT)


VAL = {f"ILSVRC2012_val_{n:08d}.JPEG": (jpeg(70 + n), WNIDS[n % 3]) for n in range(1, 6)}
BOXES = "".join(f"{n.removesuffix('.JPEG')},{wnid} 85 1 499 272\n" for n, (_, wnid) in VAL.items())


@pytest.fixture
def kaggle(tmp_path, classes):
    """The folder that Kaggle's zip unpacks to, and its samples."""
    files = {f"train/{w}/{n}": data for w, members in classes.items() for n, data in members}
    files |= {f"val/{name}": data for name, (data, _) in VAL.items()}
    files |= {f"test/ILSVRC2012_test_{n:08d}.JPEG": jpeg(170 + n) for n in range(3)}
    files = {f"ILSVRC/Data/CLS-LOC/{name}": data for name, data in files.items()}
    files[f"ILSVRC/Annotations/CLS-LOC/train/{WNIDS[0]}/{WNIDS[0]}_1.xml"] = b"<annotation>"
    files["ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml"] = b"<annotation>"
    files["ILSVRC/ImageSets/CLS-LOC/train_cls.txt"] = b"n01440764/n01440764_10026 1\n"
    return write(tmp_path / "kaggle", files | {SOLUTION: f"{HEADER}\n{BOXES}".encode()})


def val_samples() -> dict[str, tuple[bytes, list[str], str]]:
    return {name.removesuffix(".JPEG"): (data, [wnid], "val") for name, (data, wnid) in VAL.items()}


@pytest.mark.parametrize(
    ("inside", "labels_from"),
    [("", None), ("ILSVRC", SOLUTION), ("ILSVRC/Data/CLS-LOC", SOLUTION), ("", "devkit")],
)
def test_kaggle_s_folders_keep_every_val_image_and_leave_test_out(
    tmp_path, kaggle, classes, inside, labels_from
):
    sources = [kaggle / inside]
    if labels_from == SOLUTION:
        (tmp_path / SOLUTION).write_bytes((kaggle / SOLUTION).read_bytes())
        (kaggle / SOLUTION).unlink()
        sources.append(tmp_path / SOLUTION)
    elif labels_from == "devkit":
        (kaggle / SOLUTION).unlink()
        truth = [WNIDS.index(wnid) + 1 for _, wnid in VAL.values()]
        (tmp_path / "kit.tar").write_bytes(devkit(list(WNIDS[:3]), truth))
        sources.append(tmp_path / "kit.tar")
    report = build(sources, tmp_path / "out", BuildConfig(keep_bytes=True))
    assert samples(tmp_path / "out") == expected(classes) | val_samples()
    assert report.images == {"train": 24, "val": len(VAL)}
    assert report.reasons == {"a folder of test images is left out": 1}
    with pytest.raises(ValueError, match="have their own val split"):
        build(sources, tmp_path / "x", BuildConfig(val_per_class=1))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("seed", [0, 5])
def test_a_minival_is_drawn_from_train_beside_the_val_of_the_sources(
    tmp_path, kaggle, classes, seed
):
    config = BuildConfig(keep_bytes=True, minival_per_class=50, seed=seed)
    report = build([kaggle], tmp_path / "out", config)
    found = samples(tmp_path / "out")
    assert report.images == {"train": 20, "val": len(VAL), "minival": 4}  # a quarter of each class
    minival = {key: sample for key, sample in found.items() if sample[2] == "minival"}
    assert sorted(wnids for _, wnids, _ in minival.values()) == [[wnid] for wnid in WNIDS[:4]]
    drawn = {key: (data, wnids, "train") for key, (data, wnids, _) in minival.items()}
    assert found | drawn == expected(classes) | val_samples()
    build([kaggle], tmp_path / "other", BuildConfig(keep_bytes=True, minival_per_class=1, seed=9))
    other = {key for key, sample in samples(tmp_path / "other").items() if sample[2] == "minival"}
    assert other == minival.keys()  # whatever the seed


def test_a_minival_is_for_sources_with_a_val_split_of_their_own(tmp_path, kaggle):
    small_archive(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="these have none: draw it with val_per_class"):
        build([tmp_path / "a.tar"], tmp_path / "out", BuildConfig(minival_per_class=1))
    with pytest.raises(ValueError, match="have their own val split"):
        build([kaggle], tmp_path / "out", BuildConfig(minival_per_class=1, val_fraction=0.1))
    assert not (tmp_path / "out").exists()


def test_sets_of_before_there_was_a_minival_are_still_complete():
    assert "minival_per_class" not in settings(BuildConfig())
    assert settings(BuildConfig(minival_per_class=3))["minival_per_class"] == 3


def test_labels_in_kaggle_s_folder_belong_to_the_identity_of_the_set(tmp_path, kaggle):
    build([kaggle], tmp_path / "out", BuildConfig(keep_bytes=True))
    swapped = BOXES.replace(WNIDS[0], "x").replace(WNIDS[1], WNIDS[0]).replace("x", WNIDS[1])
    (kaggle / SOLUTION).write_text(f"{HEADER}\n{swapped}")
    with pytest.raises(ValueError, match="other sources or settings"):
        build([kaggle], tmp_path / "out", BuildConfig(keep_bytes=True))


@pytest.mark.parametrize("inside", ["", "ILSVRC/Data/CLS-LOC/val"])
def test_val_images_without_labels_are_refused_before_any_work(tmp_path, kaggle, inside):
    (kaggle / SOLUTION).unlink()
    for refuses in (build, estimate):
        with pytest.raises(ValueError, match=r"val has images without classes; give the devkit"):
            refuses([str(kaggle / inside)], str(tmp_path / "out"), BuildConfig())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_nothing_but_val_images_is_a_val_split(tmp_path, kaggle):
    folders = [kaggle / "ILSVRC/Data/CLS-LOC/val", kaggle / SOLUTION]
    build(folders, tmp_path / "out", BuildConfig(keep_bytes=True))
    assert samples(tmp_path / "out") == val_samples()


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_kaggle_s_tar_begins_with_boxes_and_has_val_after_train(
    tmp_path, kaggle, classes, compress
):
    paths = sorted(path for path in kaggle.rglob("*") if path.is_file() and path.suffix != ".csv")
    members = [(str(path.relative_to(kaggle)), path.read_bytes()) for path in paths]
    source = tmp_path / "imagenet_object_localization_patched2019.tar.gz"
    source.write_bytes(compress(tar_bytes(members)))
    sources = [source, kaggle / SOLUTION]
    report = build(sources, tmp_path / "out", BuildConfig(keep_bytes=True))
    assert samples(tmp_path / "out") == expected(classes) | val_samples()
    assert report.reasons == {"no class": 2 + 1 + 3}  # boxes, the list of names, test images
    with pytest.raises(ValueError, match="give the devkit"):
        build([source], tmp_path / "x", BuildConfig())
    with pytest.raises(ValueError, match="have their own val split"):
        build(sources, tmp_path / "x", BuildConfig(val_per_class=1))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("folder", ["", "./", "val/", "ILSVRC2012_img_val/"])
def test_a_tar_of_val_images_needs_labels_whatever_folder_they_are_in(tmp_path, kaggle, folder):
    source = tmp_path / "val.tar"
    source.write_bytes(tar_bytes((folder + name, data) for name, (data, _) in VAL.items()))
    with pytest.raises(ValueError, match=r"val.tar has images without classes; give the devkit"):
        build([source], tmp_path / "out", BuildConfig())
    build([source, kaggle / SOLUTION], tmp_path / "out", BuildConfig(keep_bytes=True))
    assert samples(tmp_path / "out") == val_samples()


@pytest.mark.parametrize("folder", ["", "ILSVRC2012_img_val/"])
def test_val_images_in_folders_of_their_classes_need_no_labels(tmp_path, folder):
    members = [(f"{folder}{wnid}/{name}", data) for name, (data, wnid) in VAL.items()]
    (tmp_path / "val.tar").write_bytes(tar_bytes(members))
    report = build([tmp_path / "val.tar"], tmp_path / "out", KEPT)
    assert report.images == {"train": len(VAL)} and report.classes == 3


def test_a_train_tar_with_a_flat_val_folder_after_it_fails_with_what_to_do(tmp_path):
    members = [(f"train/{WNIDS[0]}/{name}", data) for name, data in class_images(WNIDS[0], 9)]
    members += [(f"val/{name}", data) for name, (data, _) in VAL.items()]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    with pytest.raises(DamagedSource, match="give the devkit"):
        build([tmp_path / "a.tar"], tmp_path / "out", BuildConfig())


def test_any_names_can_be_classes(tmp_path):
    classes = {"n00000003": class_images(WNIDS[0], 3), "tabby-cat": class_images(WNIDS[1], 3)}
    (tmp_path / "a.tar").write_bytes(nested(classes))
    report = build([tmp_path / "a.tar"], tmp_path / "out", KEPT)
    assert report.classes == 2 and samples(tmp_path / "out") == expected(classes)


def test_shards_are_sharded_anew_with_their_classes_and_splits(tmp_path):
    archive = small_archive(tmp_path / "a.tar")
    first = BuildConfig(keep_bytes=True, shard_samples=5, val_per_class=2)
    build([archive], tmp_path / "first", first)
    build([tmp_path / "first"], tmp_path / "again", BuildConfig(keep_bytes=True, seed=3))
    assert samples(tmp_path / "again") == samples(tmp_path / "first")
    assert len(list((tmp_path / "again").glob("train-*.tar"))) == 1


def test_foreign_shards_need_their_classes_named_and_may_alternate_members(tmp_path):
    (tmp_path / "wds").mkdir()
    images = [jpeg(seed) for seed in range(4)]
    members = [(f"a/{n:04d}.cls", str(n % 2).encode()) for n in range(4)]
    members += [(f"a/{n:04d}.jpeg", image) for n, image in enumerate(images)]
    (tmp_path / "wds" / "set-train-000000.tar").write_bytes(tar_bytes(members))
    with pytest.raises(ValueError, match="python -m shards index"):
        build([tmp_path / "wds"], tmp_path / "out", KEPT)
    (tmp_path / "names.txt").write_text("n01440764 tench\n# a comment\nn01443537\n")
    named = BuildConfig(keep_bytes=True, classes=str(tmp_path / "names.txt"), val_fraction=0)
    build([tmp_path / "wds"], tmp_path / "out", named)
    assert samples(tmp_path / "out") == {
        f"{n:04d}": (images[n], [WNIDS[n % 2]], "train") for n in range(4)
    }


def test_several_sources_make_one_set(tmp_path):
    one = small_archive(tmp_path / "one.tar", classes=2)
    (tmp_path / "two.tar").write_bytes(nested({WNIDS[4]: class_images(WNIDS[4], 4)}))
    report = build([one, tmp_path / "two.tar"], tmp_path / "out", KEPT)
    assert report.classes == 3 and report.images == {"train": 20}


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("none.tar", None, FileNotFoundError, "no source at"),
        ("empty.tar", b"", ValueError, "empty file"),
        ("text.txt", b"hello" * 1000, ValueError, "not recognised"),
        ("text.gz", gzip.compress(b"hello" * 1000, mtime=0), ValueError, "not recognised"),
        ("pdf.tar", tar_bytes([("a.pdf", b"x")]), ValueError, "not recognised"),
        ("a.zip", b"PK\3\4" + bytes(99), ValueError, r"unpack it \(unzip -q .*a.zip -d DIR\) and"),
    ],
)
def test_a_path_that_is_not_a_source_is_refused_by_name(tmp_path, name, data, error, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=message):
        build([tmp_path / name], tmp_path / "out", BuildConfig())


def test_a_kind_can_be_given(tmp_path):
    (tmp_path / "odd.tar").write_bytes(tar_bytes([(f"{WNIDS[0]}/0001", jpeg(1))]))
    with pytest.raises(ValueError, match="--source-kind overrides"):
        build([tmp_path / "odd.tar"], tmp_path / "out", KEPT)
    report = build(
        [tmp_path / "odd.tar"],
        tmp_path / "out",
        BuildConfig(keep_bytes=True, source_kind="flat-tar", val_fraction=0),
    )
    assert report.images == {"train": 1}


@pytest.mark.parametrize(
    ("name", "kind", "seen"),
    [
        ("a.tar", "flat-tar", "a file of the kind class-tars"),
        ("a.tar", "imagenet-val", "a file of the kind class-tars"),
        ("a.tar", "devkit", "a file of the kind class-tars"),
        ("a.tar", "class-folders", "a file of the kind class-tars"),
        ("flat.tar", "class-tars", "a file of the kind flat-tar"),
        ("folder", "flat-tar", "a folder of the kind class-folders"),
        ("folder", "class-tars", "a folder of the kind class-folders"),
        ("folder", "webdataset", "a folder of the kind class-folders"),
    ],
)
def test_a_kind_that_would_find_no_image_is_refused_before_any_work(tmp_path, name, kind, seen):
    small_archive(tmp_path / "a.tar", classes=1, images=2)
    write(tmp_path / "folder" / WNIDS[0], {"1.jpg": jpeg(1)})
    (tmp_path / "flat.tar").write_bytes(tar_bytes([(f"{WNIDS[0]}/1.jpg", jpeg(1))]))
    with pytest.raises(ValueError, match=rf"source_kind \({kind}\) does not fit .*{name}, {seen}"):
        build([tmp_path / name], tmp_path / "out", BuildConfig(source_kind=kind))
    assert not (tmp_path / "out").exists()


def test_near_duplicates_of_an_excluded_set_are_left_out(tmp_path):
    classes = {wnid: class_images(wnid, 6) for wnid in WNIDS[:2]}
    shown = Image.open(io.BytesIO(classes[WNIDS[0]][0][1])).resize((72, 48))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=70)
    val = {"n00000001": [("same.JPEG", classes[WNIDS[1]][2][1]), ("near.JPEG", buffer.getvalue())]}
    (tmp_path / "train.tar").write_bytes(nested(classes))
    (tmp_path / "val.tar").write_bytes(nested(val))
    build([tmp_path / "val.tar"], tmp_path / "val", BuildConfig(resize_short=32, val_fraction=0))
    config = BuildConfig(keep_bytes=True, exclude=(f"{tmp_path}/val:train",), val_fraction=0)
    report = build([tmp_path / "train.tar"], tmp_path / "out", config)
    gone = {f"{WNIDS[0]}_0", f"{WNIDS[1]}_2"}
    assert set(samples(tmp_path / "out")) == set(expected(classes)) - gone
    assert report.excluded == 2
    table = pq.read_table(tmp_path / "out/excluded.parquet")
    assert {name.removesuffix(".JPEG") for name in table["member"].to_pylist()} == gone
    assert any("looks like" in reason for reason in table["reason"].to_pylist())


def test_excluded_sets_without_perceptual_hashes_are_read_image_by_image(tmp_path):
    from shards.check.index import index

    archive = small_archive(tmp_path / "a.tar", classes=1)
    build([archive], tmp_path / "first", KEPT)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in (tmp_path / "first").glob("*.tar"):
        shutil.copy(path, foreign)
    index(str(foreign))
    config = BuildConfig(resize_short=32, exclude=(f"{foreign}:train",), val_fraction=0)
    other = nested({WNIDS[0]: class_images(WNIDS[0], 8), WNIDS[1]: class_images(WNIDS[1], 3)})
    (tmp_path / "b.tar").write_bytes(other)
    report = build([tmp_path / "b.tar"], tmp_path / "out", config)
    assert report.excluded == 8 and report.images == {"train": 3}


@pytest.mark.parametrize("name", ["n01491361.tar.part", "n01491361.TAR", "n01491361.tar.1"])
def test_a_class_tar_that_was_not_downloaded_to_its_end_is_not_passed_over(tmp_path, classes, name):
    for wnid in WNIDS[:2]:
        (tmp_path / f"{wnid}.tar").write_bytes(tar_bytes(classes[wnid]))
    (tmp_path / name).write_bytes(tar_bytes(classes[WNIDS[2]]))
    with pytest.raises(DamagedSource, match=f"{name}: not CLASS.tar: download it to its end"):
        build([tmp_path], tmp_path.with_name("out"), KEPT)


def test_a_folder_whose_name_is_no_class_is_not_passed_over(tmp_path, classes):
    for name in ("tench", "hot dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").write_bytes(jpeg(1))
    with pytest.raises(DamagedSource, match="hot dog: not the name of a class: .* rename it"):
        build([tmp_path / "images"], tmp_path / "out", KEPT)


def test_a_set_of_shards_is_the_same_source_after_it_was_indexed_again(tmp_path):
    from shards.check.index import index

    (tmp_path / "wds").mkdir()
    members = [(f"{WNIDS[n % 2]}_{n}.{e}", d) for n in range(4)
               for e, d in (("cls", str(n % 2).encode()), ("jpg", jpeg(n)))]  # fmt: skip
    (tmp_path / "wds" / "train-0.tar").write_bytes(tar_bytes(members))
    index(str(tmp_path / "wds"))
    first = build([tmp_path / "wds"], tmp_path / "out", KEPT)
    index(str(tmp_path / "wds"))
    with pytest.raises(ValueError, match="other sources"):  # index-2/ is another set of indexes
        build([tmp_path / "wds"], tmp_path / "out", KEPT)
    index(str(tmp_path / "wds"))
    assert build([tmp_path / "wds"], tmp_path / "out", KEPT) == first
