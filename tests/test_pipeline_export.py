"""The command that exports: what it refuses, what it checks, what it leaves, and its model card."""

import dataclasses
import importlib.util
import json
import shutil
import sys
import types

import pytest
import torch
from exports import SHAPE as MODEL
from exports import export, made_run
from libraries import library
from random_models import random_model
from safetensors.torch import load_file

from pipeline.evaluation.model import EvalModel
from pipeline.export import export as flow
from pipeline.export import google_npz, timm_folder
from pipeline.export.config import ExportConfig
from pipeline.export.formats import FORMATS, Format
from shards.dataset.classes import class_list
from vit.config import ViTConfig
from vit.weights import config_of, load_weights, save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

NPZ = ("--to", "npz")


@pytest.fixture
def google_run(tmp_path):
    """A run whose model Google's code has, and the model."""
    return made_run(tmp_path, model__gelu="tanh")


# --- what is refused ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--to", "npy"), "npy"),
        (("--to", "timm", "--layout", "big_vision"), "layout ('big_vision') has no effect on timm"),
        (("--to", "npz", "--head", "drop"), "it is for timm, transformers, onnx, torch"),
        (("--to", "npz", "--preprocess"), "it is for onnx, torch"),
        (("--to", "onnx", "--scheme", "weight"), "it is for int8"),
        (("--to", "timm", "--data", "nowhere"), "nowhere"),
        (("--to", "npz"), "gelu=tanh and this model exact"),
        (("--to", "int8"), "give --data"),
    ],
)
def test_bad_input_has_status_2_and_leaves_nothing(flags, words, tmp_path, capsys):
    path, _ = made_run(tmp_path)
    try:
        status = export(path, tmp_path / "out", *flags)
    except SystemExit as stop:  # tyro's own
        status = stop.code
    said = capsys.readouterr()
    assert status == 2 and words in " ".join((said.out + said.err).replace("│", "").split())
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("content", ["folder", "file"])
def test_a_place_that_is_not_empty_is_refused(content, google_run, tmp_path, capsys):
    out = tmp_path / "out"
    if content == "folder":
        out.mkdir()
    (out / "mine" if content == "folder" else out).write_text("mine")
    assert export(google_run[0], out, *NPZ) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert (out / "mine" if content == "folder" else out).read_text() == "mine"


def test_an_empty_folder_is_filled(google_run, tmp_path):
    (tmp_path / "out").mkdir()
    assert export(google_run[0], tmp_path / "out", *NPZ) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "classes.txt",
        "model.npz",
    }


@pytest.mark.parametrize(
    ("to", "settings", "words"),
    [
        ("timm", dict(model__pre_logits=True), "timm cannot have pre_logits=True"),
        ("transformers", dict(model__qk_norm=True), "cannot have qk_norm=True"),
        ("transformers", dict(model__pool="map"), "cannot have pool=map"),
        ("transformers", dict(model__registers=2), "cannot have registers with positions=True"),
        ("npz", dict(model__layer_scale=0.1), "cannot have layer_scale=0.1"),
    ],
)
def test_what_a_library_lacks_is_named(to, settings, words, tmp_path, capsys):
    path, _ = made_run(tmp_path, **settings)
    assert export(path, tmp_path / "out", "--to", to) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("to", "extra"), [("onnx", "onnx"), ("int8", "quant")])
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    to, extra, tmp_path, monkeypatch, capsys
):
    path, _ = made_run(tmp_path)
    real, needed = importlib.util.find_spec, FORMATS[to].needs
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in needed else real(name)
    )
    assert export(path, tmp_path / "out", "--to", to) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in needed)
    assert f"pip install 'vit-pretraining[{extra}]'" in error


# --- the check ---


def test_outputs_that_differ_fail_and_leave_nothing(google_run, tmp_path, monkeypatch, capsys):
    def wrong(path, model, *rest):
        with torch.no_grad():
            model.head.bias[3] += 0.01
        save_weights(path, model, *rest)
        with torch.no_grad():
            model.head.bias[3] -= 0.01

    monkeypatch.setattr(google_npz, "save_weights", wrong)
    assert export(google_run[0], tmp_path / "out", *NPZ) == 1
    error = capsys.readouterr().err
    assert "it was not kept" in error and "largest difference 1.0e-02" in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_export_that_is_interrupted_leaves_nothing(
    error, google_run, tmp_path, monkeypatch, capsys
):
    def cut_short(path, *rest):
        path.write_bytes(b"half")
        raise error("now")

    monkeypatch.setattr(google_npz, "save_weights", cut_short)
    assert export(google_run[0], tmp_path / "out", *NPZ) in (1, 130)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_outputs_that_are_no_numbers_fail(google_run, tmp_path, monkeypatch):
    def broken(path, model, *rest):
        model.head.bias.data[3] = torch.nan
        save_weights(path, model, *rest)
        model.head.bias.data[3] = 0.0

    monkeypatch.setattr(google_npz, "save_weights", broken)
    assert export(google_run[0], tmp_path / "out", *NPZ) == 1


