"""big_vision's configs for ImageNet-1k, of google-research/big_vision."""

from pipeline.settings.recipes.google_finetuning import MOMENTUM, sgd_finetuning
from pipeline.settings.recipes.preset import ALL_IMAGES, FIRST_MOMENT, IN1K, PAIRS, Preset, run
from vit.config import ImageConfig, LossConfig, MixConfig, OptimConfig, ViTConfig

# Better plain ViT baselines, S/16 on ImageNet-1k: epochs, %
BASELINES = ((90, "76.5"), (150, "78.5"), (300, "80.0"))


def baseline(epochs: int, accuracy: str) -> Preset:
    """big_vision's S/16: softmax, mean pooling, fixed positions, batch 1,024."""
    return Preset(
        summary=f"ViT-S/16 on ImageNet-1k from scratch, {epochs} epochs",
        source="Better plain ViT baselines, arXiv 2205.01580, and big_vision's vit_s16_i1k.py",
        expected=f"{accuracy} % on ImageNet-1k",
        size="S/16",
        checkpoint=f"big_vision/vit_s16_i1k_{epochs}ep.npz",
        departs=(ALL_IMAGES, FIRST_MOMENT, PAIRS),
        config=run(
            f"in1k-s16-{epochs}ep",
            IN1K,
            model=ViTConfig.named(
                "S/16", pool="mean", positions="sincos2d", pre_logits=True, gelu="tanh"
            ),
            images=ImageConfig(randaugment_layers=2, randaugment_magnitude=10),
            mix=MixConfig(mixup=0.2),
            optim=OptimConfig(lr=1e-3, weight_decay=0.1, warmup=10_000, warmup_unit="steps"),
            epochs=epochs,
            global_batch=1024,
            eval_every=2500,
        ),
    )


IN1K_B16_300EP = Preset(
    summary="ViT-B/16 on ImageNet-1k from scratch, 300 epochs",
    source="AugReg, arXiv 2106.10270, and big_vision's vit_i1k.py",
    expected="81 % on 1 % of the training images, held out (figure 4)",
    size="B/16",
    checkpoint="B_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0.npz",
    departs=(ALL_IMAGES, FIRST_MOMENT, PAIRS),
    config=run(
        "in1k-b16-300ep",
        IN1K,
        model=ViTConfig.named("B/16", head_bias=-6.9, pre_logits=True, gelu="tanh"),
        images=ImageConfig(randaugment_layers=2, randaugment_magnitude=15),
        mix=MixConfig(mixup=0.5),
        loss=LossConfig(name="sigmoid"),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, warmup=10_000, warmup_unit="steps"),
        epochs=300,
        eval_every=2500,
    ),
)

TRANSFER_B32 = sgd_finetuning(
    "in1k-transfer-b32",
    "in21k-b32-300ep",
    source="big_vision's transfer.py, model vit-i21k-augreg-b/32",
    expected="83.27 % on ImageNet-1k, from 83.22 to 83.33 in 5 runs",
    size="B/32",
    departs=(ALL_IMAGES, MOMENTUM),
    images=ImageConfig(crop_pct=384 / 448),
    lr=0.03,
)
