"""Sources against the archives as they were published, by synthetic counts and sets of classes."""

import pytest

from shards.build.published import ARCHIVES, differences
from shards.dataset.classes import class_list

WINTER21, FALL11 = set(class_list("winter21")), set(class_list("fall11"))
P_WINTER, P_FALL = set(class_list("miil-winter21")), set(class_list("miil-fall11"))
ONE_K = set(class_list("1k"))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.classes)
@pytest.mark.parametrize("name", [None, "renamed.tar"])
def test_complete_archives_have_no_differences(archive, name):
    classes = set(class_list(archive.classes))
    assert differences(name or f"{archive.name}.tar", "class-tars", archive.images, classes) == []


def test_a_class_that_is_missing_is_named():
    (told,) = differences(
        "winter21_whole.tar.gz", "class-tars", {"": 13_153_500}, WINTER21 - {"n01440764"}
    )
    assert told == (
        "winter21_whole.tar.gz has 19,166 classes; the published winter21_whole has 19,167; "
        "missing: n01440764"
    )


def test_a_cut_archive_is_told_with_its_images_and_first_missing_classes():
    there = set(sorted(FALL11)[:13_000])
    classes, images = differences("s3/x/fall11_whole.tar", "class-tars", {"": 8_500_000}, there)
    assert "13,000 classes" in classes and classes.endswith(" and 8,836 more")
    assert sorted(FALL11)[13_000] in classes
    assert images.endswith("has 8,500,000 images; the published fall11_whole has 14,197,122")


def test_a_renamed_archive_is_recognised_by_its_classes():
    (told,) = differences("in21k.tar", "class-tars", {"": 13_153_499}, WINTER21)
    assert told == "in21k.tar has 13,153,499 images; the published winter21_whole has 13,153,500"
    assert differences("in21k.tar", "class-tars", {"": 13_153_499}, WINTER21 - {"n01440764"}) == []


def test_an_archive_with_the_content_of_another_is_told():
    classes, images = differences("winter21_whole.tar", "class-tars", {"": 14_197_122}, FALL11)
    assert "not in it: n" in classes and "2,669 more" in classes
    assert "14,197,122 images" in images


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"": 1_281_167}, []),
        ({"train": 1_281_167}, []),
        ({"": 50_000}, []),
        ({"train": 1_281_167, "val": 50_000}, []),
        ({"train": 1_281_166}, ["has 1,281,166 images; the published ILSVRC2012_img_train has"]),
        ({"val": 49_999}, ["has 49,999 images; the published ILSVRC2012_img_val has 50,000"]),
        ({"train": 1_281_167, "val": 49_000}, ["49,000 val images; the published CLS-LOC has 50,"]),
    ],
)
def test_the_parts_of_imagenet_1k_are_told_apart_by_their_images(counts, told):
    found = differences("data", "class-folders", counts, ONE_K)
    assert len(found) == len(told) and all(a in b for a, b in zip(told, found, strict=True))


def test_the_two_processed_sets_share_a_name():
    name = "imagenet21k_resized.tar.gz"
    winter, fall = {"train": 11_060_223, "val": 522_500}, {"train": 11_797_647, "val": 561_050}
    assert differences(name, "flat-tar", winter, P_WINTER) == []
    assert differences(name, "flat-tar", fall, P_FALL) == []
    (told,) = differences(name, "flat-tar", {**winter, "val": 522_499}, P_WINTER)
    assert "has 522,499 val images" in told


def test_small_classes_of_a_processed_set_are_no_difference():
    counts = {"train": 11_060_223, "val": 522_500, "small": 1_570_000}
    assert differences("imagenet21k_resized.tar.gz", "flat-tar", counts, WINTER21) == []
    assert differences("renamed.tar", "flat-tar", counts, WINTER21) == []
    (told,) = differences("imagenet21k_resized", "flat-tar", counts, WINTER21 - {"n01440764"})
    assert "10,449 classes" in told and "missing: n01440764" in told


def test_other_archives_and_shards_are_not_compared():
    assert differences("mine.tar", "class-tars", {"": 7}, {"cat", "dog"}) == []
    assert differences("w21", "webdataset", {"train": 13_151_276}, WINTER21) == []
    assert differences("devkit.tar.gz", "devkit", {}, set()) == []