def test_without_the_library_the_files_are_read_back_and_this_is_said(
    tmp_path, monkeypatch, caplog
):
    path, _ = made_run(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert export(path, tmp_path / "out", "--to", "timm") == 0
    said = "in this project, because timm is not installed: largest difference"
    assert said in caplog.text
    assert said in (tmp_path / "out" / "README.md").read_text()


def test_a_library_that_is_there_and_does_not_work_is_said_to_be(tmp_path, monkeypatch, caplog):
    library("transformers")  # its parts are imported when they are used
    path, _ = made_run(tmp_path)
    monkeypatch.setitem(sys.modules, FORMATS["transformers"].library, None)
    assert export(path, tmp_path / "out", "--to", "transformers") == 0
    assert "in this project, because transformers cannot be imported here (" in caplog.text


def test_the_check_uses_images_of_the_data(digits, google_run, tmp_path, caplog):
    assert export(google_run[0], tmp_path / "out", *NPZ, "--data", str(digits)) == 0
    assert f"16 images ({digits}, split val) in this project" in caplog.text


def test_data_of_the_run_is_used_where_it_can_be_read(digits, tmp_path, caplog):
    path, _ = made_run(tmp_path, model__gelu="tanh", data__dir=str(digits))
    assert export(path, tmp_path / "out", *NPZ) == 0
    assert f"16 images ({digits}, split val)" in caplog.text


def test_where_it_cannot_random_pixels_are_used_and_this_is_said(google_run, tmp_path, caplog):
    assert export(google_run[0], tmp_path / "out", *NPZ) == 0
    said = caplog.text
    assert "the data of the run cannot be read here" in said and "no-data" in said
    assert "16 images (random pixels)" in said


# --- what is written ---


def test_an_export_goes_to_a_store_whole_or_not_at_all(google_run, tmp_path, monkeypatch):
    out = tmp_path / "store" / "out"
    assert export(google_run[0], f"file://{out}", *NPZ) == 0
    names = {"README.md", "classes.txt", "model.npz"}
    assert {path.name for path in out.iterdir()} == names
    assert export(google_run[0], f"file://{out}", *NPZ) == 2
    real, sent = flow.remote.upload, []

    def failing(file, *rest):
        if sent:
            raise OSError("the store is full")
        sent.append(file.name)
        real(file, *rest)

    monkeypatch.setattr(flow.remote, "upload", failing)
    other = tmp_path / "store" / "other"
    assert export(google_run[0], f"file://{other}", *NPZ) == 1
    assert sent and not list(other.iterdir())


def test_an_export_states_what_the_run_computes(tmp_path):
    settings = dict(model__gelu="tanh", model__qkv_bias=False)
    settings |= dict(images__crop_pct=0.9, images__eval_resize="squash", loss__name="sigmoid")
    path, model = made_run(tmp_path, images__mean=(0.485, 0.456, 0.406), **settings)
    assert export(path, tmp_path / "out", "--to", "timm") == 0
    found, run = EvalModel.open(tmp_path / "out"), EvalModel.open(path)
    assert (found.classes, found.loss.name) == (run.classes, "sigmoid")
    for name in ("mean", "std", "crop_pct", "eval_resize", "eval_interpolation"):
        assert getattr(found.images, name) == getattr(run.images, name), name
    assert found.model == run.model
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()
    )


def test_without_the_head_the_features_are_exported(tmp_path):
    path, model = made_run(tmp_path, model__pre_logits=True, model__gelu="tanh")
    assert export(path, tmp_path / "out", "--to", "timm", "--head", "drop") == 0
    body = tmp_path / "out" / "model.safetensors"
    assert not [name for name in load_file(body) if name.startswith(("head.", "pre_logits."))]
    changes = dict(pre_logits=False, num_classes=None)
    assert config_of(body) == dataclasses.replace(model.config, **changes)
    other = random_model(dataclasses.replace(model.config, pre_logits=False), seed=1)
    load_weights(other, body, head="drop")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.pre_logits(other.features(images)), model.features(images))
    assert not (tmp_path / "out" / "classes.txt").exists()


