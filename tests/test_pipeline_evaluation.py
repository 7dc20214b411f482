"""Evaluation: crops where they belong, every image once, figures that are right by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from checkpoints import write
from safetensors.numpy import save_file
from scipy.stats import binomtest

import vit.crops
import vit.images
from pipeline.__main__ import main
from pipeline.data.dataset import Dataset
from pipeline.data.reader import SampleReader, View
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.evaluate import RESULT, evaluate_model, named, real_figures
from pipeline.evaluation.metrics import (
    Predictions,
    calibration,
    calibration_error,
    comparison,
    confusions,
    per_class,
    relabelled,
    summary,
)
from pipeline.evaluation.model import EvalModel, head_columns
from pipeline.evaluation.predict import Evaluator, Scorer, average
from pipeline.evaluation.predictions import (
    PredictionStore,
    protocol_predictions,
    unit_images,
    whole_units,
)
from pipeline.evaluation.result_table import result_table
from pipeline.evaluation.workers import predict_all
from pipeline.settings.presets import find_preset
from support.files import write_json
from vit.batch import normalise
from vit.config import ImageConfig, LossConfig, ViTConfig
from vit.crops import crop_views
from vit.loss import LINKS
from vit.model import ViT
from vit.registry import num_views
from vit.weights import save_npz, save_safetensors

CPU = torch.device("cpu")


# --- crops ---


def coordinates(height: int, width: int) -> np.ndarray:
    """An image (H, W, 3) whose every pixel says where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y % 256, x % 256, 2 * (y // 256) + (x // 256)], axis=2).astype(np.uint8)


def place(view: np.ndarray) -> tuple[int, int]:
    """Top and left of a view of `coordinates`."""
    y, x, high = (int(v) for v in view[0, 0])
    return y + 256 * (high // 2), x + 256 * (high % 2)


@pytest.fixture
def unscaled(monkeypatch):
    """Resizing gives `coordinates` of the size that it should have, and marks whole squares."""

    def resize(pixels, config, side):
        height, width = pixels.shape[:2]
        scale = side / min(height, width)
        return coordinates(round(height * scale), round(width * scale))

    def interpolate(pixels, height, width, config):
        return np.full((height, width, 3), 255, np.uint8)

    for module in (vit.images, vit.crops):
        monkeypatch.setattr(module, "resize", resize)
        monkeypatch.setattr(module, "interpolate", interpolate)


@pytest.mark.parametrize(
    ("protocol", "places"),
    [
        # 400 x 600 pixels -> short side 256: 256 x 384; 224 of it
        ("center", [(16, 80)]),
        # the central square, from 64 on: its corners and centre
        ("five", [(0, 64), (0, 96), (32, 64), (32, 96), (16, 80)]),
        ("five-torchvision", [(0, 0), (0, 160), (32, 0), (32, 160), (16, 80)]),
        # short side 224: 224 x 336
        ("three", [(0, 0), (0, 56), (0, 112)]),
    ],
)
def test_crops_lie_where_they_are_worked_out_by_hand(protocol, places, unscaled):
    views = crop_views(np.zeros((400, 600, 3), np.uint8), ImageConfig(), 224, protocol)
    assert [place(view) for view in views] == places
    tall = crop_views(np.zeros((600, 400, 3), np.uint8), ImageConfig(), 224, protocol)
    assert {place(view) for view in tall} == {(x, y) for y, x in places}


def test_ten_is_five_and_their_mirror_images(unscaled):
    image = np.zeros((400, 600, 3), np.uint8)
    five, ten = (crop_views(image, ImageConfig(), 224, name) for name in ("five", "ten"))
    assert (ten[:5] == five).all() and (ten[5:] == five[:, :, ::-1]).all()


def test_inception_144_is_googlenets_4_scales_3_squares_6_crops_and_mirror(unscaled):
    views = crop_views(np.zeros((400, 600, 3), np.uint8), ImageConfig(), 224, "inception-144")
    assert len(views) == 144 == num_views("inception-144")
    assert (views[72:] == views[:72, :, ::-1]).all()
    squares = {256: (0, 64, 128), 288: (0, 72, 144), 320: (0, 80, 160), 352: (0, 88, 176)}
    corner = {256: 32, 288: 64, 320: 96, 352: 128}  # side - 224
    expected = []
    for side, lefts in squares.items():
        far, middle = corner[side], corner[side] // 2
        for left in lefts:
            inside = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
            expected += [(y, left + x) for y, x in inside] + ["whole"]
    assert ["whole" if view.min() == 255 else place(view) for view in views[:72]] == expected


def test_random_crops_differ_between_images_and_never_between_runs():
    view = View(images=ImageConfig(), size=32, protocols=("random-4",))
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8)
    assert (view(pixels, 5) == view(pixels, 5)).all()
    assert (view(pixels, 5) != view(pixels, 6)).any()


def test_144_views_of_an_image_cost_one_decode(digits, monkeypatch):
    dataset = Dataset.open((str(digits),), "val", 32)
    view = View(images=ImageConfig(), size=32, protocols=("center", "ten", "inception-144"))
    decoded = []
    monkeypatch.setattr(
        "pipeline.data.reader.decode", lambda data: decoded.append(1) or vit.images.decode(data)
    )
    block = SampleReader(dataset=dataset, view=view)(dataset.order(seed=None).spans(0, 1))
    assert block["images"].shape == (1, 155, 32, 32, 3)
    assert len(decoded) == 1


# --- averaging ---


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_averages_of_logits_and_probabilities_are_those_of_numpy():
    crops = np.random.default_rng(1).normal(0, 3, (6, 10, 7))
    given = torch.from_numpy(crops)
    by_logits = average(given, "logits", LINKS["softmax"])
    np.testing.assert_allclose(by_logits, crops.mean(1), rtol=1e-12)
    by_probability = average(given, "probabilities", LINKS["softmax"]).numpy()
    np.testing.assert_allclose(softmax(by_probability), softmax(crops).mean(1), rtol=1e-10)
    np.testing.assert_allclose(by_probability, np.log(softmax(crops).mean(1)), rtol=1e-10)
    sigmoid = 1 / (1 + np.exp(-crops))
    found = average(given, "probabilities", LINKS["sigmoid"]).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), sigmoid.mean(1), rtol=1e-10)
    np.testing.assert_allclose(
        LINKS["sigmoid"].confidence(torch.from_numpy(found)), sigmoid.mean(1).max(1), rtol=1e-10
    )


