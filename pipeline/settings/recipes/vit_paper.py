"""The first ViT paper: Dosovitskiy et al., arXiv 2010.11929."""

from pipeline.settings.recipes.google_finetuning import DEPARTS, SQUASH, sgd_finetuning
from pipeline.settings.recipes.preset import FULL_SIZE, GOOGLE_21K, IN21K, Preset, run, short
from vit.config import ImageConfig, LossConfig, OptimConfig, ViTConfig

# size, % on ImageNet-21k (the authors, google-research/vision_transformer/issues/62), % fine-tuned
# on ImageNet-1k at 384 (table 5), dropout of the fine-tuning (configs/models.py), % of it in the
# README of vision_transformer
ROWS = (
    ("B/32", "44.04", "81.28", 0.0, "81.66"),
    ("B/16", "47.88", "83.97", 0.0, "84.53"),
    ("L/16", "49.90", "85.15", 0.1, "85.05"),
)


def pretraining(size: str, in21k: str, at384: str, dropout: float, readme: str) -> Preset:
    """Table 3 of the ViT paper on ImageNet-21k; its authors confirmed the loss and the head."""
    return Preset(
        summary=f"ViT-{size} on ImageNet-21k as in the first ViT paper, 90 epochs",
        source="Dosovitskiy et al., arXiv 2010.11929, table 3",
        expected=f"{in21k} % on ImageNet-21k; {at384} % fine-tuned on ImageNet-1k at 384 (table 5)",
        size=size,
        checkpoint=f"imagenet21k/ViT-{size.replace('/', '_')}.npz (its head is zero)",
        departs=(FULL_SIZE, GOOGLE_21K),
        config=run(
            f"in21k-{short(size)}-paper",
            IN21K,
            model=ViTConfig.named(size, head_bias=-10.0, pre_logits=True, dropout=0.1, gelu="tanh"),
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
        ),
    )


def finetuning(size: str, in21k: str, at384: str, dropout: float, readme: str) -> Preset:
    """The ViT paper's fine-tuning, with the settings of vision_transformer's configs/vit.py."""
    return sgd_finetuning(
        f"in1k-finetune-{short(size)}-paper",
        f"in21k-{short(size)}-paper",
        source="Dosovitskiy et al., arXiv 2010.11929, table 4 (rate 0.003 to 0.06), and "
        "vision_transformer's configs/vit.py",
        expected=f"{at384} % on ImageNet-1k (table 5); {readme} % in vision_transformer's README",
        size=size,
        checkpoint=f"imagenet21k+imagenet2012/ViT-{size.replace('/', '_')}.npz",
        departs=DEPARTS,
        images=ImageConfig(**SQUASH),
        crops="center",
        lr=0.03,
        dropout=dropout,
    )
