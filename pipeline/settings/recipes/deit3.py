"""DeiT III: Touvron et al., arXiv 2204.07118, with the commands of its README_revenge.md."""

from typing import Any

from pipeline.settings.recipes.preset import FULL_SIZE, IN1K, IN21K, Preset, run, short
from vit.config import ImageConfig, LossConfig, MixConfig, OptimConfig, ViTConfig

DEPARTS = (
    "weights are drawn as in Google's code and the head is zero, not all of deviation 0.02",
    "the rate changes with each step, and the cosine starts after the warm-up; timm's changes with "
    "each epoch, and its cosine starts with the run",
    "CutMix draws a box for each pair of neighbours; timm one for the images of a GPU, which it "
    "mixes in reverse order",
)
WINTER21 = (
    "trains on 12,195,150 images of winter21's 19,167 classes; which ImageNet-21k the original had "
    "is not said"
)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# size, its name in the files, stochastic depth of pre-training and of fine-tuning, % at the end of
# the log of pre-training in README_revenge.md (of which images is not said), % fine-tuned on
# ImageNet-1k at 224
ROWS = (
    ("S/16", "small", 0.05, 0.05, "54.1", "83.1"),
    ("B/16", "base", 0.1, 0.15, "56.5", "85.7"),
    ("L/16", "large", 0.3, 0.4, "57.4", "87.0"),
)


def pretraining(
    size: str, file: str, drop_path: float, tuned_drop_path: float, log: str, in1k: str
) -> Preset:
    """DeiT III on ImageNet-21k."""
    return shared(
        f"in21k-{short(size)}-deit3",
        IN21K,
        size,
        summary=f"ViT-{size} on ImageNet-21k as DeiT III, 240 epochs",
        expected=f"{log} % at the end of its log; {in1k} % fine-tuned on ImageNet-1k at 224",
        departs=(*DEPARTS, WINTER21, FULL_SIZE),
        drop_path=drop_path,
        lr=1e-3,
        epochs=240,
    )


def finetuning(
    size: str, file: str, drop_path: float, tuned_drop_path: float, log: str, in1k: str
) -> Preset:
    """DeiT III's fine-tuning on ImageNet-1k at 224."""
    return shared(
        f"in1k-finetune-{short(size)}-deit3",
        IN1K,
        size,
        summary=f"The ViT-{size} of in21k-{short(size)}-deit3, fine-tuned on ImageNet-1k",
        expected=f"{in1k} % on ImageNet-1k",
        checkpoint=f"deit_3_{file}_224_21k.pth",
        drop_path=tuned_drop_path,
        lr=3e-4,
        epochs=50,
        init_from=f"runs/in21k-{short(size)}-deit3",
        eval_every=1000,
    )


def shared(
    name: str,
    data: str,
    size: str,
    *,
    summary: str,
    expected: str,
    drop_path: float,
    lr: float,
    checkpoint: str | None = None,
    departs: tuple[str, ...] = DEPARTS,
    **settings: Any,  # noqa: ANN401 - of any type
) -> Preset:
    """What DeiT III's pre-training and fine-tuning have in common."""
    return Preset(
        summary=summary,
        source="DeiT III, arXiv 2204.07118, and README_revenge.md of facebookresearch/deit",
        expected=expected,
        size=size,
        checkpoint=checkpoint,
        departs=departs,
        config=run(
            name,
            data,
            # models_v2.py: deit_small_patch16_LS and the others
            model=ViTConfig.named(
                size,
                class_position=False,
                layer_scale=1e-4,
                drop_path=drop_path,
                drop_path_rates="constant",
            ),
            images=ImageConfig(
                train_crop="simple",
                three_augment=True,
                color_jitter=0.3,
                crop_pct=1.0,
                eval_interpolation="bicubic",
                **IMAGENET,
            ),
            mix=MixConfig(cutmix=1.0),
            loss=LossConfig(label_smoothing=0.1),
            # --opt fusedlamb, which clips to a norm of 1 by itself
            optim=OptimConfig(
                name="lamb",
                lr=lr,
                weight_decay=0.02,
                clip_norm=1.0,
                warmup=5,
                warmup_unit="epochs",
                warmup_lr=1e-6,
                final_lr=1e-5,
            ),
            global_batch=2048,
            **settings,
        ),
    )