def test_the_two_averages_can_rank_classes_differently():
    # two crops are mildly for class 0, the third is sure of class 1
    crops = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [-5.0, 0.0]]])
    assert average(crops, "logits", LINKS["softmax"]).argmax() == 1
    assert average(crops, "probabilities", LINKS["softmax"]).argmax() == 0


# --- the scorer ---


def test_an_image_with_several_classes_is_a_hit_on_any_of_them():
    logits = torch.tensor([[[0.0, 1.0, 5.0, 2.0]]]).repeat(3, 1, 1)
    labels = torch.tensor([[2, -1], [0, 2], [3, 1]])
    dataset = dataclasses.make_dataclass("S", ["classes"])(("n1", "n2", "n3", "n4"))
    settings = EvaluateConfig(data="", crops=("center",))
    scorer = Scorer(Evaluator(dataset=dataset, settings=settings), CPU)
    scorer.loss = lambda z, t: (z * t).sum(1)
    given = scorer(logits, labels)
    predictions = Predictions(
        labels=labels.numpy(),
        top=given["center/top"].numpy(),
        confidence=given["center/confidence"].numpy(),
        loss=given["center/loss"].numpy(),
    )
    assert predictions.hits(1).tolist() == [True, True, False]
    assert predictions.hits(2).tolist() == [True, True, True]
    assert predictions.top[0].tolist() == [2, 3, 1, 0, -2]  # four classes: the fifth place is none
    assert predictions.loss.tolist() == [5.0, 5.0, 3.0]


