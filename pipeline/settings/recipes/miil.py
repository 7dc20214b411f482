"""Alibaba's ImageNet-21K-P: Ridnik et al., arXiv 2104.10972."""

from pipeline.settings.recipes.preset import IN21K_P, Preset, run
from vit.config import ImageConfig, LossConfig, OptimConfig, ViTConfig

IN21KP_B16 = Preset(
    summary="ViT-B/16 on ImageNet-21K-P with the semantic loss, 80 epochs",
    source="ImageNet-21K Pretraining for the Masses, arXiv 2104.10972, and "
    "train_semantic_softmax.py of Alibaba-MIIL/ImageNet21K",
    expected="77.6 % semantic top-1 on the classes of fall11; 84.4 % fine-tuned on ImageNet-1k at "
    "224, with a recipe that is not published",
    size="B/16",
    checkpoint="vit_base_patch16_224_in21k_miil.pth",
    departs=(
        "starts from in1k-b16-300ep, not from the weights that timm had for ImageNet-1k",
        "decay bypasses Adam's moments",
        "a linear warm-up, not half a cosine",
        "Google's RandAugment of 2 layers and magnitude 10, not that of the package randaugment",
        "queries, keys and values have biases",
        "the number of GPUs, of 64 images each, is not published: 16 are assumed",
    ),
    config=run(
        "in21kp-b16-miil",
        IN21K_P,
        init_from="runs/in1k-b16-300ep",
        model=ViTConfig.named("B/16"),
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
