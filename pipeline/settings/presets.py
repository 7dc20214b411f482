"""The named runs.

A preset is a function that returns a `TrainConfig`; its docstring gives the source of the recipe,
what it should reach and what it costs. To add one, write the function and name it in PRESETS.

Top-1 on ImageNet-21k is on held-out images of fall11, of the 21,843 classes of Google; other class
lists give other numbers. GPU-hours are images over the throughput that timm published for training
on one RTX 3090 (mixed precision); `--plan` counts for other GPUs.

The numbers of the AugReg runs are of figure 4 (upstream) and table 3 (fine-tuned on ImageNet-1k at
384 pixels) of Steiner et al., "How to train your ViT?", arXiv 2106.10270. With 30 epochs no
augmentation is best up to B/32, and dropout and stochastic depth never help (section 4.4).
"""

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.settings.config import DataConfig, TrainConfig
from vit.config import ImageConfig, LossConfig, MixConfig, OptimConfig, ViTConfig

IN21K, IN1K = "data/in21k", "data/in1k"


def demo() -> TrainConfig:
    """The whole line on handwritten digits: no data, no GPU, no server; a few minutes.

    Dataset: scikit-learn's digits (1,797 images of 8 x 8 pixels). Expected: top-1 above 0.95. Cost:
    about a minute and a half on 2 cores.
    """
    return TrainConfig(
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
        crops="five",  # a mirrored digit is none
    )


def augreg(
    name: str,
    size: str,
    epochs: float,
    *,
    layers: int = 0,
    magnitude: float = 0.0,
    mixup: float = 0.0,
    weight_decay: float = 0.1,
) -> TrainConfig:
    """AugReg on ImageNet-21k: sigmoid loss, cosine, 10,000 steps of warm-up at batch 4,096."""
    return TrainConfig(
        name=name,
        data=DataConfig(dir=IN21K),
        model=ViTConfig.named(size, head_bias=-10.0),
        images=ImageConfig(randaugment_layers=layers, randaugment_magnitude=magnitude),
        mix=MixConfig(mixup=mixup),
        loss=LossConfig(name="sigmoid"),
        optim=OptimConfig(
            lr=1e-3, weight_decay=weight_decay, warmup=10_000, warmup_unit="steps", clip_norm=1.0
        ),
        epochs=epochs,
        workers=8,
    )


def in21k_ti16_30ep() -> TrainConfig:
    """ViT-Ti/16 on ImageNet-21k, 30 epochs.

    Dataset: AugReg. Expected: 38 % upstream; 74.20 % on ImageNet-1k at 384. Cost: 45 GPU-hours.
    """
    return augreg("in21k-ti16-30ep", "Ti/16", 30)


def in21k_s32_30ep() -> TrainConfig:
    """ViT-S/32 on ImageNet-21k, 30 epochs.

    Dataset: AugReg. Expected: 40 % upstream; 75.74 % on ImageNet-1k at 384. Cost: 23 GPU-hours.
    """
    return augreg("in21k-s32-30ep", "S/32", 30)


def in21k_s16_30ep() -> TrainConfig:
    """ViT-S/16 on ImageNet-21k, 30 epochs.

    Dataset: AugReg. Expected: 44 % upstream; 80.22 % on ImageNet-1k at 384. Cost: 98 GPU-hours.
    """
    return augreg("in21k-s16-30ep", "S/16", 30)


def in21k_b32_30ep() -> TrainConfig:
    """ViT-B/32 on ImageNet-21k, 30 epochs.

    Dataset: AugReg. Expected: 43 % upstream; 78.65 % on ImageNet-1k at 384. Cost: 61 GPU-hours.
    """
    return augreg("in21k-b32-30ep", "B/32", 30)


def in21k_b16_30ep() -> TrainConfig:
    """ViT-B/16 on ImageNet-21k, 30 epochs.

    Dataset: AugReg. Expected: 47 % upstream; 83.46 % on ImageNet-1k at 384. Cost: 264 GPU-hours.
    """
    return augreg("in21k-b16-30ep", "B/16", 30, layers=2, magnitude=10, mixup=0.2)


def in21k_l16_30ep() -> TrainConfig:
    """ViT-L/16 on ImageNet-21k, 30 epochs.

    Dataset: AugReg. Expected: 49 % upstream; 84.48 % on ImageNet-1k at 384. Cost: 883 GPU-hours.
    """
    return augreg("in21k-l16-30ep", "L/16", 30, layers=2, magnitude=15, mixup=0.5)


