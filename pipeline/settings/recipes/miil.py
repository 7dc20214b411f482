"""Alibaba's ImageNet-21K-P: Ridnik et al., arXiv 2104.10972."""

from pipeline.settings.recipes.big_vision import IN1K_B16_300EP
from pipeline.settings.recipes.preset import IN21K_P, Preset, run
from vit.config import ImageConfig, LossConfig, OptimConfig, ViTConfig

# src_files/models/utils/factory.py: the ViT of timm, so with its GELU, and "qkv_bias==False
# currently"; of the initial weights it loads what fits
MODEL = {"gelu": "exact", "qkv_bias": False}

START = Preset(
    summary="ViT-B/16 on ImageNet-1k from scratch, 300 epochs, to start in21kp-b16-miil from",
    source="the recipe of in1k-b16-300ep, with the model of Alibaba-MIIL/ImageNet21K",
    expected="none is published with this model; in1k-b16-300ep has 81 %",
    size="B/16",
    departs=IN1K_B16_300EP.departs,
    config=IN1K_B16_300EP.config.replace(
        {"name": "in1k-b16-300ep-miil", **{f"model.{name}": MODEL[name] for name in MODEL}}
    ),
)

IN21KP_B16 = Preset(
    summary="ViT-B/16 on ImageNet-21K-P with the semantic loss, 80 epochs",
    source="ImageNet-21K Pretraining for the Masses, arXiv 2104.10972, and "
    "train_semantic_softmax.py of Alibaba-MIIL/ImageNet21K",
    expected="77.6 % semantic top-1 on the classes of fall11; 84.4 % fine-tuned on ImageNet-1k at "
    "224, with a recipe that is not published",
    size="B/16",
    checkpoint="vit_base_patch16_224_miil_21k.pth",
    departs=(
        "starts from in1k-b16-300ep-miil, not from weights of timm for ImageNet-1k without their "
        "biases of queries, keys and values",
        "trains on 11,060,223 images of winter21's 10,450 classes; the original had 11,797,632 of "
        "fall11's 11,221",
        "decay bypasses Adam's moments, and positions and the class token do not decay",
        "a linear warm-up, not half a cosine",
        "Google's RandAugment of 2 layers and magnitude 10, not that of the package randaugment",
        "the number of GPUs, of 64 images each, is not published: 16 are assumed",
    ),
    config=run(
        "in21kp-b16-miil",
        IN21K_P,
        init_from="runs/in1k-b16-300ep-miil",
        model=ViTConfig.named("B/16", **MODEL),
        images=ImageConfig(
            train_crop="squash",
            flip=False,
            cutout=0.5,
            randaugment_layers=2,
            eval_resize="squash",
            crop_pct=1.0,
            eval_interpolation="bilinear",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        ),
        loss=LossConfig(name="semantic", label_smoothing=0.2),
        optim=OptimConfig(
            lr=3e-4,
            weight_decay=1e-4,
            warmup=0.1,
            warmup_lr=1.5e-5,
            final_lr=1.5e-9,
            clip_norm=None,
        ),
        epochs=80,
        global_batch=1024,
        crops="center",
    ),
)
