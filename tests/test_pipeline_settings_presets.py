"""Presets are the published recipes: settings, files, schedules, accuracies, evaluation."""

import json
import re

import numpy as np
import published_recipes as published
import pytest
import torch
from PIL import Image

from pipeline.settings.budget import Budget
from pipeline.settings.presets import PRESETS, find_preset, nearest_preset
from pipeline.settings.recipes import augreg
from vit.config import ImageConfig, ViTConfig
from vit.draws import Draws
from vit.model import ViT
from vit.optim import learning_rate
from vit.train_crops import train_crop
from vit.weights import load_weights

RELEASED = {
    line.split()[0]: line.split()[1:] for line in published.AUGREG_RELEASED.split("\n")[1:-1]
}
FILE = re.compile(
    r"(?P<size>\w+)_(?P<patch>\d+)-(?P<data>i1k|i21k)-(?P<epochs>\d+)ep-lr_(?P<lr>[\d.]+)"
    r"-aug_(?P<aug>\w+)-wd_(?P<wd>[\d.]+)-do_(?P<do>[\d.]+)-sd_(?P<sd>[\d.]+)"
    r"(--imagenet2012-steps_20k-lr_(?P<tuning_lr>[\d.]+)-res_(?P<res>\d+))?\.npz"
)
AUGREG_FILES = [name for name, preset in PRESETS.items() if FILE.match(preset.checkpoint or "")]
# what the weights of a start must share with the model that they initialise
SAME_MODEL = (
    *("patch_size", "width", "depth", "mlp_width", "heads", "pool", "positions", "registers"),
    *("class_position", "layer_scale", "qkv_bias", "qk_norm", "fc_norm", "norm_eps", "gelu"),
)
AUGREG = [
    f"in21k-{size}-{n}ep" for n in (30, 300) for size in ("ti16", "s32", "s16", "b32", "b16", "l16")
]


def augmentation(config):
    """RandAugment layers and magnitude, mixup."""
    layers = config.images.randaugment_layers
    return layers, config.images.randaugment_magnitude if layers else None, config.mix.mixup


def plan(config, tmp_path):
    """The plan of a run whose data is not here, so that its published size counts."""
    return Budget(config.replace({"data.dir": str(tmp_path / config.data.dir)}), gpu="H100")


@pytest.mark.parametrize("name", AUGREG_FILES)
def test_settings_are_those_that_the_name_of_the_released_file_says(name):
    config, said = PRESETS[name].config, FILE.match(PRESETS[name].checkpoint).groupdict()
    assert PRESETS[name].size == f"{said['size']}/{said['patch']}"
    if said["res"]:
        assert config.optim.lr == float(said["tuning_lr"])
        assert config.model.image_size == int(said["res"])
        config = PRESETS[config.init_from.removeprefix("runs/")].config
    assert (config.epochs, config.optim.lr) == (int(said["epochs"]), float(said["lr"]))
    assert config.optim.weight_decay == float(said["wd"])
    assert (config.model.dropout, config.model.drop_path) == (float(said["do"]), float(said["sd"]))
    assert augmentation(config) == published.AUGREG_SETTINGS[said["aug"]]


@pytest.mark.parametrize("file", RELEASED)
def test_every_recommended_checkpoint_has_presets_with_its_accuracy(file):
    suffix, accuracy = RELEASED[file]
    (upstream,) = (p for p in PRESETS.values() if p.checkpoint == f"{file}.npz")
    (tuned,) = (p for p in PRESETS.values() if p.checkpoint == f"{file}{suffix}.npz")
    assert tuned.config.init_from == f"runs/{upstream.config.name}"
    assert f"{accuracy} %" in tuned.expected and f"{accuracy} % at 384" in upstream.expected


