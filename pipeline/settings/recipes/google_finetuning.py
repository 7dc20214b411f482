"""Google's fine-tuning on ImageNet-1k: 20,000 steps of 512 images, momentum, no decay."""

from typing import Any

from pipeline.settings.budget import PUBLISHED
from pipeline.settings.config import TrainConfig
from pipeline.settings.recipes.preset import ALL_IMAGES, IN1K, Preset, run
from vit.config import ImageConfig, OptimConfig, ViTConfig

SQUASH = {"eval_resize": "squash", "crop_pct": 1.0, "eval_interpolation": "linear"}
MOMENTUM = "the momentum is float32, not bfloat16"
DEPARTS = (ALL_IMAGES, "resized pixels are rounded down to whole numbers", MOMENTUM)


def sgd_finetuning(
    name: str,
    pretrained: str,
    *,
    size: str,
    images: ImageConfig,
    lr: float,
    crops: str = "ten",
    pixels: int = 384,
    dropout: float = 0.0,
    **provenance: Any,  # noqa: ANN401 - fields of Preset
) -> Preset:
    """Google's fine-tuning on ImageNet-1k: 20,000 steps of 512 images, momentum, no decay."""
    return Preset(
        summary=f"The ViT-{size} of {pretrained}, fine-tuned on ImageNet-1k at {pixels} pixels",
        size=size,
        config=sgd_config(
            name,
            init_from=f"runs/{pretrained}",
            model=ViTConfig.named(size, image_size=pixels, dropout=dropout, gelu="tanh"),
            images=images,
            lr=lr,
            crops=crops,
        ),
        **provenance,
    )


def sgd_config(
    name: str,
    *,
    model: ViTConfig,
    images: ImageConfig,
    lr: float,
    crops: str,
    init_from: str | None = None,
) -> TrainConfig:
    """The settings of it for a model."""
    return run(
        name,
        IN1K,
        init_from=init_from,
        model=model,
        images=images,
        optim=OptimConfig(name="sgd", lr=lr, weight_decay=0.0, warmup=500, warmup_unit="steps"),
        epochs=20_000 * 512 / PUBLISHED["in1k"][0],
        global_batch=512,
        eval_every=1000,
        crops=crops,
    )
