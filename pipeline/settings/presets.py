"""Presets: named runs with their settings, source and expected accuracy.

To add a preset, add its row to ROWS.

Top-1 on ImageNet-21k is measured on held-out images of fall11, over the 21,843 classes of Google's
checkpoints; other class lists give other numbers. GPU-hours are the number of images divided by the
throughput that timm published for training on one RTX 3090 (mixed precision); `train PRESET --plan`
estimates the time on other GPUs.

The AugReg accuracies are from figure 4 (ImageNet-21k) and table 3 (fine-tuned on ImageNet-1k at 384
pixels) of Steiner et al., "How to train your ViT?", arXiv 2106.10270. With 30 epochs no
augmentation is best up to B/32, and dropout and stochastic depth never help (section 4.4).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings.config import DataConfig, TrainConfig
from pipeline.settings.upsampling import needs
from support.settings import suggestion
from vit.config import ImageConfig, LossConfig, MixConfig, OptimConfig, ViTConfig

IN21K, IN1K = "data/in21k", "data/in1k"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named run."""

    config: TrainConfig
    summary: str
    """What the run trains, in one line."""
    source: str
    """Where the recipe is published."""
    expected: str
    """Accuracy according to the source."""
    gpu_hours: float | None = None
    """Published cost in hours of one GPU; None if no GPU is needed."""
    checkpoint: str | None = None
    """Released checkpoint with the same settings, if any."""
    measured: str = "not yet"
    """Accuracy measured with this project."""

    def __str__(self) -> str:
        """The summary, and one line for everything else except the settings."""
        cost = f"{self.gpu_hours:,.0f} GPU-hours (RTX 3090)" if self.gpu_hours else "no GPU needed"
        rows = {
            "source": self.source,
            "released": self.checkpoint or "no known checkpoint has these settings",
            "expected": self.expected,
            "measured": self.measured,
            "images": needs(self.config),
            "cost": cost,
        }
        return "\n".join([self.summary, *(f"  {name:<10}{text}" for name, text in rows.items())])


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


def augreg(
    size: str,
    epochs: int,
    upstream: str,
    finetuned: str,
    gpu_hours: float,
    *,
    layers: int = 0,
    magnitude: float = 0.0,
    mixup: float = 0.0,
    decay: float = 0.1,
    augmentation: str | None = None,
) -> Preset:
    """AugReg on ImageNet-21k: sigmoid loss, cosine, 10,000 warm-up steps at batch 4,096.

    `augmentation` is the name of the augmentation in the file of the released checkpoint, if any.
    """
    recipe = f"i21k-{epochs}ep-lr_0.001-aug_{augmentation}-wd_{decay}-do_0.0-sd_0.0"
    return Preset(
        summary=f"ViT-{size} on ImageNet-21k, {epochs} epochs",
        source="AugReg, arXiv 2106.10270",
        expected=f"{upstream} % on ImageNet-21k; {finetuned} % fine-tuned on ImageNet-1k at 384",
        gpu_hours=gpu_hours,
        checkpoint=f"{size.replace('/', '_')}-{recipe}.npz" if augmentation else None,
        config=TrainConfig(
            name=f"in21k-{size.lower().replace('/', '')}-{epochs}ep",
            data=DataConfig(dir=IN21K),
            model=ViTConfig.named(size, head_bias=-10.0),
            images=ImageConfig(randaugment_layers=layers, randaugment_magnitude=magnitude),
            mix=MixConfig(mixup=mixup),
            loss=LossConfig(name="sigmoid"),
            optim=OptimConfig(
                lr=1e-3, weight_decay=decay, warmup=10_000, warmup_unit="steps", clip_norm=1.0
            ),
            epochs=epochs,
            workers=8,
        ),
    )


def vit_paper(size: str, upstream: str, finetuned: str, gpu_hours: float) -> Preset:
    """Table 3 of the ViT paper on ImageNet-21k; its authors confirmed the loss and the head."""
    return Preset(
        summary=f"ViT-{size} on ImageNet-21k as in the first ViT paper, 90 epochs",
        source="Dosovitskiy et al., arXiv 2010.11929, table 3",
        expected=f"{upstream} % on ImageNet-21k; {finetuned} % fine-tuned on ImageNet-1k at 384 "
        "(table 5)",
        gpu_hours=gpu_hours,
        config=TrainConfig(
            name=f"in21k-{size.lower().replace('/', '')}-paper",
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
        ),
    )