@pytest.mark.parametrize("name", AUGREG)
def test_augreg_reaches_what_the_paper_has_for_its_settings(name):
    preset = PRESETS[name]
    config, epochs = preset.config, int(preset.config.epochs)
    names = {setting: name for name, setting in published.AUGREG_SETTINGS.items()}
    column = list(published.AUGREG_SETTINGS).index(names[augmentation(config)])
    if (row := published.AUGREG_FIGURE_4.get((preset.size, epochs))) is not None:
        assert preset.expected.startswith(f"{row[column]} % on ImageNet-21k")
        assert row[column] == max(row)
    else:
        assert (preset.size, epochs) == ("B/32", 300)  # table 6
        assert preset.expected.startswith("47.7 % on ImageNet-21k")
    assert (preset.checkpoint is None) == (epochs == 30)
    at224, at384 = published.AUGREG_TABLE_3[preset.size][epochs]
    assert f"{at224} % at 224" in preset.expected and f"{at384} % at 384" in preset.expected
    assert (config.global_batch, config.loss.name, config.model.head_bias) == (4096, "sigmoid", -10)
    assert (config.optim.warmup, config.optim.warmup_unit) == (10_000, "steps")


def test_augregs_augmentations_have_the_names_of_its_files():
    named = augreg.AUGMENTATIONS.items()
    found = {name: (layers, m if layers else None, mixup) for name, (layers, m, mixup) in named}
    assert found == published.AUGREG_SETTINGS


@pytest.mark.parametrize("size", published.AUGREG_TABLE_3)
@pytest.mark.parametrize(("pixels", "suffix", "column"), [(224, "-224", 0), (384, "", 1)])
def test_all_sizes_of_augreg_are_fine_tuned_at_both_resolutions(size, pixels, suffix, column):
    preset = PRESETS[f"in1k-finetune-{size.lower().replace('/', '')}{suffix}"]
    assert preset.config.model.image_size == pixels
    assert published.AUGREG_TABLE_3[size][300][column] in preset.expected


@pytest.mark.parametrize("size", published.SIZES)
def test_files_of_fine_tuning_at_224_are_those_that_are_known(size):
    files = [file for file in published.AUGREG_FILES_AT_224 if file.startswith(f"{size}_16")]
    name = f"in1k-finetune-{size.lower()}16-224"
    assert [PRESETS[name].checkpoint] == (files or [None])
    for name in ("in1k-finetune-s32-224", "in1k-finetune-b32-224"):
        assert PRESETS[name].checkpoint is None


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "demo"])
def test_every_setting_that_decides_a_computation_is_that_of_the_source(name):
    settings = PRESETS[name].config.flat()
    assert published.RUNNING < settings.keys()
    assert settings["name"] == name
    found = {key: value for key, value in settings.items() if key not in published.RUNNING}
    assert found == published.RECIPES[name]


def test_every_preset_is_held_by_a_transcription():
    assert PRESETS.keys() == {"demo", *published.RECIPES}


@pytest.mark.parametrize("name", published.REPORTED)
def test_accuracies_and_files_are_those_of_the_source(name):
    preset = PRESETS[name]
    figures = re.findall(r"\d\d\.?\d*(?= %| to | in 5 runs)", preset.expected)
    assert figures == [figure for figure in published.REPORTED[name] if figure in figures]
    assert len(figures) == len(published.REPORTED[name])
    assert preset.checkpoint == published.RELEASED.get(name)
    shape = published.shape(preset.size, preset.config.model.image_size)
    assert shape.items() <= preset.config.flat().items()


@pytest.mark.parametrize("size", published.DEIT3_RUNS)
def test_deit3s_figures_are_the_last_of_its_logs(size):
    file, _, upstream, _, tuned = published.DEIT3_RUNS[size]
    short = size.lower().replace("/", "")
    assert f"{upstream:.1f} % at the end of its log" in PRESETS[f"in21k-{short}-deit3"].expected
    finetuning = PRESETS[f"in1k-finetune-{short}-deit3"]
    assert f"{tuned:.1f} %" in finetuning.expected and f"_{file}_" in finetuning.checkpoint


