"""An image that cannot be read counts as wrong, is named, and ends nothing."""

import csv
import json
import logging
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.data.dataset import Dataset
from pipeline.data.feed import NodeFeed
from pipeline.evaluation.evaluate import evaluate_model, sample_keys
from pipeline.evaluation.examples import chosen
from pipeline.evaluation.linear_probe import LinearProbe
from pipeline.evaluation.logistic import Rows
from pipeline.evaluation.metrics import METRICS, Predictions, summary
from pipeline.evaluation.model import EvalModel
from pipeline.evaluation.predictions import PredictionStore
from pipeline.evaluation.training_loop import evaluate_share
from pipeline.evaluation.unreadable import named_faults, texts, without_answers
from pipeline.settings.presets import find_preset
from vit.model import ViT
from vit.weights import save_safetensors

SHAPE = {"model.width": 32, "model.depth": 1, "model.mlp_width": 64, "model.heads": 2}
BAD = 7  # position of the damaged image


@pytest.fixture(scope="module")
def damaged(digits, tmp_path_factory):
    """The val split of the digits, of which one image is cut to zeros."""
    folder = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(digits, folder)
    dataset = Dataset.open((str(folder),), "val", 32)
    ((subset, shard), *_) = dataset.shards
    offset = subset.shards.read_index(shard)["offset"][BAD].as_py()
    path = folder / shard.name
    data = bytearray(path.read_bytes())
    data[offset : offset + 100] = bytes(100)
    path.write_bytes(data)
    return dataset


@pytest.fixture(scope="module")
def config():
    return find_preset("demo").replace({"model.num_classes": 10, "micro_batch": 64, **SHAPE})


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    return ViT(config.model)


def evaluated(dataset, model, config, folder, *crops):
    """The result of an evaluation of a model, in the folder "out"."""
    save_safetensors(folder / "model.safetensors", model.state_dict())
    eval_model = EvalModel.open(folder / "model.safetensors")
    changes = {"images": config.images, "model": config.model, "precision": config.precision}
    settings = eval_model.evaluation(crops=crops, classes="data", **changes)
    return evaluate_model(eval_model, settings, dataset, folder / "out", lambda done, total: None)


@pytest.mark.ray
def test_an_evaluation_names_it_and_counts_it_as_wrong(
    damaged, model, config, ray_cluster, tmp_path, caplog
):
    with caplog.at_level(logging.WARNING):
        result = evaluated(damaged, model, config, tmp_path, "five")
    key = sample_keys(damaged)[BAD]
    ((name, reason),) = result["unreadable"]
    assert name == key and reason.startswith("val-00000.tar: no readable image in")
    assert caplog.text.count(key) == 1 and "1 of 360 images of val cannot be read" in caplog.text
    assert json.loads((tmp_path / "out/result.json").read_text())["unreadable"] == [[name, reason]]
    table = pq.read_table(tmp_path / "out/predictions.parquet").to_pylist()
    label = table[BAD]["classes"][0]
    for protocol in ("center", "five"):
        row = {field: table[BAD][f"{protocol}/{field}"] for field in ("top", "confidence", "loss")}
        assert row["top"] == [] and row["confidence"] == 0 and math.isnan(row["loss"])
        hits = sum(row["classes"][0] == (row[f"{protocol}/top"] or [-1])[0] for row in table)
        losses = [row[f"{protocol}/loss"] for row in table if row["key"] != key]
        figures = result["protocols"][protocol]
        assert figures["images"] == 360 and figures["top1"] == pytest.approx(hits / 360)
        assert figures["loss"] == pytest.approx(np.mean(losses))
    with (tmp_path / "out/classes.csv").open() as file:
        counted = {row["wnid"]: int(row["images"]) for row in csv.DictReader(file)}
    assert counted[damaged.classes[label]] == 36


@pytest.mark.ray
def test_the_training_loop_goes_on_and_says_which_it_is(
    damaged, model, config, ray_cluster, alone, tmp_path
):
    said = []
    found = evaluate_share(model, config, damaged, NodeFeed.alone(), lambda: None, said.append)
    ((text,),) = [said]
    assert text.startswith("counts as wrong, and has no loss: sample ") and "val-00000.tar" in text
    result = evaluated(damaged, model, config, tmp_path)
    assert result["protocols"]["center"]["top1"] == found["val/top1"] > 0
    assert math.isfinite(found["val/loss"])