def test_a_head_of_other_classes_is_mapped_by_wnid_and_absent_ones_are_named():
    head, data = ("n3", "n1", "n9", "n2"), ("n1", "n2", "n4", "n3")
    columns, missing = head_columns(head, data)
    assert columns.tolist() == [1, 3, -1, 0] and missing == ("n4",)
    dataset = dataclasses.make_dataclass("S", ["classes"])(data)
    evaluator = Evaluator(
        dataset=dataset, settings=EvaluateConfig(data="", crops=("center",)), columns=columns
    )
    logits = torch.tensor([[[9.0, 1.0, 50.0, 2.0]]]).repeat(3, 1, 1)  # of n9, no class of the data
    given = Scorer(evaluator, CPU)(logits, torch.tensor([[3, -1], [2, -1], [0, -1]]))
    assert given["center/top"][0].tolist() == [3, 1, 0, -2, -2]  # n3, n2, n1 in the data's numbers
    loss = given["center/loss"].numpy()
    expected = -np.log(softmax(np.array([1.0, 2.0, 9.0])))
    np.testing.assert_allclose(loss[[0, 2]], expected[[2, 0]], atol=1e-6)
    assert np.isnan(loss[1])  # an image of n4 cannot be answered, and has no loss


def test_heads_without_a_common_class_are_refused():
    with pytest.raises(ValueError, match="none in common"):
        head_columns(("n1",), ("n2",))
    assert head_columns(("n1", "n2"), ("n1", "n2")) == (None, ())


# --- figures ---


def answers_of(labels, top, confidence=None, loss=None) -> Predictions:
    labels, top = np.array(labels), np.array(top)
    return Predictions(
        labels=labels.reshape(len(labels), -1),
        top=top.reshape(len(top), -1),
        confidence=np.ones(len(top)) if confidence is None else np.array(confidence, float),
        loss=np.zeros(len(top)) if loss is None else np.array(loss, float),
    )


def test_summary_counts_hits_and_leaves_images_without_a_loss_out_of_the_loss():
    own = answers_of([0, 1, 2, 3], [[0, 9], [9, 1], [9, 9], [3, 9]], loss=[1, 2, math.nan, 6])
    found = summary(own)
    assert (found["images"], found["top1"], found["top5"], found["loss"]) == (4, 0.5, 0.75, 3.0)
    assert found["loss_low"] < 3.0 < found["loss_high"]


def test_calibration_error_is_that_of_a_hand_calculation():
    # bins (0.533, 0.6]: two images at 0.55 and 0.6, one right; (0.866, 0.933]: two at 0.9, both
    # right: (2 * |0.575 - 0.5| + 2 * |0.9 - 1|) / 4
    own = answers_of([0, 0, 0, 0], [0, 1, 0, 0], confidence=[0.55, 0.6, 0.9, 0.9])
    assert calibration_error(own) == pytest.approx((2 * 0.075 + 2 * 0.1) / 4)


def test_classes_and_confused_pairs_are_counted():
    own = answers_of([[0, -1], [0, -1], [1, 2], [1, -1], [1, -1]], [[1], [1], [2], [0], [1]])
    counts, right = per_class(own, 4)
    assert counts.tolist() == [2, 3, 1, 0] and right.tolist() == [0, 1, 1, 0]
    assert confusions(own) == [(0, 1, 2), (1, 0, 1)]


def test_comparison_says_what_changed():
    before = answers_of([0] * 10, [0] * 5 + [1] * 5)
    after = answers_of([0] * 10, [1] + [0] * 8 + [1])
    found = comparison(before, after)
    assert (found["gained"], found["lost"]) == (4, 1)
    assert found["gain"] == pytest.approx(0.3)
    assert found["p"] == pytest.approx(binomtest(1, 5).pvalue)
    assert found["gain_low"] < 0.3 < found["gain_high"]
    same = comparison(before, before)
    assert same["p"] == 1.0 and same["gain_low"] < -0.2 and same["gain_high"] > 0.2


def test_an_image_that_could_not_be_read_is_wrong_and_no_more():
    own = answers_of([0, 1, 1], [[0], [1], [-2]], [0.9, 0.7, 0.0], [1.0, 2.0, math.nan])
    found = summary(own)
    assert (found["images"], found["top1"], found["loss"]) == (3, 2 / 3, 1.5)
    assert sum(count for count, _, _ in calibration(own)) == 2
    assert found["ece"] == pytest.approx((0.1 + 0.3) / 2)
    assert confusions(own) == [] and [*map(list, per_class(own, 2))] == [[1, 2], [1, 1]]