@pytest.mark.parametrize("name", PRESETS)
def test_plan_has_the_published_images_and_the_schedule_that_is_trained(name, tmp_path):
    config = PRESETS[name].config
    budget = plan(config, tmp_path)
    if name == "demo":
        samples, steps = 1437, 449  # a fifth of 1,797 digits is held out; 40 epochs of 128
    else:
        samples = published.IMAGES[config.data.dir]
        steps = published.STEPS[samples, config.epochs, config.global_batch]
    assert (budget.samples, budget.steps) == (samples, steps)
    assert budget.images == steps * config.global_batch
    assert abs(budget.images - config.epochs * samples) <= config.global_batch / 2
    shown = str(budget)
    assert f"{budget.steps:,} of {config.global_batch:,} images, {config.epochs:g} epochs" in shown
    assert f"images    {budget.images:,}\n" in shown
    assert f"warm-up of {budget.warmup_steps:,} steps" in shown
    args = {"global_batch": config.global_batch, "examples_per_epoch": samples}
    peak = learning_rate(config.optim, budget.warmup_steps, budget.steps, **args)
    before = learning_rate(config.optim, budget.warmup_steps - 1, budget.steps, **args)
    assert peak == pytest.approx(config.optim.lr) and before < peak
    assert f"to {config.optim.lr:g}, then {config.optim.schedule}" in shown


@pytest.mark.parametrize(
    ("name", "evaluation"),
    [
        # vision_transformer/input_pipeline.py: the whole image, squashed
        ("in1k-finetune-b16", "both sides resized to 384 (linear)"),
        ("in1k-finetune-b16-224", "both sides resized to 224 (linear)"),
        # big_vision's transfer.py: resize_small(448)|central_crop(384)
        ("in1k-transfer-b32", "the shorter side resized to 448 (area), centre of 384"),
        # big_vision's vit_i21k.py and vit_s16_i1k.py: resize_small(256)|central_crop(224)
        ("in21k-b16-300ep", "the shorter side resized to 256 (area), centre of 224"),
        ("in1k-s16-90ep", "the shorter side resized to 256 (area), centre of 224"),
        # --eval-crop-ratio 1.0 of facebookresearch/deit
        ("in21k-b16-deit3", "the shorter side resized to 224 (bicubic), centre of 224"),
        # data_loader.py of Alibaba-MIIL/ImageNet21K
        ("in21kp-b16-miil", "both sides resized to 224 (bilinear)"),
    ],
)
def test_evaluation_is_that_of_the_source(name, evaluation):
    assert PRESETS[name].evaluation == evaluation
    assert evaluation in str(PRESETS[name])


@pytest.mark.parametrize("name", [name for name, p in PRESETS.items() if p.config.init_from])
def test_fine_tuning_starts_from_a_preset_of_the_same_model(name):
    preset = PRESETS[name]
    start = PRESETS[preset.config.init_from.removeprefix("runs/")]
    assert start.size == preset.size
    settings, starts = preset.config.flat(), start.config.flat()
    for key in SAME_MODEL:
        assert settings[f"model.{key}"] == starts[f"model.{key}"], key


@pytest.mark.parametrize("name", [name for name in PRESETS if "deit3" in name or "miil" in name])
def test_settings_that_the_project_does_not_have_are_named(name):
    shown = str(PRESETS[name])
    missing = ("weights are drawn", "CutMix") if "deit3" in name else ("decay", "fall11")
    if name != "in1k-b16-300ep-miil":
        assert all(word in shown for word in missing)
    assert not any(word in shown for word in ("LAMB", "LayerScale"))


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("in21k-")])
def test_pre_training_says_that_its_shards_are_smaller_than_the_originals(name):
    assert "256 pixels" in str(PRESETS[name])


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("in21k")])
def test_pre_training_says_which_images_the_original_had(name):
    preset = PRESETS[name]
    if name != "in21k-s32-300ep-warmup30":  # this project's own
        (said,) = (text for text in preset.departs if text.startswith("trains on"))
        assert f"{published.IMAGES[preset.config.data.dir]:,} images" in said
        assert "original" in said or "Google's" in said