def in21k_ti16_300ep() -> TrainConfig:
    """ViT-Ti/16 on ImageNet-21k, 300 epochs.

    Dataset: AugReg, weight decay of its recommended checkpoint. Expected: 41 % upstream; 78.22 % on
    ImageNet-1k at 384. Cost: 450 GPU-hours.
    """
    return augreg("in21k-ti16-300ep", "Ti/16", 300, weight_decay=0.03)


def in21k_s32_300ep() -> TrainConfig:
    """ViT-S/32 on ImageNet-21k, 300 epochs.

    Dataset: AugReg. Expected: 43 % upstream; 79.58 % on ImageNet-1k at 384. Cost: 232 GPU-hours.
    """
    return augreg("in21k-s32-300ep", "S/32", 300)


def in21k_s16_300ep() -> TrainConfig:
    """ViT-S/16 on ImageNet-21k, 300 epochs.

    Dataset: AugReg, weight decay of its recommended checkpoint. Expected: 47 % upstream; 83.73 % on
    ImageNet-1k at 384. Cost: 981 GPU-hours.
    """
    return augreg(
        "in21k-s16-300ep", "S/16", 300, layers=2, magnitude=10, mixup=0.2, weight_decay=0.03
    )


def in21k_b32_300ep() -> TrainConfig:
    """ViT-B/32 on ImageNet-21k, 300 epochs.

    Dataset: AugReg. Expected: 48 % upstream; 83.59 % on ImageNet-1k at 384. Cost: 606 GPU-hours.
    """
    return augreg("in21k-b32-300ep", "B/32", 300, layers=2, magnitude=15, mixup=0.2)


def in21k_b16_300ep() -> TrainConfig:
    """ViT-B/16 on ImageNet-21k, 300 epochs.

    Dataset: AugReg. Expected: 51 % upstream; 85.49 % on ImageNet-1k at 384. Cost: 2,640 GPU-hours.
    """
    return augreg("in21k-b16-300ep", "B/16", 300, layers=2, magnitude=15, mixup=0.2)


def in21k_l16_300ep() -> TrainConfig:
    """ViT-L/16 on ImageNet-21k, 300 epochs.

    Dataset: AugReg. Expected: 51 % upstream; 85.59 % on ImageNet-1k at 384. Cost: 8,830 GPU-hours.
    """
    return augreg("in21k-l16-300ep", "L/16", 300, layers=2, magnitude=15, mixup=0.5)


def vit_paper(name: str, size: str) -> TrainConfig:
    """Table 3 of the ViT paper on ImageNet-21k, with what its authors added in their answers."""
    return TrainConfig(
        name=name,
        data=DataConfig(dir=IN21K),
        model=ViTConfig.named(size, head_bias=-10.0, pre_logits=True, dropout=0.1),
        loss=LossConfig(name="sigmoid"),
        optim=OptimConfig(
            lr=1e-3,
            weight_decay=0.03,
            warmup=10_000,
            warmup_unit="steps",
            schedule="linear",
            final_lr=1e-5,
            clip_norm=None,
        ),
        epochs=90,
        workers=8,
    )


def in21k_b32_paper() -> TrainConfig:
    """ViT-B/32 on ImageNet-21k as in the first ViT paper, 90 epochs.

    Dataset: Dosovitskiy et al., arXiv 2010.11929, table 3; loss and head as its authors confirmed.
    Expected: 44.04 % upstream; 81.28 % on ImageNet-1k at 384 (table 5). Cost: 182 GPU-hours.
    """
    return vit_paper("in21k-b32-paper", "B/32")


def in21k_b16_paper() -> TrainConfig:
    """ViT-B/16 on ImageNet-21k as in the first ViT paper, 90 epochs.

    Dataset: Dosovitskiy et al., arXiv 2010.11929, table 3; loss and head as its authors confirmed.
    Expected: 47.88 % upstream; 83.97 % on ImageNet-1k at 384 (table 5). Cost: 790 GPU-hours.
    """
    return vit_paper("in21k-b16-paper", "B/16")


def in21k_l16_paper() -> TrainConfig:
    """ViT-L/16 on ImageNet-21k as in the first ViT paper, 90 epochs.

    Dataset: Dosovitskiy et al., arXiv 2010.11929, table 3; loss and head as its authors confirmed.
    Expected: 49.90 % upstream; 85.15 % on ImageNet-1k at 384 (table 5). Cost: 2,640 GPU-hours.
    """
    return vit_paper("in21k-l16-paper", "L/16")