def test_a_file_without_a_head_is_exported_without_one_alone(tmp_path, capsys):
    model = random_model(ViTConfig(**{k.removeprefix("model."): v for k, v in MODEL.items()}))
    save_weights(tmp_path / "body.safetensors", model, head="drop")
    assert export(tmp_path / "body.safetensors", tmp_path / "out", "--to", "timm") == 2
    assert "has no head" in capsys.readouterr().err
    flags = ("--to", "timm", "--head", "drop")
    assert export(tmp_path / "body.safetensors", tmp_path / "out", *flags) == 0
    found, body = (
        load_file(tmp_path / name) for name in ("out/model.safetensors", "body.safetensors")
    )
    assert found.keys() == body.keys()
    assert all(torch.equal(tensor, body[name]) for name, tensor in found.items())


def test_the_list_of_classes_is_one_that_other_commands_read(google_run, tmp_path):
    assert export(google_run[0], tmp_path / "out", *NPZ) == 0
    listed = class_list(str(tmp_path / "out" / "classes.txt"))
    assert listed == EvalModel.open(google_run[0]).classes


def test_the_architecture_that_config_json_names_is_timms_of_the_same_size():
    names = {
        size: timm_folder.architecture(ViTConfig.named(size))
        for size in ("Ti/16", "S/32", "B/16", "L/16", "H/14", "B/14", "g/14")
    }
    assert names == {
        "Ti/16": "vit_tiny_patch16_224",
        "S/32": "vit_small_patch32_224",
        "B/16": "vit_base_patch16_224",
        "L/16": "vit_large_patch16_224",
        "H/14": "vit_huge_patch14_224",
        "B/14": timm_folder.OTHER,
        "g/14": timm_folder.OTHER,
    }


# --- the model card ---

EVALUATED = {
    "data": "s3://bucket/in1k",
    "split": "val",
    "average": "logits",
    "protocols": {
        "center": dict(views=1, images=360, top1=0.9, top1_low=0.864, top1_high=0.927, top5=0.99),
        "five": dict(views=5, images=360, top1=0.91, top1_low=0.875, top1_high=0.936, top5=0.995),
    },
}


def card_of(path, tmp_path, *flags):
    """The text of the card of an export."""
    assert export(path, tmp_path / "out", *(flags or NPZ)) == 0
    return (tmp_path / "out" / "README.md").read_text()


def test_the_card_has_the_results_that_are_recorded_of_these_weights_alone(google_run, tmp_path):
    path, _ = google_run
    weights = EvalModel.open(path).sha256()
    for name, digest, top1 in (("a", weights, 0.9), ("b", "0" * 64, 0.1234)):
        folder = path / "evaluations" / name
        folder.mkdir(parents=True)
        result = json.loads(json.dumps(EVALUATED)) | {"weights_sha256": digest}
        result["protocols"]["center"]["top1"] = top1
        (folder / "result.json").write_text(json.dumps(result))
        if name == "a":
            real = dict(images=350, top1=0.95, top1_low=0.922, top1_high=0.968)
            result["real"] = {"labels": "real.json", "protocols": {"center": real, "five": real}}
            result["v2"] = {**EVALUATED, "data": "s3://bucket/v2", "split": "test"}
            bounds = {"mean_per_class_low": 0.85, "mean_per_class_high": 0.92}
            result["protocols"]["center"] |= {"mean_per_class": 0.89, **bounds}
            result |= {"step": 7, "selected_on": {"data": result["data"], "split": "minival"}}
            (folder / "result.json").write_text(json.dumps(result))
    text = card_of(path, tmp_path)
    real = "| in1k | val, ReaL labels | center (1) | - | 350 | 0.9500 [0.9220, 0.9680] | - | - |"
    assert real in text
    center = "| in1k | val | center (1) | - | 360 | 0.9000 [0.8640, 0.9270] | 0.9900 |"
    assert f"{center} 0.8900 [0.8500, 0.9200] |" in text
    five = "| five (5) | logits | 360 | 0.9100 [0.8750, 0.9360] | 0.9950 | - |"
    assert f"| in1k | val {five}" in text and f"| v2 | test, ImageNet-V2 {five}" in text
    assert "top-1 (Wilson 95 %)" in text
    assert "Top-1 on minival selects among the checkpoints of the run; the images of val" in text
    assert "0.1234" not in text and "bucket" not in text


def test_without_an_evaluation_the_card_says_so_or_gives_the_last_one_of_the_training(tmp_path):
    path, _ = made_run(tmp_path / "a", model__gelu="tanh")
    assert "No evaluation of these weights is recorded." in card_of(path, tmp_path / "a")
    path, _ = made_run(tmp_path / "b", model__gelu="tanh", metrics={"val/top1": 0.5})
    assert "on split val with one centre crop: val/top1 0.5000." in card_of(path, tmp_path / "b")


