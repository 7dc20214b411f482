"""What a run will cost, against figures worked by hand and published ones."""

import pytest
from test_shards_sides import indexed

from pipeline.settings.budget import START_S, Budget, core_rate
from pipeline.settings.presets import find_preset
from vit.config import ViTConfig


@pytest.mark.parametrize(
    ("size", "classes", "millions"),
    # recipes of the ViT and AugReg papers, as timm and the released files count them
    [
        ("Ti/16", 1000, 5.717),
        ("S/32", 21843, 30.904),
        ("S/16", 1000, 22.051),
        ("B/16", 1000, 86.568),
        ("L/16", 21843, 325.691),
        ("H/14", 1000, 632.046),
    ],
)
def test_parameters_are_the_published_ones(size, classes, millions):
    count = ViTConfig.named(size, num_classes=classes).num_parameters
    assert round(count / 1e6, 3) == millions


def test_so400m_has_the_parameters_of_siglip():
    # timm counts vit_so400m_patch14_siglip_224 and its variant with mean pooling as 427.68, 412.44
    counts = [ViTConfig.named("So400m/14", pool=pool).num_parameters for pool in ("map", "mean")]
    assert [round(count / 1e6, 2) for count in counts] == [427.68, 412.44]


def test_figures_are_those_worked_by_hand(tmp_path):
    config = find_preset("in21k-b16-30ep").replace({"data.dir": str(tmp_path / "in21k")})
    budget = Budget(config, gpu="H100", mfu=0.5)
    # 50 images of each of the 19,167 classes of winter21 are held out of 13,153,500
    assert budget.samples == 12_195_150 == 13_153_500 - 50 * 19_167
    assert budget.steps == 89_320  # 30 * 12,195,150 / 4,096 = 89,319.95
    # 17.56 GMAC an image with its attention and 1,000 classes, as published; the last block makes
    # one of its 197 tokens after the keys and values; the head has 19,167 classes
    saved = 196 * (768**2 + 2 * 768 * 3072) + 2 * 196 * 197 * 768
    per_image = 3 * 2 * (17.56e9 - saved + (19_167 - 1000) * 768)
    assert budget.flops == pytest.approx(per_image * 89_320 * 4096, rel=2e-3)
    assert budget.train_s == pytest.approx(budget.flops / (8 * 989e12 * 0.5))
    # centre crops every 5,000 steps and at the end, where ten crops follow, at a third of a step
    views = 958_350 * (18 + 1 + 10)
    per_image = budget.train_s / budget.images
    assert budget.seconds == pytest.approx(budget.train_s + views * per_image / 3 + START_S)
    assert "as published" in str(budget)


def test_data_without_a_published_size_must_be_there(tmp_path):
    config = find_preset("demo").replace({"data.dir": str(tmp_path / "mine")})
    with pytest.raises(FileNotFoundError, match="mine"):
        Budget(config, gpu="H100", mfu=0.4)


@pytest.mark.parametrize(
    ("preset", "settings", "gpu", "reason"),
    [
        ("demo", {}, "H100", "in fp32"),
        ("demo", {"device": "cpu"}, "H100", "on CPUs"),
        ("demo", {"precision": "bf16"}, "H100", "no model narrower than 192"),
        ("in21k-s16-30ep", {"data.dir": "in21k", "device": "cpu"}, "H100", "on CPUs"),
        ("in21k-s16-30ep", {"data.dir": "in21k"}, "V100", "V100 has no arithmetic in bf16"),
        ("in21k-s16-30ep", {"data.dir": "in21k"}, "T4", "T4 has no arithmetic in bf16"),
    ],
)
def test_a_time_that_is_not_known_is_not_promised(preset, settings, gpu, reason):
    budget = Budget(find_preset(preset).replace(settings), gpu=gpu)
    shown = str(budget)
    assert budget.seconds is None and f"time      unknown: {reason}" in shown.replace(
        "the peaks of GPUs are known in bf16, and the run is ", ""
    ).replace("the run is ", "")
    (input_row,) = (line for line in shown.splitlines() if line.startswith("input"))
    assert "a core decodes about" in input_row and " cores" not in input_row


def test_time_is_estimated_by_model_and_gpu():
    def hours(preset, gpu):
        return Budget(find_preset(preset).replace({"data.dir": "in21k"}), gpu=gpu).seconds / 3600

    small = Budget(find_preset("in21k-s32-300ep").replace({"data.dir": "in21k"}), gpu="H100")
    assert 0.12 < small.mfu < 0.25
    assert small.images / small.train_s < 300_000
    assert hours("in21k-b16-30ep", "H100-PCIe") > 1.2 * hours("in21k-b16-30ep", "H100")
    assert "estimated from published throughputs" in str(small)


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 1448),
        ({"images.randaugment_layers": 2}, 792),
        ({"model.image_size": 384}, 370),
        ({"model.image_size": 384, "images.randaugment_layers": 2}, 300),
    ],
)
def test_decoding_depends_on_the_augmentation_and_the_size(settings, rate):
    config = find_preset("in21k-s16-30ep").replace({"data.dir": "in21k", **settings})
    assert core_rate(config)[0] == rate


@pytest.mark.parametrize(
    ("preset", "kind", "ratio", "at384"),
    # CPU time of a view, plain to this kind, in one process in turn
    [
        ("in21k-s16-deit3", "simple crop, 3-Augment, colour jitter", 0.231, 0.242),
        ("in21kp-b16-miil", "squash crop, Cutout, RandAugment", 0.376, 0.392),
    ],
)
def test_each_recipe_has_the_rate_of_its_own_augmentations(preset, kind, ratio, at384):
    config = find_preset(preset)
    config = config.replace({"data.dir": config.data.dir.removeprefix("data/")})
    rate, condition = core_rate(config)
    assert rate == round(1448 * ratio) and f"with {kind}, from" in condition
    assert core_rate(config.replace({"model.image_size": 384}))[0] == round(370 * at384)


def test_a_rate_of_augmentations_that_was_not_measured_is_not_told():
    settings = {"data.dir": "in21k", "images.color_jitter": 0.4, "images.random_erasing": 0.1}
    shown = str(Budget(find_preset("in21k-s16-30ep").replace(settings), gpu="H100"))
    assert "not measured with inception crop, colour jitter, random erasing" in shown
    assert "a core decodes about" not in shown


def test_decoding_depends_on_the_images_in_the_shards(tmp_path):
    indexed(tmp_path / "set", [[256] * 9])
    large = {"model.image_size": 384, "images.randaugment_layers": 2}
    config = find_preset("in21k-s16-30ep").replace({"data.dir": str(tmp_path / "set"), **large})
    assert core_rate(config)[0] == 600


def test_a_near_miss_in_the_name_of_a_gpu_is_suggested():
    with pytest.raises(
        ValueError, match="plan_gpu 'H100-PCI' is unknown; did you mean 'H100-PCIe'"
    ):
        Budget(find_preset("demo"), gpu="H100-PCI")


def test_a_head_that_is_kept_is_evaluated_once_more_before_the_first_step():
    config = find_preset("demo").replace({"init_from": "runs/x"})
    views = {}
    for how in ("drop", "map"):
        budget = Budget(config.replace({"init_head": how}), gpu="H100")
        views[how] = budget.eval_views
    assert views["map"] - views["drop"] == budget.eval_samples