def in1k_s32_300ep() -> TrainConfig:
    """ViT-S/32 on ImageNet-1k from scratch, 300 epochs, 30 of them warm-up.

    Dataset: the run that this project began from (300 epochs, 30 of warm-up from almost zero,
    cosine); what it leaves open is as table 3 of the ViT paper has it for ImageNet-1k. Expected:
    67.8 %. Cost: 24 GPU-hours.
    """
    return TrainConfig(
        name="in1k-s32-300ep",
        data=DataConfig(dir=IN1K),
        model=ViTConfig.named("S/32", dropout=0.1),
        optim=OptimConfig(
            lr=3e-3, weight_decay=0.3, warmup=30, warmup_unit="epochs", warmup_lr=1e-6
        ),
        epochs=300,
        workers=8,
        eval_every=1000,
    )


def in1k_s16_90ep() -> TrainConfig:
    """ViT-S/16 on ImageNet-1k from scratch, 90 epochs.

    Dataset: Beyer et al., "Better plain ViT baselines", arXiv 2205.01580, and big_vision's
    vit_s16_i1k.py. Expected: 76.5 %. Cost: 30 GPU-hours; 6.5 hours on a TPUv3-8.
    """
    return TrainConfig(
        name="in1k-s16-90ep",
        data=DataConfig(dir=IN1K),
        model=ViTConfig.named("S/16", pool="mean", positions="sincos2d", pre_logits=True),
        images=ImageConfig(randaugment_layers=2, randaugment_magnitude=10),
        mix=MixConfig(mixup=0.2),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, warmup=10_000, warmup_unit="steps"),
        epochs=90,
        global_batch=1024,
        workers=8,
        eval_every=2500,
    )


def finetune(name: str, size: str, init_from: str) -> TrainConfig:
    """AugReg's fine-tuning on ImageNet-1k: 20,000 steps of 512 images, momentum, no decay."""
    return TrainConfig(
        name=name,
        data=DataConfig(dir=IN1K),
        init_from=init_from,
        model=ViTConfig.named(size, image_size=384),
        images=ImageConfig(crop_pct=1.0),
        optim=OptimConfig(
            name="sgd", lr=0.03, weight_decay=0.0, warmup=500, warmup_unit="steps", clip_norm=1.0
        ),
        epochs=20_000 * 512 / 1_281_167,
        global_batch=512,
        workers=8,
        eval_every=1000,
    )


def in1k_finetune_s16() -> TrainConfig:
    """The ViT-S/16 of in21k-s16-300ep, fine-tuned on ImageNet-1k at 384 pixels.

    Dataset: AugReg, table 4 and its released configs. Expected: 83.73 %. Cost: 12 GPU-hours.
    """
    return finetune("in1k-finetune-s16", "S/16", "runs/in21k-s16-300ep")


def in1k_finetune_b16() -> TrainConfig:
    """The ViT-B/16 of in21k-b16-300ep, fine-tuned on ImageNet-1k at 384 pixels.

    Dataset: AugReg, table 4 and its released configs. Expected: 85.49 %. Cost: 29 GPU-hours.
    """
    return finetune("in1k-finetune-b16", "B/16", "runs/in21k-b16-300ep")


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        demo,
        *(in21k_ti16_30ep, in21k_s32_30ep, in21k_s16_30ep),
        *(in21k_b32_30ep, in21k_b16_30ep, in21k_l16_30ep),
        *(in21k_ti16_300ep, in21k_s32_300ep, in21k_s16_300ep),
        *(in21k_b32_300ep, in21k_b16_300ep, in21k_l16_300ep),
        *(in21k_b32_paper, in21k_b16_paper, in21k_l16_paper),
        *(in1k_s32_300ep, in1k_s16_90ep),
        *(in1k_finetune_s16, in1k_finetune_b16),
    )
}


def read_preset(path: Path) -> TrainConfig:
    """A run from a preset file, JSON of {"preset": name, "settings": {dotted name: value}}."""
    try:
        content = json.loads(path.read_text())
        preset, settings = content["preset"], content["settings"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no preset file ({error!r}): it must be JSON with a preset and its settings"
        ) from error
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r} in {path}; known: {', '.join(PRESETS)}")
    return PRESETS[preset]().replace(settings)
