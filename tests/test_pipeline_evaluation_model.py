"""How images are prepared for published weights."""

import hashlib
import json
import shutil

import pytest
import torch
from checkpoints import CONFIG, write
from safetensors.torch import load_file

from pipeline.data.dataset import Dataset
from pipeline.evaluation.evaluate import selected_on
from pipeline.evaluation.model import EvalModel, as_published, preparation
from vit.config import ImageConfig, ViTConfig
from vit.model import ViT
from vit.weights import save_weights

SHAPE = dict(image_size=32, patch_size=8, width=16, depth=2, mlp_width=32, heads=2, num_classes=10)
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SQUASHED = dict(eval_resize="squash", crop_pct=1.0, eval_interpolation="bilinear")


def model_of(**settings):
    return ViT(ViTConfig(**{**SHAPE, **settings}))


@pytest.mark.parametrize(
    "dialect, settings, images",
    [
        ("timm", dict(), dict()),
        (
            "deit3",
            dict(layer_scale=1.0, class_position=False),
            dict(IMAGENET, crop_pct=1.0, eval_interpolation="bicubic"),
        ),
        (
            "dinov2",
            dict(layer_scale=1.0),
            dict(IMAGENET, crop_pct=0.875, eval_interpolation="bicubic"),
        ),
        ("miil", dict(qkv_bias=False), dict(SQUASHED, mean=(0.0,) * 3, std=(1.0,) * 3)),
        ("npz-vit", dict(), dict()),
    ],
)
def test_images_are_prepared_as_the_authors_of_the_weights_do(dialect, settings, images, tmp_path):
    file = tmp_path / ("a.npz" if dialect == "npz-vit" else "a.safetensors")
    save_weights(file, model_of(**settings), dialect)
    if file.suffix == ".safetensors":  # as published, without our metadata
        torch.save(load_file(file), file.with_suffix(".pth"))
        file = file.with_suffix(".pth")
    assert EvalModel.open(file).images == ImageConfig(**images)


def test_a_timm_config_changes_only_what_it_states(tmp_path):
    save_weights(tmp_path / "model.safetensors", model_of(qkv_bias=False), "miil")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}))
    images = EvalModel.open(tmp_path / "model.safetensors").images
    assert images == ImageConfig(**SQUASHED, mean=(0.1, 0.2, 0.3), std=(1.0,) * 3)


VIT_PROCESSOR = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 3,
    "size": {"height": 16, "width": 16},
}
BIT_PROCESSOR = {
    "crop_size": {"height": 24, "width": 24},
    "do_center_crop": True,
    "resample": 3,
    "size": {"shortest_edge": 32},
}
STATED = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    "processor, side, images",
    [
        (None, 32, SQUASHED),
        (VIT_PROCESSOR, 16, dict(SQUASHED, eval_interpolation="bicubic", **STATED)),
        ({"size": 16, "resample": 2}, 16, SQUASHED),
        ({"do_normalize": False}, 32, dict(SQUASHED, mean=(0.0,) * 3, std=(1.0,) * 3)),
        (BIT_PROCESSOR, 24, dict(crop_pct=0.75, eval_interpolation="bicubic")),
        (
            {"size": 32, "do_center_crop": True, "crop_size": 24, "resample": 2},
            24,
            dict(crop_pct=0.75, eval_interpolation="bilinear"),
        ),
    ],
)
def test_the_preprocessor_config_of_transformers_is_followed(processor, side, images, tmp_path):
    save_weights(tmp_path, model_of(), "transformers")
    if processor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = EvalModel.open(tmp_path)
    assert found.images == ImageConfig(**images) and found.model.image_size == side
    assert found.load(found.model)(torch.zeros(1, 3, side, side)).shape == (1, 10)


def test_impossible_files_beside_the_weights_are_refused(tmp_path):
    save_weights(tmp_path, model_of(), "transformers")
    processor = tmp_path / "preprocessor_config.json"
    for text, words in (
        ("{", "preprocessor_config.json is not JSON"),
        ('{"size": {"height": 16, "width": 32}}', "is not square"),
        ('{"size": 12}', "multiple of patch_size"),
    ):
        processor.write_text(text)
        with pytest.raises(ValueError, match=words):
            EvalModel.open(tmp_path)
    processor.unlink()
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"id2label": {"0": "cat"}}))
    with pytest.raises(ValueError, match="lists 1 classes, but the head beside it has 10"):
        EvalModel.open(tmp_path)


def test_the_hash_of_an_old_folder_of_transformers_is_that_of_its_file(tmp_path):
    save_weights(tmp_path, model_of(), "transformers")
    file = tmp_path / "pytorch_model.bin"
    torch.save(load_file(tmp_path / "model.safetensors"), file)
    (tmp_path / "model.safetensors").unlink()
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert EvalModel.open(tmp_path).sha256() == expected


def test_a_copy_of_a_checkpoint_has_no_run_and_needs_no_training_state(tmp_path):
    config = CONFIG.replace({"runs_dir": str(tmp_path), "model.num_classes": 10})
    model = ViT(config.model).state_dict()
    path = write(tmp_path / "run" / "checkpoints", 7, config=config, model=model)
    assert EvalModel.open(path).run_dir == tmp_path / "run"
    copy = tmp_path / "run" / "init"
    copy.mkdir()
    for name in ("model.safetensors", "config.json", "meta.json"):
        shutil.copy(path / name, copy)
    found = EvalModel.open(copy)
    assert found.run_dir is None and found.step == 7
    assert found.data == EvalModel.open(path).data


def test_the_set_that_selects_is_known_by_its_fingerprint(digits, tmp_path):
    (tmp_path / "link").symlink_to(digits)

    def selecting(step, **data):
        changes = {f"data.{name}": value for name, value in data.items()}
        config = CONFIG.replace({"data.select_split": "minival", **changes})
        path = write(tmp_path / "run" / "checkpoints", step, config=config)
        return selected_on(EvalModel.open(path))

    # of one set, the checkpoint has it; of several, it has the hash of all
    found = selecting(1, dir="/gone")
    assert found == {"data": "/gone", "split": "minival", "fingerprint": "f" * 64}
    found = selecting(2, dir=str(tmp_path / "link"), extra=(str(digits),))
    assert found["fingerprint"] == Dataset.open((str(digits),), "val", 32).fingerprint
    assert selecting(3, dir="/gone", extra=(str(digits),))["fingerprint"] is None


@pytest.mark.parametrize("interpolation", ["area", "linear", "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["short", "squash"])
def test_what_an_export_states_is_read_as_it_was(interpolation, resize):
    images = ImageConfig(eval_interpolation=interpolation, eval_resize=resize, crop_pct=0.95)
    stated = json.loads(json.dumps(preparation(images)))
    assert as_published(stated, ImageConfig(), CONFIG.model) == (images, CONFIG.model)
