"""Linear probes: scikit-learn's accuracy on the same features, and a checkpoint for every use."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write
from safetensors.torch import load_file
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from pipeline.__main__ import main
from pipeline.checkpoint.local import Checkpoint
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.evaluation import linear_probe, probe_fits
from pipeline.evaluation.config import LinearProbeConfig
from pipeline.evaluation.linear_probe import LinearProbe, selecting
from pipeline.evaluation.logistic import Rows, search
from pipeline.evaluation.model import EvalModel
from pipeline.evaluation.predictions import PredictionStore
from pipeline.evaluation.probe_fits import reader_of, search_in_task
from pipeline.evaluation.result_table import selection
from pipeline.settings.presets import find_preset
from support.settings import InvalidSettings
from vit.model import ViT
from vit.weights import load_weights, save_weights

SHAPE = {"model.width": 32, "model.depth": 1, "model.mlp_width": 64, "model.heads": 2}


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    """A checkpoint of three other classes: random weights, and a tanh layer before the head."""
    config = find_preset("demo").replace(
        {"model.num_classes": 3, "model.pre_logits": True, **SHAPE}
    )
    torch.manual_seed(0)
    return write(
        tmp_path_factory.mktemp("runs") / "run" / "checkpoints",
        60,
        model=ViT(config.model).state_dict(),
        config=config,
        classes=("n1", "n2", "n3"),
    )


@pytest.fixture(scope="module")
def probed(body, digits, ray_cluster):
    """The folder of a probe, made by the command, and its result."""
    assert main(["probe", str(body), "--data", str(digits), "--batch", "256"]) == 0
    (folder,) = (body.parent.parent / "probes").iterdir()
    return folder, json.loads((folder / "result.json").read_text())


def opened(body, digits, **changes) -> LinearProbe:
    config = EvalModel.open(body).probe().replace({"data": str(digits), "batch": 256, **changes})
    return LinearProbe.open(EvalModel.open(body), config)


def columns(probe: LinearProbe, split: str) -> dict[str, np.ndarray]:
    """The features and labels of a split, by position."""
    return probe.store(split).read()


@pytest.mark.ray
def test_accuracy_is_that_of_scikit_learn_on_the_same_features(probed, body, digits):
    folder, result = probed
    train, test = (columns(opened(body, digits), split) for split in ("train", "val"))
    assert train["features"].shape == (1437, 32) and test["features"].shape == (360, 32)
    model = LogisticRegression(C=1 / result["strength"], max_iter=20_000, tol=1e-8)
    model.fit(train["features"].astype(np.float64), train["labels"][:, 0])
    expected = model.score(test["features"].astype(np.float64), test["labels"][:, 0])
    found = result["protocols"]["center"]
    assert found["top1"] == pytest.approx(expected, abs=2 / 360)
    assert found["top1"] > 0.8  # a random body is no bad one for digits
    hits = round(found["top1"] * 360)
    interval = binomtest(hits, 360).proportion_ci(method="wilson")
    assert (found["top1_low"], found["top1_high"]) == pytest.approx((interval.low, interval.high))


@pytest.mark.ray
def test_features_are_the_input_of_the_head_of_each_image_once(probed, body, digits):
    from pipeline.data.reader import SampleReader, View
    from vit.batch import normalise

    probe = opened(body, digits)
    found = columns(probe, "val")
    view = View(images=probe.settings.images, size=32, protocols=("center",))
    order = probe.eval.order(seed=None)
    rows = SampleReader(dataset=probe.eval, view=view)(order.spans(0, 360))
    model = probe.eval_model.load(probe.settings.model, head="drop")
    with torch.no_grad():
        images = normalise(torch.from_numpy(rows["images"][:, 0]), probe.settings.images)
        expected = model.features(images).numpy()
    np.testing.assert_allclose(found["features"], expected, atol=1e-5)
    assert (found["labels"] == rows["labels"]).all()


@pytest.mark.ray
def test_result_tells_protocol_search_and_what_selected(probed):
    _, result = probed
    assert "2103.00020" in result["protocol"]
    assert result["train_images"] == 1437 and 0.05 < result["held_out"] / 1437 < 0.15
    assert result["split"] == "val" and result["train_split"] == "train"
    best = max(result["search"], key=lambda fit: (fit["top1"], -fit["loss"], fit["strength"]))
    assert best["strength"] == result["strength"]


def test_a_tenth_is_held_out_by_the_hash_of_the_bytes(body, digits):
    from shards.dataset.format import open_set

    probe = opened(body, digits)
    shards = open_set(str(digits))
    hashes = [
        digest
        for shard in shards.manifest.splits["train"]
        for digest in shards.read_index(shard)["sha256"].to_pylist()
    ]
    expected = [int(digest[:16], 16) / 2**64 < 0.1 for digest in hashes]
    assert probe.held_out.tolist() == expected == selecting(probe.train).tolist()


@pytest.mark.ray
def test_evaluate_of_the_checkpoint_gives_the_figure_of_the_probe(probed, digits, tmp_path):
    folder, result = probed
    out = ["--out", str(tmp_path / "evaluation"), "--crops", "center"]
    assert main(["evaluate", result["probed"], "--data", str(digits), *out]) == 0
    again = json.loads((tmp_path / "evaluation/result.json").read_text())
    assert again["protocols"]["center"]["top1"] == result["protocols"]["center"]["top1"]
    assert selection(again) == ""  # no run has chosen among its steps
    loss = result["protocols"]["center"]["loss"]
    assert again["protocols"]["center"]["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.ray
def test_checkpoint_has_the_body_unchanged_and_the_classes_of_the_data(probed, body, tmp_path):
    folder, result = probed
    found = EvalModel.open(folder)
    checkpoint = Checkpoint.open(found.path)
    checkpoint.verify()
    assert str(checkpoint.path) == result["probed"]
    assert checkpoint.classes == tuple(f"n{digit:08d}" for digit in range(10))
    assert checkpoint.metrics["val/top1"] == result["protocols"]["center"]["top1"]
    assert found.classes == checkpoint.classes and not found.model.pre_logits
    before = EvalModel.open(body).load(EvalModel.open(body).model).state_dict()
    for name, tensor in found.load(found.model).state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(tensor, before[name]), name
    # fine-tuning starts from it, head and all
    start = ViT(found.model)
    load_weights(start, found.path, head="keep")
    assert start.head.weight.any()


@pytest.mark.ray
def test_the_card_of_an_export_tells_body_protocol_and_result_of_the_probe(
    probed, body, digits, tmp_path
):
    folder, result = probed
    flags = ["--to", "timm", "--out", str(tmp_path / "out")]
    assert main(["export", str(folder), *flags]) == 0
    text = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert f"the body is that of {body.name}, step 60, and was not trained further" in text
    assert "2103.00020" in text and f"of {result['train_images']:,} images" in text
    values = result["protocols"]["center"]
    assert f"| val | center (1) | - | 360 | {values['top1']:.4f} [" in text
    copy = shutil.copytree(result["probed"], tmp_path / "copy")  # without the result
    assert main(["export", str(copy), *flags[:-1], str(tmp_path / "again")]) == 0
    again = " ".join((tmp_path / "again" / "README.md").read_text().split())
    assert "By the probe, on split val with one centre crop: " in again
    assert f"val/top1 {values['top1']:.4f}" in again
    for wrong in ("samples seen", "the defaults", "training loop", "preset"):
        assert wrong not in text and wrong not in again


@pytest.mark.ray
def test_what_is_on_disk_is_not_computed_again(probed, body, digits, ray_cluster, tmp_path):
    first, result = probed
    probe = opened(body, digits, out=str(tmp_path))
    for split in ("train", "val"):
        probe.store(split)  # makes the folder
        for part in sorted((first / "features" / split / "parts").iterdir())[::2]:
            shutil.copy(part, tmp_path / "features" / split / "parts")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    done: dict[str, list[int]] = {"train": [], "val": []}
    again = probe.run(lambda split: lambda now, total: done[split].append(now))
    assert min(done["train"]) > 3 * 256 and max(done["train"]) == 1437
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again["protocols"] == result["protocols"] and again["search"] == result["search"]
    # a finished probe only shows its result
    shown = probe.run(lambda split: pytest.fail("features were computed"))
    assert shown == json.loads(json.dumps(again))


@pytest.mark.ray
def test_a_search_in_a_task_is_that_of_this_process(ray_cluster, tmp_path):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 80)
    x = (labels[:, None] + random.normal(0, 1, (80, 4))).astype(np.float32)
    held_out = np.arange(80) % 5 == 0
    store = PredictionStore(tmp_path, {}, images=80, batch=20)
    faults = np.where(np.arange(80) % 9 == 4, "broken", "")
    x[faults != ""] = 1e6  # what stands there has no part in the fit
    for rows in np.split(np.arange(80), 4):
        columns = {"features": x[rows], "labels": labels[rows, None], "position": rows}
        store.add({**columns, "fault": faults[rows]})
    units = map(store.readable, range(store.num_units))
    here = list(search(Rows.of(units, held_out, 3, torch.device("cpu"))))
    assert abs(here[-1].head).max() > 0.1
    task = search_in_task.remote(reader_of(store), store.num_units, held_out, 3)
    there = [ray_cluster.get(ref) for ref in task]
    assert [fit.strength for fit in here] == [fit.strength for fit in there]
    np.testing.assert_allclose(there[-1].head, here[-1].head, rtol=1e-4)


@pytest.mark.ray
def test_a_probe_that_another_machine_finished_is_taken_from_the_store(
    body, digits, tmp_path, monkeypatch, ray_cluster
):
    uri, place = f"file://{tmp_path}/store/run", tmp_path / "store" / "run"
    about = Checkpoint.open(body)
    config = find_preset("demo").replace(
        {"model.num_classes": 3, "model.pre_logits": True, **SHAPE}
    )
    weights = load_file(body / "model.safetensors")
    write(
        tmp_path / "own",
        60,
        f"{uri}/checkpoints",
        model=weights,
        config=config,
        classes=about.classes,
    )
    arguments = ["probe", uri, "--data", str(digits), "--batch", "256"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    assert main(arguments) == 0
    RunFolder.at(uri).push("probes")
    (stored,) = (place / "probes").glob("*/result.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    monkeypatch.setattr(linear_probe, "predict_all", lambda *_: pytest.fail("computed anew"))
    assert main(arguments) == 0
    (copy,) = (tmp_path / "second").rglob(f"{stored.parent.name}/result.json")
    before, after = (json.loads(path.read_text()) for path in (stored, copy))
    Checkpoint.open(Path(after["probed"])).verify()
    for name in ("probed", "checkpoint"):  # the record of the run names places of this machine
        assert Path(before.pop(name)).is_relative_to(tmp_path / "first")
        assert Path(after.pop(name)).is_relative_to(tmp_path / "second")
    assert before == after


@pytest.mark.parametrize("num_units", [1, 2, 3, 9])
def test_units_are_sent_in_order_and_few_at_a_time(num_units, monkeypatch):
    asked = []

    class Reader:
        class block:
            @staticmethod
            def remote(unit):
                asked.append(unit)
                return {"position": np.array([unit])}

    monkeypatch.setattr(probe_fits.ray, "get", lambda columns: columns)
    for unit, columns in enumerate(probe_fits.sent(Reader, num_units)):
        assert columns["position"] == [unit]
        assert len(asked) <= unit + 1 + probe_fits.AHEAD
    assert asked == list(range(num_units)) and unit == num_units - 1


@pytest.mark.ray
def test_a_folder_of_another_model_is_refused(probed, digits, tmp_path):
    folder, _ = probed
    config = find_preset("demo").replace({"model.num_classes": 3, **SHAPE})
    save_weights(tmp_path / "other.safetensors", ViT(config.model))
    with pytest.raises(ValueError, match="differs in .*weights.*--out"):
        opened(tmp_path / "other.safetensors", digits, out=str(folder)).store("train")


def test_a_body_without_a_head_can_be_probed_but_not_evaluated(digits, tmp_path, capsys):
    config = find_preset("demo").replace({"model.num_classes": 3, **SHAPE})
    file = tmp_path / "body.safetensors"
    save_weights(file, ViT(config.model), head="drop")
    probe = LinearProbe.open(
        EvalModel.open(file, needs_head=False),
        EvalModel.open(file, needs_head=False).probe().replace({"data": str(digits)}),
    )
    assert probe.settings.model.num_classes == 10
    assert probe.folder.parent.name == "probes"
    assert main(["evaluate", str(file), "--data", str(digits)]) == 2
    assert "python -m pipeline probe fits one" in capsys.readouterr().err


def test_bad_input_is_refused_before_ray_starts(body, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    save_weights(
        tmp_path / "x.safetensors",
        ViT(find_preset("demo").replace({"model.num_classes": 3, **SHAPE}).model),
    )
    for arguments, message in (
        ((), "probe needs a CHECKPOINT"),
        ((str(tmp_path / "none"),), "is not there"),
        ((str(tmp_path / "x.safetensors"),), "give --data"),
        ((str(body), "--data", str(tmp_path)), "it has no manifest.json"),
        ((str(body), "--data", str(digits), "--train-split", "half"), "has no split 'half'"),
        ((str(body), "--data", str(digits), "--train-split", "val"), "another split than split"),
        ((str(body), "--data", str(digits), "--out", "s3://b/x"), "('s3://b/x') must be a folder"),
        ((str(body), "--data", str(digits), "--model.image-size", "33"), "multiple of patch_size"),
    ):
        assert main(["probe", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_too_few_images_to_select_with_are_refused(body, digits, monkeypatch):
    monkeypatch.setattr(linear_probe, "HELD_OUT", 1e-9)
    with pytest.raises(ValueError, match="1437 images, of which 0 are held out.*use more images"):
        opened(body, digits)


def test_what_selects_is_never_what_is_reported():
    with pytest.raises(InvalidSettings, match="train_split.*another split"):
        LinearProbeConfig(data="d", split="train")
