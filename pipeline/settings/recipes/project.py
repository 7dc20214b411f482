"""Recipes of this project: the demo, and its first run."""

from pipeline.settings.config import DataConfig, TrainConfig
from pipeline.settings.recipes.augreg import ROWS, pretraining
from pipeline.settings.recipes.preset import FULL_SIZE, IN1K, Preset, run
from vit.config import ImageConfig, OptimConfig, ViTConfig

DEMO = Preset(
    summary="The whole pipeline on handwritten digits: no data, no GPU, no server",
    source="scikit-learn's digits, 1,797 images of 8 x 8 pixels",
    expected="top-1 above 0.95",
    measured="top-1 0.983, 84 s on 2 CPU cores (2026-11-23)",
    config=TrainConfig(
        name="demo",
        data=DataConfig(slice_samples=8),
        model=ViTConfig(
            image_size=32, patch_size=8, width=128, depth=4, mlp_width=512, heads=4, pool="mean"
        ),
        images=ImageConfig(crop_area=(0.6, 1.0), flip=False),
        optim=OptimConfig(lr=2e-3, weight_decay=0.05, warmup=0.1),
        epochs=40,
        global_batch=128,
        micro_batch=64,
        workers=2,
        precision="fp32",
        compile=False,
        log_every=20,
        eval_every=60,
        checkpoint_every=30,
        crops="five",  # a mirrored digit is not a digit
    ),
)

IN1K_S32_300EP = Preset(
    summary="ViT-S/32 on ImageNet-1k from scratch, 300 epochs, 30 of them warm-up",
    source="the first run of this project; settings that it left open are from table 3 of the "
    "ViT paper for ImageNet-1k",
    expected="67.8 % on ImageNet-1k, as that run was reported",
    size="S/32",
    config=run(
        "in1k-s32-300ep",
        IN1K,
        model=ViTConfig.named("S/32", dropout=0.1),
        optim=OptimConfig(
            lr=3e-3, weight_decay=0.3, warmup=30, warmup_unit="epochs", warmup_lr=1e-6
        ),
        epochs=300,
        eval_every=1000,
    ),
)


def warmup30() -> Preset:
    """The first run of this project on ImageNet-21k: 30 of 300 epochs are warm-up."""
    (row,) = (row for row in ROWS if row[:2] == ("S/32", 300))
    recipe = pretraining(*row).config
    name = "in21k-s32-300ep-warmup30"
    warmup = {"optim.warmup": 30, "optim.warmup_unit": "epochs"}
    return Preset(
        summary="ViT-S/32 on ImageNet-21k, 300 epochs, 30 of them warm-up, cosine to 0",
        source="the first run of this project; settings that it left open are AugReg's",
        expected="none is published with this warm-up; with 10,000 steps of it 43 % on "
        "ImageNet-21k",
        size="S/32",
        departs=(FULL_SIZE,),
        config=recipe.replace({"name": name, **warmup}),
    )