def test_real_labels_replace_the_originals_and_empty_ones_leave_an_image_out(tmp_path):
    classes = named(tuple(str(n) for n in range(1000)))  # as ImageNet-V2's folders are named
    assert classes[0] == "n01440764"
    keys = [f"n01440764/ILSVRC2012_val_{n:08d}" for n in (3, 1, 2)]
    (tmp_path / "real.json").write_text(json.dumps([[7], [], [1, 5]]))
    own = answers_of([0, 0, 0], [5, 0, 0])
    found = real_figures(tmp_path / "real.json", keys, {"center": own}, classes)["protocols"]
    assert found["center"]["images"] == 2  # the image numbered 2 has no label
    assert found["center"]["top1"] == 0.5  # number 3 is a 1 or a 5
    with pytest.raises(ValueError, match="ILSVRC2012_val_00000001"):
        real_figures(tmp_path / "real.json", ["cat"], {"center": own}, classes)
    assert relabelled(own, {0: [5]}).hits(1).tolist() == [True]


# --- predictions on disk ---


def block(first: int, count: int, width: int = 1) -> dict:
    return {
        "position": np.arange(first, first + count),
        "labels": np.zeros((count, width), np.int64),
        "fault": np.full(count, ""),
        "center/loss": np.arange(first, first + count, dtype=float),
    }


def test_only_missing_units_are_shared_out_and_all_are_read_in_order(tmp_path):
    parts = PredictionStore(tmp_path, {"weights": "a"}, images=1000, batch=2)
    assert (parts.unit, parts.num_units) == (2, 500)
    assert parts.shares(3)[0] == [(0, 334)] and parts.shares(1) == [[(0, 1000)]]
    parts.add(block(6, 2, width=3))
    again = PredictionStore(tmp_path, {"weights": "a"}, images=1000, batch=2)
    assert again.shares(1) == [[(0, 6), (8, 1000)]]
    for start, stop in again.shares(1)[0]:
        for first in range(start, stop, 2):
            again.add(block(first, min(2, stop - first)))
    found = again.read()
    assert (found["position"] == np.arange(1000)).all() and found["labels"].shape == (1000, 3)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("images", [50_000, 1_281_167, 14_197_122, 400_000_000])
@pytest.mark.parametrize("batch", [1, 256, 1000])
def test_units_are_several_for_each_of_512_workers_and_bounded(images, batch):
    unit = unit_images(images, batch)
    assert unit % batch == 0 and unit <= 1 << 14
    assert unit == batch or images / unit > 3 * 512 * 0.5
    assert images / unit < 2100 or unit > (1 << 14) - batch


def test_a_folder_keeps_the_units_that_it_was_begun_with(tmp_path):
    write_json(tmp_path / "identity.json", {"weights": "a", "unit": 6})
    parts = PredictionStore(tmp_path, {"weights": "a"}, images=20, batch=2)
    assert (parts.unit, parts.num_units) == (6, 4) and parts.shares(1) == [[(0, 20)]]


def test_a_worker_hands_over_whole_units():
    blocks = [block(0, 4), block(4, 2, width=2), block(12, 4), block(16, 1)]
    units = list(whole_units(iter(blocks), 6))
    assert [each["position"].tolist() for each in units] == [
        [0, 1, 2, 3, 4, 5],
        [12, 13, 14, 15, 16],
    ]
    assert units[0]["labels"].shape == (6, 2)


def test_a_folder_of_another_evaluation_is_refused(tmp_path):
    PredictionStore(tmp_path, {"weights": "a", "crops": ("ten",)}, images=10, batch=2)
    with pytest.raises(ValueError, match="differs in weights; give another --out"):
        PredictionStore(tmp_path, {"weights": "b", "crops": ("ten",)}, images=10, batch=2)


def test_an_image_that_is_there_twice_is_an_error(tmp_path):
    parts = PredictionStore(tmp_path, {}, images=4, batch=2)
    rows = {name: column for name, column in block(0, 2).items() if name != "fault"}
    for unit in range(2):
        save_file(rows, parts.path(unit))
    with pytest.raises(RuntimeError, match="2 were not evaluated and 2 more than once"):
        parts.read()


# --- models in files ---

SMALL = ViTConfig(
    image_size=32, patch_size=8, width=128, depth=2, mlp_width=256, heads=2, num_classes=10
)