IN1K_S32_300EP = Preset(
    summary="ViT-S/32 on ImageNet-1k from scratch, 300 epochs, 30 of them warm-up",
    source="the first run of this project; settings that it left open are from table 3 of the "
    "ViT paper for ImageNet-1k",
    expected="67.8 % on ImageNet-1k",
    gpu_hours=24,
    config=TrainConfig(
        name="in1k-s32-300ep",
        data=DataConfig(dir=IN1K),
        model=ViTConfig.named("S/32", dropout=0.1),
        optim=OptimConfig(
            lr=3e-3, weight_decay=0.3, warmup=30, warmup_unit="epochs", warmup_lr=1e-6
        ),
        epochs=300,
        workers=8,
        eval_every=1000,
    ),
)


IN1K_S16_90EP = Preset(
    summary="ViT-S/16 on ImageNet-1k from scratch, 90 epochs",
    source="Better plain ViT baselines, arXiv 2205.01580, and big_vision's vit_s16_i1k.py",
    expected="76.5 % on ImageNet-1k; 6.5 hours on a TPUv3-8",
    gpu_hours=30,
    config=TrainConfig(
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
    ),
)


def finetune(size: str, pretrained: str, accuracy: str, gpu_hours: float) -> Preset:
    """AugReg's fine-tuning on ImageNet-1k: 20,000 steps of 512 images, momentum, no decay."""
    return Preset(
        summary=f"The ViT-{size} of {pretrained}, fine-tuned on ImageNet-1k at 384 pixels",
        source="AugReg, table 4 and its released configs",
        expected=f"{accuracy} % on ImageNet-1k",
        gpu_hours=gpu_hours,
        config=TrainConfig(
            name=f"in1k-finetune-{size.lower().replace('/', '')}",
            data=DataConfig(dir=IN1K),
            init_from=f"runs/{pretrained}",
            model=ViTConfig.named(size, image_size=384),
            images=ImageConfig(crop_pct=1.0),
            optim=OptimConfig(
                name="sgd",
                lr=0.03,
                weight_decay=0.0,
                warmup=500,
                warmup_unit="steps",
                clip_norm=1.0,
            ),
            epochs=20_000 * 512 / 1_281_167,
            global_batch=512,
            workers=8,
            eval_every=1000,
        ),
    )


ROWS = (
    DEMO,
    # size, epochs, % on ImageNet-21k, % fine-tuned, GPU-hours
    augreg("Ti/16", 30, "38", "74.20", 45),
    augreg("S/32", 30, "40", "75.74", 23),
    augreg("S/16", 30, "44", "80.22", 98),
    augreg("B/32", 30, "43", "78.65", 61),
    augreg("B/16", 30, "47", "83.46", 264, layers=2, magnitude=10, mixup=0.2),
    augreg("L/16", 30, "49", "84.48", 883, layers=2, magnitude=15, mixup=0.5),
    augreg("Ti/16", 300, "41", "78.22", 450, decay=0.03, augmentation="none"),
    augreg("S/32", 300, "43", "79.58", 232, augmentation="none"),
    augreg(
        *("S/16", 300, "47", "83.73", 981),
        **{"layers": 2, "magnitude": 10, "mixup": 0.2, "decay": 0.03, "augmentation": "light1"},
    ),
    augreg("B/32", 300, "48", "83.59", 606, layers=2, magnitude=15, mixup=0.2),
    augreg(
        *("B/16", 300, "51", "85.49", 2640),
        **{"layers": 2, "magnitude": 15, "mixup": 0.2, "augmentation": "medium1"},
    ),
    augreg("L/16", 300, "51", "85.59", 8830, layers=2, magnitude=15, mixup=0.5),
    vit_paper("B/32", "44.04", "81.28", 182),
    vit_paper("B/16", "47.88", "83.97", 790),
    vit_paper("L/16", "49.90", "85.15", 2640),
    IN1K_S32_300EP,
    IN1K_S16_90EP,
    finetune("S/16", "in21k-s16-300ep", "83.73", 12),
    finetune("B/16", "in21k-b16-300ep", "85.49", 29),
)
PRESETS = {preset.config.name: preset for preset in ROWS}


def find_preset(name: str) -> TrainConfig:
    """Settings of a preset; ValueError suggests the nearest name if there is no such preset."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; {suggestion(name, PRESETS)}")
    return PRESETS[name].config


def read_preset(path: Path) -> TrainConfig:
    """Settings from a preset file, JSON of {"preset": name, "settings": {dotted name: value}}.

    Raises ValueError if the file has another form or a setting breaks a rule.
    """
    try:
        content = json.loads(path.read_text())
        preset, settings = content["preset"], content["settings"]
        if not isinstance(settings, dict):
            raise TypeError(f"settings is a {type(settings).__name__}")
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a preset file ({error!r}); it must be JSON such as "
            '{"preset": "demo", "settings": {"optim.lr": 0.001}}'
        ) from error
    try:
        return find_preset(preset).replace(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
