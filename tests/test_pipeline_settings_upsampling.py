"""Shards of images that are too small for a run are refused; all others train."""

import logging

import numpy as np
import pytest
from PIL import Image
from test_shards_sides import indexed

from pipeline.settings.budget import Budget
from pipeline.settings.presets import PRESETS, find_preset
from pipeline.settings.upsampling import check_sides
from pipeline.train.job import prepare
from shards.build.config import BuildConfig
from shards.build.pack import build
from vit.config import ImageConfig
from vit.images import eval_view


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Shards as they are built by default, shrunk to 256 pixels, from images of 400 and of 120."""
    folder = tmp_path_factory.mktemp("packed")
    for number in range(20):
        wnid, side = f"n0144076{number // 10}", 400 if number % 5 else 120
        (folder / "images" / wnid).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (side, side + 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / wnid / f"{wnid}_{number}.JPEG")
    build([folder / "images"], folder / "set", BuildConfig(val_per_class=2))
    return str(folder / "set")


def run(preset, data, **settings):
    return find_preset(preset).replace({"data.dir": data, "init_from": None, **settings})


def test_shards_of_256_pixels_are_refused_for_384(packed):
    with pytest.raises(ValueError, match="too small") as raised:
        prepare(run("in1k-finetune-s16", packed))
    for part in (
        *(f"train of {packed}", "model.image_size (384)", "256 (99 %) pixels, of 16 images"),
        *("100% are enlarged, 1.50 times in the median", "--resize-short 384 or more"),
        *("--keep-bytes", "--data.allow-upsampling"),
    ):
        assert part in str(raised.value), part


def test_small_images_that_are_allowed_are_told_in_a_warning(packed, tmp_path, caplog):
    allowed = {"data.allow_upsampling": True, "epochs": 1e5, "runs_dir": str(tmp_path)}
    with caplog.at_level(logging.WARNING):
        job = prepare(run("in1k-finetune-s16", packed, **allowed))
    assert job.train.samples == 16
    (train, val) = (record.getMessage() for record in caplog.records)
    assert f"train of {packed}" in train and f"val of {packed}" in val
    assert "100% are enlarged, 1.50 times in the median" in train


def test_shards_of_256_pixels_train_at_224(packed, tmp_path, caplog):
    prepare(run("in1k-s32-300ep", packed, runs_dir=str(tmp_path)))
    assert not caplog.records


@pytest.mark.parametrize(
    ("size", "sides", "large_enough"),
    [
        (224, [224] * 100, True),  # imagenet21k_resized, although evaluation resizes to 256
        (224, [100] * 60 + [256] * 40, True),  # most images are small by nature
        (384, [375] * 92 + [640] * 8, True),  # originals
        (384, [320] * 100, False),
        (384, [100] * 60 + [256] * 40, False),
        (512, [375] * 60 + [500] * 32 + [600] * 8, True),
        (64, [32] * 10, False),
    ],
)
def test_shards_are_refused_if_almost_no_image_is_large_enough(
    tmp_path, caplog, size, sides, large_enough
):
    shards = indexed(tmp_path / "set", [sides])
    config = find_preset("in1k-s16-90ep").replace({"model.image_size": size})
    if large_enough:
        check_sides(config, shards, "train")
    else:
        with pytest.raises(ValueError, match=rf"image_size \({size}\)"):
            check_sides(config, shards, "train")
    assert not caplog.records


def test_plan_tells_what_the_run_needs_and_what_the_shards_have(packed, tmp_path):
    def pixels(config):
        plan = str(Budget(config, gpu="H100", mfu=0.4))
        (line,) = (line for line in plan.splitlines() if line.startswith("pixels"))
        return line

    small = pixels(run("in1k-finetune-s16", packed))
    assert "at least 384 pixels" in small and f"{packed}: shorter side 120 (5 %), 256" in small
    assert "100% are enlarged, 1.50 times" in small and "TOO SMALL" in small
    suited = pixels(run("in1k-s16-90ep", packed))
    assert "at least 224 pixels" in suited and "evaluation resizes it to 256" in suited
    assert "25% are enlarged, 1.87 times" in suited and "TOO SMALL" not in suited
    absent = pixels(run("in1k-s16-90ep", str(tmp_path / "in1k")))
    assert "at least 224 pixels" in absent and "cannot be read from here" in absent
    small_extra = str(tmp_path / "extra")
    indexed(tmp_path / "extra", [[64]])
    both = pixels(run("in1k-s16-90ep", packed, **{"data.extra": [small_extra]}))
    assert f"{small_extra}: shorter side 64" in both and both.endswith(
        "TOO SMALL, training refuses it"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_preset_says_how_large_its_images_must_be(name):
    size = PRESETS[name].config.model.image_size
    assert f"shorter side of at least {size} pixels" in str(PRESETS[name])


def test_evaluation_resizes_to_the_side_that_is_told():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    config = ImageConfig(crop_pct=0.875)
    assert config.eval_side(224) == 256
    assert (eval_view(pixels, config, 224) == pixels[16:240, 16:240]).all()