def test_the_shape_of_published_weights_is_read_off_them(tmp_path):
    for changes in ({}, {"pool": "mean"}, {"pool": "map"}, {"pre_logits": True}):
        config = dataclasses.replace(SMALL, **changes)
        save_safetensors(tmp_path / "a.safetensors", ViT(config).state_dict())
        assert EvalModel.open(tmp_path / "a.safetensors").model == config
    model = ViT(SMALL)
    save_npz(tmp_path / "google.npz", model)
    found = EvalModel.open(tmp_path / "google.npz").model
    assert found == dataclasses.replace(SMALL, gelu="tanh")
    save_safetensors(tmp_path / "model.safetensors", model.state_dict())
    cfg = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "crop_pct": 0.9}
    cfg |= {"interpolation": "bicubic", "input_size": [3, 32, 32], "crop_mode": "squash"}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    eval_model = EvalModel.open(tmp_path / "model.safetensors")
    assert eval_model.images.mean == (0.4, 0.5, 0.6) and eval_model.images.crop_pct == 0.9
    assert eval_model.images.eval_interpolation == "bicubic"
    assert eval_model.images.eval_resize == "squash"
    with pytest.raises(ValueError, match="head of 10 classes.*--classes"):
        eval_model.head_classes(None, ("n1",) * 10)
    assert eval_model.head_classes("data", tuple("abcdefghij")) == tuple("abcdefghij")


