"""Figures over classes: means, thirds by training frequency, and WordNet, worked out by hand."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data import class_images as class_images_module
from pipeline.data.class_images import class_images
from pipeline.evaluation.class_figures import (
    ClassFigures,
    hierarchical,
    thirds_of,
    training_images,
)
from pipeline.evaluation.hierarchy import Hierarchy
from pipeline.evaluation.intervals import mean_over_classes, wilson
from pipeline.evaluation.metrics import Predictions
from pipeline.evaluation.result_table import caption, result_table, selection
from pipeline.settings.config import DataConfig
from shards.dataset.classes import class_list

# two carp-like fish, two cats and a dog, which has both among its hypernyms
TENCH, GOLDFISH, TABBY, TIGER_CAT = "n01440764", "n01443537", "n02123045", "n02123159"
BEAGLE, DOG, CANINE = "n02088364", "n02084071", "n02083346"


def predictions(labels, top):
    labels, top = np.array(labels), np.array(top)
    count = len(labels)
    return Predictions(
        labels=labels.reshape(count, -1),
        top=top.reshape(count, -1).astype(np.int32),
        confidence=np.ones(count),
        loss=np.zeros(count),
    )


# --- means over classes ---


def test_mean_per_class_weighs_classes_alike_and_unreadable_images_are_wrong():
    # class 0: 3 of 4, class 1: 1 of 2, class 3: none of 1; class 2 has no image; -2 is unreadable
    given = predictions([0, 0, 0, 0, 1, 1, 3], [0, 0, 0, -2, 1, 0, 1])
    figures = ClassFigures(classes=("a", "b", "c", "d"), trained=None, why_unknown="why")
    found = figures.of(given)
    assert found["mean_per_class"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    ends = mean_over_classes(np.array([3, 1, 0]), np.array([4, 2, 1]))[1:]
    assert (found["mean_per_class_low"], found["mean_per_class_high"]) == ends
    assert "tail" not in found and "lca_height" not in found
    assert figures.facts(given) == {
        "classes": 3,
        "left_out": [
            "head, middle, tail: why",
            "figures over WordNet: the classes have no common ancestor in WordNet",
        ],
    }


def test_thirds_are_of_classes_and_equal_classes_stay_together():
    assert thirds_of(np.array([5, 1, 9, 2, 8, 3])).tolist() == [1, 0, 2, 0, 2, 1]
    counts = np.array([1300] * 895 + list(range(732, 732 + 105)))  # as in ImageNet-1k
    assert (thirds_of(counts) == [1] * 895 + [0] * 105).all()
    assert set(thirds_of(np.array([7, 7, 7]))) == {1}


def test_head_middle_and_tail_are_means_over_the_classes_of_a_third():
    given = predictions([0, 1, 2, 2, 3, 4, 5, 5], [0, 1, 2, 0, 0, 4, 5, 0])
    trained = {"a": 500, "b": 400, "c": 30, "d": 20, "e": 2, "f": 1, "other": 10_000}
    figures = ClassFigures(classes=tuple("abcdef"), trained=trained)
    found, facts = figures.of(given), figures.facts(given)
    assert [found[name] for name in ("head", "middle", "tail")] == [1.0, 0.25, 0.75]
    assert found["head_low"] < 1.0 == found["head_high"]
    assert facts["thirds"]["middle"] == {"classes": 2, "fewest": 20, "most": 30}


def test_without_rare_classes_there_is_no_tail():
    given = predictions([0, 1, 2], [0, 1, 2])
    for fewest, is_left_out in ((732, True), (650, False), (0, False)):
        figures = ClassFigures(
            classes=("a", "b", "c"), trained={"a": 1300, "b": 900, "c": fewest, "d": 1}
        )
        assert ("tail" not in figures.of(given)) == is_left_out
        if is_left_out:
            reason = (
                "head, middle, tail: all classes have about as many training images, 732 to 1,300"
            )
            assert figures.facts(given)["left_out"][0] == reason


def test_training_images_are_counted_as_the_run_reads_them(digits, tmp_path):
    tables = [pq.read_table(path) for path in sorted(digits.glob("train-*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    data = DataConfig(dir=str(digits))
    found = class_images(data, str(digits))
    expected = np.bincount([number for row in rows for number in row["classes"]])
    assert list(found) == [f"n{digit:08}" for digit in range(10)]
    assert list(found.values()) == expected.tolist() and sum(expected) == 1437
    (tmp_path / "classes.txt").write_text("n00000002\nn00000005\n")
    chosen = {"classes": str(tmp_path / "classes.txt"), "fraction": 0.5, "extra": (str(digits),)}
    found = class_images(data.replace(chosen), str(digits))
    kept = [row for row in rows if int(row["sha256"][:16], 16) < 2**63]
    twos = sum(row["classes"] == [2] for row in kept)
    assert found["n00000002"] == 2 * twos > 0 and found["n00000003"] == 0
    with pytest.raises(ValueError, match="no split 'train2'"):
        class_images(data.replace({"train_split": "train2"}), str(digits))


def test_training_images_are_counted_once_for_a_run_and_anew_for_other_images(
    digits, tmp_path, monkeypatch
):
    data, reads = DataConfig(dir=str(digits)), []
    count = class_images_module.shard_images
    monkeypatch.setattr(
        class_images_module, "shard_images", lambda *given: reads.append(given) or count(*given)
    )
    whole = class_images(data, str(digits), tmp_path)
    first = len(reads)
    assert class_images(data, str(digits), tmp_path) == whole and len(reads) == first > 0
    half = class_images(data.replace({"fraction": 0.5}), str(digits), tmp_path)
    assert sum(half.values()) < sum(whole.values()) and len(reads) == 2 * first


def test_training_data_that_cannot_be_read_are_tried_once(tmp_path, monkeypatch):
    tries = []

    def unreachable(*given):
        tries.append(given)
        raise OSError("no route to the store")

    monkeypatch.setattr("pipeline.evaluation.class_figures.class_images", unreachable)
    data = DataConfig(dir=str(tmp_path / "gone"))
    for _ in range(2):
        trained, why = training_images(data, data.dir, tmp_path)
        assert trained is None and "no route to the store" in why
    assert len(tries) == 1


def test_of_classes_that_were_not_trained_on_there_are_no_thirds():
    given = predictions([0, 1, 2], [0, 1, 2])
    figures = ClassFigures(classes=("a", "b", "c"), trained={"x": 5})
    assert "tail" not in figures.of(given)
    assert figures.facts(given)["left_out"][0].endswith("trained on no image of these classes")


# --- WordNet ---


def test_the_lowest_common_ancestor_is_that_of_wordnet():
    classes = (TENCH, GOLDFISH, TABBY, TIGER_CAT, BEAGLE, DOG, CANINE)
    hierarchy = Hierarchy.of(classes)
    place = {wnid: number for number, wnid in enumerate(classes)}

    def distance(a, b):
        (found,) = hierarchy.distances(np.array([place[a]]), np.array([place[b]]))
        assert found == hierarchy.distances(np.array([place[b]]), np.array([place[a]]))[0]
        return found

    assert distance(TABBY, TABBY) == 0
    assert distance(TABBY, TIGER_CAT) == 1  # domestic cat
    assert distance(TENCH, GOLDFISH) == 1  # cyprinid
    # beagle < hound < hunting dog < dog < canine < carnivore; a dog is a domestic animal, too, as a
    # cat is, and that is lower than carnivore
    assert distance(BEAGLE, DOG) == 3 and distance(BEAGLE, CANINE) == 4
    assert distance(BEAGLE, TABBY) == 4
    pairs = np.array([place[DOG], place[BEAGLE]]), np.array([place[BEAGLE], place[DOG]])
    assert hierarchy.is_above(*pairs).tolist() == [True, False]


def test_an_ancestor_of_the_class_is_right_and_mistakes_have_a_height():
    hierarchy = Hierarchy.of((TENCH, GOLDFISH, TABBY, BEAGLE, DOG))
    # right; its ancestor; its descendant; another fish; unreadable; a cat that may be a fish
    given = predictions([[3, -1], [3, -1], [4, -1], [0, -1], [2, -1], [2, 0]], [3, 4, 3, 1, -2, 1])
    found = hierarchical(given, hierarchy)
    assert found["top1_or_above"] == 2 / 6
    assert (found["top1_or_above_low"], found["top1_or_above_high"]) == wilson(2, 6)
    assert found["lca_height"] == pytest.approx((3 + 1 + 1) / 3)  # dog, cyprinid, cyprinid
    right = hierarchical(predictions([0, 1], [0, 1]), hierarchy)
    assert right["top1_or_above"] == 1.0 and "lca_height" not in right


def test_all_of_imagenet_has_one_hierarchy():
    goog = class_list("goog")
    hierarchy = Hierarchy.of(goog)
    assert hierarchy.heights.max() == 19
    first, second = np.random.default_rng(0).integers(0, len(goog), (2, 10_000))
    distances = hierarchy.distances(first, second)
    assert (distances[first != second] > 0).all() and distances.max() == 19
    with pytest.raises(ValueError, match="no common ancestor"):
        Hierarchy.of((*goog[:5], "n00000003"))


# --- in words ---


def result(**changes):
    own = {"views": 1, "images": 90, "top1": 0.5, "top1_low": 0.4, "top1_high": 0.6, "ece": 0.1}
    return {
        **{"data": "/data/set/shards", "split": "val", "images": 90, "average": "logits"},
        **{
            "fingerprint": "f" * 64,
            "step": 7,
            "protocols": {"center": own, "ten": {**own, "views": 10}},
        },
        "changes": {
            "ten": dict(gained=7, lost=2, gain=0.05, gain_low=0.01, gain_high=0.09, p=0.03)
        },
        **changes,
    }


def test_a_figure_of_the_split_that_selects_is_said_to_be_optimistic():
    here = {"data": "/data/set/shards", "split": "val", "fingerprint": "f" * 64}
    link, copy = {**here, "data": "/data/link"}, {**here, "data": "s3://bucket/set"}
    older = {"data": "/data/set/shards", "split": "val"}
    for on in (here, link, copy, older):
        assert selection(result(selected_on=on)).endswith("are optimistic."), on
        other = selection(result(selected_on={**on, "split": "minival"}))
        assert other == (
            "Top-1 on minival selects among the checkpoints of the run; the images of val have no"
            " part in it."
        )
    replaced = selection(result(selected_on={**here, "fingerprint": "e" * 64}))
    assert "of another shard set" in replaced and "unless that set has them" in replaced
    for unknown in ({**link, "fingerprint": None}, {**older, "data": "/data/link"}):
        assert selection(result(selected_on=unknown)).endswith("is not known.")
    assert "reports its last step" in selection(result(selected_on=None))
    assert selection(result(selected_on=None, step=None)) == selection(result()) == ""


def test_the_console_says_what_every_figure_is_of():
    shown = result_table(
        result(unreadable=[["a", "b"]], resized={"center": [256], "ten": [256, 288]})
    )
    assert re.search("\nten +256, 288 +10 +90 +0.5000", shown)
    assert shown.startswith(
        "split val of set, 90 images, 1 of them unreadable, which count as wrong, logits averaged"
    )
    assert "0.5000 [0.4000, 0.6000]" in shown and "+0.0500 [+0.0100, +0.0900]" in shown
    assert "Wilson's" in shown and "Tango's" in shown and "over the classes" not in shown
    facts = {"classes": 20, "thirds": {"tail": {"classes": 7, "fewest": 1, "most": 412}}}
    whole = result(classes={**facts, "left_out": ["head: why"]})
    whole["protocols"]["center"] |= {"tail": 0.25, "tail_low": 0.2, "tail_high": 0.3}
    whole["v2"] = result(split="test")
    shown = result_table(json.loads(json.dumps(whole)))
    row = r"tail \(7 classes with 1 to 412 training images\) +0.2500 \[0.2000, 0.3000\] +-"
    assert re.search(row, shown) and "left out: head: why" in shown
    assert "ImageNet-V2\nsplit test of set" in shown


def test_an_older_result_has_a_table():
    older = {"protocols": result()["protocols"], "changes": {}}
    assert "gain on" not in result_table(older) and "0.5000" in result_table(older)
    assert caption(result(average="probabilities")).endswith(
        "probabilities averaged over the crops of an image"
    )