@pytest.mark.parametrize("name", published.RECIPES)
def test_what_google_does_otherwise_is_named_where_it_applies(name):
    preset, config = PRESETS[name], PRESETS[name].config
    if "of this project" in preset.source:
        return
    google = "AugReg" in preset.source or "big_vision" in preset.source or "-miil" in name
    adam = google and config.optim.name == "adamw" and config.data.dir != "data/in21k-p"
    assert ("the first moment is float32" in str(preset)) == adam
    assert ("the momentum is float32" in str(preset)) == (config.optim.name == "sgd")
    assert ("mixup draws" in str(preset)) == (config.mix.mixup > 0)
    assert ("better of the decays" in str(preset)) == bool(re.fullmatch(r"in21k-\w+-30ep", name))


@pytest.mark.parametrize("size", published.DEIT3_RUNS)
def test_released_weights_of_deit3_start_its_fine_tuning(size, tmp_path):
    """Names and shapes of models_v2.py, of two blocks."""
    config = PRESETS[f"in1k-finetune-{size.lower().replace('/', '')}-deit3"].config
    model = ViT(config.replace({"model.depth": 2, "model.num_classes": 5}).model)
    width, mlp_width = config.model.width, config.model.mlp_width
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 196, width)}
    shapes |= linear("patch_embed.proj", width, 3, 16, 16) | layer_norm("norm", width)
    for block in ("blocks.0", "blocks.1"):
        shapes |= {f"{block}.gamma_{i}": (width,) for i in (1, 2)}
        shapes |= layer_norm(f"{block}.norm1", width) | layer_norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width)
        shapes |= linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", mlp_width, width)
        shapes |= linear(f"{block}.mlp.fc2", width, mlp_width)
    shapes |= linear("head", 1000, width)
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save({"model": weights}, tmp_path / "deit_3.pth")
    load_weights(model, tmp_path / "deit_3.pth", head=config.init_head)
    assert torch.equal(model.blocks[1].ls2.gamma, weights["blocks.1.gamma_2"])
    assert torch.equal(model.pos_embed, weights["pos_embed"])


def linear(name, outputs, *inputs):
    return {f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)}


def layer_norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def test_google_models_have_the_gelu_of_jax():
    for name, preset in PRESETS.items():
        google = any(
            word in preset.source for word in ("AugReg", "2010.11929, table", "big_vision")
        )
        if google and name != "in1k-s32-300ep":
            assert preset.config.model.gelu == "tanh", name


def test_the_whole_image_is_squashed_where_the_source_squashes_it():
    images = PRESETS["in21kp-b16-miil"].config.images
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    for seed in range(20):
        view = train_crop(pixels, images, 64, Draws(seed))
        expected = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.abs(view.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_of_a_preset_is_recognised_by_its_settings(name):
    preset = PRESETS[name]
    config = preset.config
    if preset.of_weights:  # of weights of another size
        config = preset.of_weights(ViTConfig(width=192, heads=3, mlp_width=768), ImageConfig())
    settings = config.replace({"workers": 2, "log_every": 7, "init_from": "body"}).flat()
    settings = json.loads(json.dumps(settings))
    assert nearest_preset(settings) == (name, [])
    changed = settings | {"name": "mine", "optim.lr": 0.0123, "epochs": 1.25}
    assert set(nearest_preset(changed)[1]) <= {"optim.lr", "epochs"}


def test_settings_of_another_version_still_have_a_nearest_preset():
    settings = find_preset("demo").flat()
    settings = {k: v for k, v in settings.items() if k != "seed"} | {"model.gone": 1}
    assert nearest_preset(settings) == ("demo", [])
    assert nearest_preset(settings | {"model.depth": "many"}) == ("demo", ["model.depth"])