def test_a_file_without_a_vit_is_refused(tmp_path):
    save_safetensors(tmp_path / "x.safetensors", {"conv.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="not the weights of a ViT: patch_embed"):
        EvalModel.open(tmp_path / "x.safetensors")


# --- the whole of it ---


@pytest.fixture(scope="module")
def eval_model(digits, tmp_path_factory):
    """A small model, trained on the digits for some seconds, as a checkpoint."""
    folder = tmp_path_factory.mktemp("run") / "run" / "checkpoints"
    train = Dataset.open((str(digits),), "train", 32)
    view = View(images=ImageConfig(), size=32, protocols=("center",))
    rows = SampleReader(dataset=train, view=view)(train.order(seed=None).spans(0, train.samples))
    images, labels = torch.from_numpy(rows["images"][:, 0]), torch.from_numpy(rows["labels"][:, 0])
    shape = {"model.width": 64, "model.depth": 2, "model.mlp_width": 128, "model.heads": 2}
    config = find_preset("demo").replace({"model.num_classes": 10, **shape})
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices, on cores that others use too
    model = ViT(config.model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        batch = torch.randint(len(images), (128,))
        logits = model(normalise(images[batch], config.images))
        torch.nn.functional.cross_entropy(logits, labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    path = write(
        folder,
        60,
        model=model.state_dict(),
        state={},
        config=config,
        classes=train.classes,
        fingerprint=train.fingerprint,
    )
    return EvalModel.open(path)


@pytest.fixture(scope="module")
def dataset(digits):
    return Dataset.open((str(digits),), "val", 32)


def quiet(done: int, total: int) -> None:
    assert done <= total


@pytest.mark.ray
def test_predictions_are_the_same_bits_with_1_and_3_workers(
    eval_model, dataset, ray_cluster, tmp_path
):
    found = []
    for workers in (1, 3):
        # 7 images a batch: neither the 360 images nor the units divide
        settings = eval_model.evaluation(crops=("three",), batch=28, workers=workers)
        parts = PredictionStore(tmp_path / str(workers), {}, images=dataset.samples, batch=7)
        evaluator = Evaluator(dataset=dataset, settings=settings)
        predict_all(evaluator, eval_model.load(settings.model), parts, quiet)
        found.append(parts.read())
    alone, together = found
    assert len(alone["position"]) == 360
    for name, column in alone.items():
        assert (column == together[name]).all(), name


@pytest.mark.ray
def test_protocols_differ_side_by_side_and_ten_equals_ten_crops_one_by_one(
    eval_model, dataset, ray_cluster, tmp_path
):
    settings = eval_model.evaluation(
        crops=("ten", "inception-144"), batch=2 * 155, workers=2, average="probabilities"
    )
    result = evaluate_model(eval_model, settings, dataset, tmp_path, quiet)
    protocols = result["protocols"]
    assert protocols["center"]["top1"] > 0.6
    assert len({protocols[name]["loss"] for name in protocols}) == 3
    assert protocols["ten"]["top1"] != protocols["center"]["top1"]
    assert protocols["ten"]["mean_per_class"] == pytest.approx(protocols["ten"]["top1"])  # 36 each
    shown = result_table(result)
    assert all(
        word in shown for word in ("center", "ten", "inception-144", "ECE", "gain on center")
    )
    for name in (RESULT, "classes.csv", "predictions.parquet", "sheet.json"):
        assert (tmp_path / name).stat().st_size > 100
    # the same by hand: every crop in a batch of its own
    model, images = eval_model.load(settings.model), settings.images
    view = View(images=images, size=32, protocols=("ten",))
    rows = SampleReader(dataset=dataset, view=view)(dataset.order(seed=None).spans(0, 40))
    parts = PredictionStore.__new__(PredictionStore)  # as they lie there
    parts.folder, parts.images = tmp_path, 360
    parts.num_units = len(list((tmp_path / "parts").iterdir()))
    found = protocol_predictions(parts.read(), "ten")
    for number in range(40):
        with torch.no_grad():
            logits = np.concatenate(
                [
                    model(normalise(torch.from_numpy(crop[None]), images)).numpy()
                    for crop in rows["images"][number]
                ]
            )
        mean = softmax(logits.astype(np.float64)).mean(0)
        assert found.top[number, 0] == mean.argmax()
        assert found.loss[number] == pytest.approx(-np.log(mean[rows["labels"][number, 0]]), 1e-4)


@pytest.mark.ray
def test_an_evaluation_that_was_cut_short_is_resumed(eval_model, dataset, ray_cluster, tmp_path):
    settings = eval_model.evaluation(crops=("three",), batch=32, workers=2)
    whole = evaluate_model(eval_model, settings, dataset, tmp_path, quiet, sheet=False)
    parts = sorted((tmp_path / "parts").iterdir())
    kept = {path.name: path.stat().st_mtime_ns for path in parts[:10]}
    for path in parts[10:]:
        path.unlink()
    done = []
    again = evaluate_model(
        eval_model, settings, dataset, tmp_path, lambda d, t: done.append(d), sheet=False
    )
    assert {name: whole[name] for name in ("protocols", "changes", "confusions")} == {
        name: again[name] for name in ("protocols", "changes", "confusions")
    }
    assert min(done) > 0 and max(done) == 360  # it began where it was
    for name, time in kept.items():
        assert (tmp_path / "parts" / name).stat().st_mtime_ns == time


def test_multi_label_and_sigmoid_models_are_judged_by_their_own_loss():
    dataset = dataclasses.make_dataclass("S", ["classes"])(("n1", "n2", "n3"))
    settings = EvaluateConfig(data="", crops=("center",), loss=LossConfig(name="sigmoid"))
    given = Scorer(Evaluator(dataset=dataset, settings=settings), CPU)(
        torch.tensor([[[1.0, -2.0, 0.5]]]), torch.tensor([[0, 2]])
    )
    z, t = np.array([1.0, -2.0, 0.5]), np.array([1, 0, 1])
    p = 1 / (1 + np.exp(-z))
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum()
    assert given["center/loss"].item() == pytest.approx(expected, 1e-5)
    assert given["center/confidence"].item() == pytest.approx(p[0])


# --- the command ---


def test_bad_input_is_refused_before_ray_starts(eval_model, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    save_safetensors(tmp_path / "x.safetensors", ViT(SMALL).state_dict())
    on_digits = (str(eval_model.path), "--data", str(digits))
    for arguments, message in (
        ((str(tmp_path / "none"),), "is not there"),
        (
            (str(eval_model.path), "--crops", "eleven"),
            "unknown crops 'eleven'; known: center, three",
        ),
        (
            (str(eval_model.path), "--crops", "three", "--images.eval-resize", "squash"),
            "crops 'three' are squares along the long side",
        ),
        ((str(eval_model.path), "--data", str(tmp_path)), "it has no manifest.json"),
        ((*on_digits, "--real", "none.json"), "give ReaL's real.json"),
        ((*on_digits, "--v2", str(tmp_path)), "it has no manifest.json"),
        ((str(tmp_path / "x.safetensors"),), "--data"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