def test_the_card_names_the_preset_and_what_differs_from_it(google_run, tmp_path):
    text = card_of(google_run[0], tmp_path)
    assert "# demo, step 7" in text and "Settings that differ from the preset demo" in text
    assert '| `model.gelu` | `"tanh"` |' in text and "`optim.lr`" not in text
    assert "896 samples seen by step 7" in text and "f" * 64 in text
    assert str(tmp_path) not in text


def test_the_card_names_a_preset_that_takes_its_size_from_the_weights(tmp_path):
    path, _ = made_run(tmp_path, model__gelu="tanh", name="finetune-w16d2p8")
    assert "Settings that differ from the preset finetune (AugReg" in card_of(path, tmp_path / "a")
    path, _ = made_run(tmp_path / "b", model__gelu="tanh", name="mine")
    assert "Settings that differ from the defaults" in card_of(path, tmp_path / "b")


def test_no_path_of_a_setting_is_in_the_card(tmp_path):
    extra = dict(data__extra=["/home/me/secret/more"], data__weights=[1.0, 2.0])
    path, _ = made_run(tmp_path, model__gelu="tanh", init_from="/home/me/secret/base.npz", **extra)
    text = card_of(path, tmp_path)
    assert "Initial weights: base.npz." in text and '| `data.extra` | `["more"]` |' in text
    assert "/home/me" not in text


def test_the_card_of_features_says_whose_results_it_has(tmp_path):
    path, _ = made_run(tmp_path, metrics={"val/top1": 0.5})
    text = card_of(path, tmp_path, "--to", "timm", "--head", "drop")
    assert "Of the model with its head, which is not in this folder." in text
    assert "image-feature-extraction" in text


def test_the_card_of_a_copy_without_training_state_tells_the_training(google_run, tmp_path):
    (checkpoint,) = (google_run[0] / "checkpoints").iterdir()
    copy = google_run[0] / "init"
    copy.mkdir()
    for name in ("model.safetensors", "config.json", "meta.json"):
        shutil.copy(checkpoint / name, copy)
    text = card_of(copy, tmp_path)
    assert "896 samples seen by step 7" in text and "Trained with commit abc" in text


def test_the_card_names_data_without_its_place(digits, tmp_path):
    path, _ = made_run(tmp_path, model__gelu="tanh", data__dir=str(digits))
    text = card_of(path, tmp_path)
    assert "16 images (shards, split val) in this project" in text
    assert str(digits.parent) not in text


def test_the_card_says_what_imagenets_terms_say_of_models_with_its_classes(tmp_path):
    path, _ = made_run(tmp_path / "a", model__gelu="tanh")
    assert "ImageNet's terms" not in card_of(path, tmp_path / "a")
    classes = class_list("1k")[:10]
    path, _ = made_run(tmp_path / "b", model__gelu="tanh", classes=classes)
    text = card_of(path, tmp_path / "b")
    assert "only for non-commercial research and educational purposes" in " ".join(text.split())
    assert "10 classes, all of them in 1k" in text


def test_a_file_of_weights_has_a_card_that_claims_nothing(tmp_path):
    model = random_model(ViTConfig(**{k.removeprefix("model."): v for k, v in MODEL.items()}))
    save_weights(tmp_path / "a.safetensors", model, "timm")
    text = card_of(tmp_path / "a.safetensors", tmp_path, "--to", "timm")
    assert "does not say how it was trained" in text
    assert "No evaluation of these weights is recorded." in text


def plant(monkeypatch, opened):
    """A format of tests alone, whose files are opened by a function."""
    module = types.ModuleType("planted_format")
    module.write = lambda source, folder, config: torch.save(
        source.model.state_dict(), folder / "model.bin"
    )
    module.opened = opened
    module.usage = lambda source, config: "print('planted')\n"
    monkeypatch.setitem(sys.modules, "planted_format", module)
    row = Format(summary="a planted format", module="planted_format", library=None)
    monkeypatch.setitem(FORMATS, "planted", row)


def test_a_format_is_a_module_and_a_row(google_run, tmp_path, monkeypatch, caplog):
    plant(monkeypatch, lambda source, folder, config: source.outputs)
    assert export(google_run[0], tmp_path / "out", "--to", "planted") == 0
    assert "a planted format" in caplog.text
    assert "print('planted')" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "model.bin").exists()


def test_outputs_of_another_number_fail(google_run, tmp_path, monkeypatch, capsys):
    plant(monkeypatch, lambda source, *rest: lambda crops: source.outputs(crops)[:, :-1])
    assert export(google_run[0], tmp_path / "out", "--to", "planted") == 1
    assert "outputs (16, 9) instead of (16, 10)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_options_of_every_format_are_settings():
    names = {item.name for item in dataclasses.fields(ExportConfig)}
    assert all(set(row.options) <= names for row in FORMATS.values())