def test_an_image_without_an_answer_is_wrong_has_no_loss_and_is_not_shown():
    block = {
        "a/top": np.array([[1, 0], [1, 0], [0, 1]], np.int32),
        "a/confidence": np.array([0.9, 0.8, 0.7]),
        "a/loss": np.array([0.1, 0.2, 4.0]),
        "position": np.arange(3),
    }
    found = without_answers(block, np.array([True, False, False]))
    assert found["a/top"].tolist() == [[-2, -2], [1, 0], [0, 1]]
    assert found["position"].tolist() == [0, 1, 2]
    predictions = Predictions(
        labels=np.array([[1], [1], [1]]),
        top=found["a/top"],
        confidence=found["a/confidence"],
        loss=found["a/loss"],
    )
    figures = summary(predictions)
    assert (figures["top1"], figures["top5"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert figures["loss"] == pytest.approx(2.1) and METRICS.keys() <= figures.keys()
    assert [position for _, position in chosen(predictions, predictions)] == [2, 1]


def test_a_split_of_which_no_image_can_be_read_is_refused(caplog):
    keys = ["a", "b"]
    faults = {1: "sample b of s.tar: broken", 0: "sample a of s.tar: cut"}
    with pytest.raises(ValueError, match=r"none of the 2 images of val.*a \(s.tar: cut\); b"):
        named_faults(faults, keys, "val", "is wrong")
    many = {n: f"sample {n} of s.tar: cut" for n in range(25)}
    found = named_faults(many, [str(n) for n in range(30)], "val", "is wrong")
    assert len(found) == 25 and found[3] == ["3", "s.tar: cut"]
    assert "9 (s.tar: cut); and 15 more" in caplog.text and "10 (" not in caplog.text
    assert named_faults({}, keys, "val", "is wrong") == []
    assert texts(np.array(["", "x"])) == ["x"]


def features(first, count, bad=()):
    positions = np.arange(first, first + count)
    return {
        "position": positions,
        "labels": positions[:, None] % 3,
        "features": np.stack([positions, positions**2], axis=1).astype(np.float32),
        "fault": np.array(["broken" if n in bad else "" for n in positions]),
    }


def test_faults_outlive_the_process_and_leave_with_their_unit(tmp_path):
    store = PredictionStore(tmp_path, {}, images=8, batch=4)
    store.add(features(0, 4, bad=(2,)))
    store.add(features(4, 4, bad=(5, 6)))
    again = PredictionStore(tmp_path, {}, images=8, batch=4)
    assert again.faults() == {2: "broken", 5: "broken", 6: "broken"}
    assert again.faults(0) == {2: "broken"}
    assert again.readable(1)["position"].tolist() == [4, 7]
    assert again.read()["position"].tolist() == list(range(8))
    again.add(features(4, 4))
    assert again.faults() == {2: "broken"}


def test_a_fit_is_that_of_the_images_that_can_be_read(tmp_path):
    store = PredictionStore(tmp_path, {}, images=8, batch=4)
    store.add(features(0, 4, bad=(2,)))
    store.add(features(4, 4, bad=(5, 6)))
    held_out = np.arange(8) % 4 == 3
    units = map(store.readable, range(store.num_units))
    rows = Rows.of(units, held_out, 3, torch.device("cpu"))
    assert (rows.count(whole=True), rows.count(whole=False)) == (5, 3)
    positions = np.array([0, 1, 3, 4, 7], float)
    both = np.stack([positions, positions**2])
    np.testing.assert_allclose(rows.mean, both.mean(1))
    np.testing.assert_allclose(rows.variance, both.var(1), rtol=1e-6)


def test_a_linear_probe_names_those_of_both_splits_and_needs_some_others(
    digits, damaged, tmp_path, caplog
):
    probe = LinearProbe(
        eval_model=None,
        settings=SimpleNamespace(train_split="train", split="val"),
        train=Dataset.open((str(digits),), "train", 32),
        eval=damaged,
        held_out=np.arange(1437) % 2 == 0,
        weights="",
    )
    found = probe._unreadable([{5: "cut"}, {BAD: "broken"}])
    assert [reason for _, reason in found["train_unreadable"]] == ["cut"]
    assert found["unreadable"] == [[sample_keys(damaged)[BAD], "broken"]]
    assert "each is left out of the fit" in caplog.text
    with pytest.raises(ValueError, match="too few images of train can be read: 718"):
        probe._unreadable([{n: "cut" for n in range(0, 1437, 2)}, {}])
