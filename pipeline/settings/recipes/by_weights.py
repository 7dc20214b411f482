"""Fine-tuning on ImageNet-1k of any weights: the size is theirs, the recipe a published one.

    settings of the model, preparation of its images -> settings of the run

AugReg's recipe has the rate of the published size that is nearest in width and patch. MAE's
(arXiv 2111.06377, FINETUNE.md of facebookresearch/mae) decays the rate from block to block. So does
BEiT's (arXiv 2106.08254, beit in microsoft/unilm) for weights that were trained with labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import log

from pipeline.settings.config import TrainConfig
from pipeline.settings.recipes import augreg
from pipeline.settings.recipes.google_finetuning import DEPARTS, SQUASH, sgd_config
from pipeline.settings.recipes.preset import FULL_SIZE, IN1K, Preset, run, short
from vit.config import SIZES, ImageConfig, LossConfig, MixConfig, OptimConfig, ViTConfig

# settings of a model that its weights decide
OF_WEIGHTS = (
    *("patch_size", "width", "depth", "mlp_width", "heads", "pool", "positions", "class_position"),
    *("registers", "layer_scale", "qkv_bias", "qk_norm", "fc_norm", "norm_eps", "gelu"),
)
# size, epochs, base rate of 256 images, decay of the rate from block to block, stochastic depth
MAE = (("B", 100, 5e-4, 0.65, 0.1), ("L", 50, 1e-3, 0.75, 0.2), ("H", 50, 1e-3, 0.75, 0.3))
MAE_BATCH = 1024
# size, decay of the rate from block to block, stochastic depth
BEIT = (("B", 0.85, 0.1), ("L", 0.9, 0.4))
ADAMW_DEPARTS = (
    "Google's RandAugment of 2 layers and magnitude 9, not timm's rand-m9-mstd0.5-inc1",
    "the inception crop is resized bilinearly, the original's bicubically",
    "pixels are normalised as for the weights",
)
BEIT_DEPARTS = (
    "any weights, with the positions and the pool that they have; BEiT's were fine-tuned with the "
    "labels of ImageNet-22k, and have relative positions and the mean over the patches",
    "published for B/16 and L/16; other sizes take the settings of the nearest width",
    "the head is zero, not a thousandth of a random one",
    *ADAMW_DEPARTS,
    FULL_SIZE,
)
MAE_DEPARTS = (
    "any weights, pooled as they were trained; MAE's are of its own pre-training, pooled by the "
    "mean over the patches",
    "published for B/16, L/16 and H/14; other sizes take the settings of the nearest width",
    "averages the weights (0.9999, as ConvNeXt does where it averages); MAE does not",
    "the head is zero, not of deviation 2e-5",
    *ADAMW_DEPARTS,
    "mixup draws a weight, and CutMix a box, for each pair of neighbours; timm one for the images "
    "of a GPU, which it mixes in reverse order",
    FULL_SIZE,
)
Recipe = Callable[[ViTConfig, ImageConfig], TrainConfig]


def size_name(model: ViTConfig) -> str:
    """A size as it stands in names of runs: s16, or w128d4p8 for one that is not published."""
    shape = model.width, model.depth, model.mlp_width, model.heads
    for name, published in SIZES.items():
        if published == shape:
            return short(f"{name}/{model.patch_size}")
    return f"w{model.width}d{model.depth}p{model.patch_size}"


def model_of(model: ViTConfig, pixels: int, **settings: object) -> ViTConfig:
    """The model of some weights at another resolution: the nearest multiple of its patch."""
    side = max(1, round(pixels / model.patch_size)) * model.patch_size
    kept = {name: getattr(model, name) for name in OF_WEIGHTS}
    return ViTConfig(image_size=side, **kept, **settings)


def published_rate(model: ViTConfig, pixels: int) -> float:
    """AugReg's rate for the published size that is nearest in width and patch."""

    def distance(row: tuple) -> float:
        size, _, patch = row[0].partition("/")
        return abs(log(SIZES[size][0] / model.width)) + abs(log(int(patch) / model.patch_size))

    *_, rate, _ = min((row for row in augreg.FINETUNINGS if row[1] == pixels), key=distance)
    return rate


def by_sgd(name: str, pixels: int, model: ViTConfig, images: ImageConfig) -> TrainConfig:
    """AugReg's fine-tuning of these weights."""
    return sgd_config(
        f"{name}-{size_name(model)}",
        model=model_of(model, pixels),
        images=ImageConfig(**SQUASH, mean=images.mean, std=images.std),
        lr=published_rate(model, pixels),
        crops="center",
    )


def nearest(rows: Sequence[tuple], model: ViTConfig) -> tuple:
    """What a row of settings has for the size that is nearest in width."""
    return min(rows, key=lambda row: abs(log(SIZES[row[0]][0] / model.width)))[1:]


def by_mae(name: str, model: ViTConfig, images: ImageConfig) -> TrainConfig:
    """MAE's fine-tuning of these weights, with averaged weights."""
    epochs, base_rate, layer_decay, drop_path = nearest(MAE, model)
    optim = {"lr": base_rate * MAE_BATCH / 256, "weight_decay": 0.05, "ema": 0.9999}
    return adamw_config(
        f"{name}-{size_name(model)}",
        model=model_of(model, 224, drop_path=drop_path),
        images=images,
        crop_pct=224 / 256,
        optim={**optim, "layer_decay": layer_decay},
        mix=MixConfig(mixup=0.8, cutmix=1.0),
        epochs=epochs,
        global_batch=MAE_BATCH,
    )


def by_beit(name: str, model: ViTConfig, images: ImageConfig) -> TrainConfig:
    """BEiT's fine-tuning at 384 pixels of weights that were trained with labels."""
    layer_decay, drop_path = nearest(BEIT, model)
    return adamw_config(
        f"{name}-{size_name(model)}",
        model=model_of(model, 384, drop_path=drop_path),
        images=images,
        crop_pct=1.0,
        optim={"lr": 2e-5, "weight_decay": 1e-8, "warmup_lr": 1e-6, "layer_decay": layer_decay},
        epochs=30,
        global_batch=512,
    )


def adamw_config(
    name: str, *, images: ImageConfig, crop_pct: float, optim: dict[str, float], **settings: object
) -> TrainConfig:
    """What MAE and BEiT share: augmentation, smoothing, the schedule of the rate."""
    return run(
        name,
        IN1K,
        images=ImageConfig(
            crop_area=(0.08, 1.0),
            randaugment_layers=2,
            randaugment_magnitude=9,
            random_erasing=0.25,
            eval_interpolation="bicubic",
            crop_pct=crop_pct,
            mean=images.mean,
            std=images.std,
        ),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(clip_norm=None, warmup=5, warmup_unit="epochs", final_lr=1e-6, **optim),
        init_positions="bicubic",
        **settings,
    )


def preset(name: str, recipe: Recipe, **provenance: object) -> Preset:
    """A preset whose size is that of its weights; without any it stands for S/16."""
    usual = recipe(ViTConfig.named("S/16", gelu="tanh"), ImageConfig())
    return Preset(config=replace(usual, name=name), of_weights=recipe, **provenance)


def augreg_preset(name: str, pixels: int) -> Preset:
    """AugReg's fine-tuning of any weights."""
    return preset(
        name,
        partial(by_sgd, name, pixels),
        summary=f"Any weights, fine-tuned on ImageNet-1k at {pixels} pixels as AugReg",
        source="AugReg, table 4, and vision_transformer's configs/augreg.py",
        expected="that of in1k-finetune-SIZE for the weights that it names",
        departs=(*DEPARTS, "sizes that are not in the table have the rate of the nearest that is"),
    )


FINETUNINGS = (
    augreg_preset("finetune", 384),
    augreg_preset("finetune-224", 224),
    preset(
        "finetune-adamw",
        partial(by_mae, "finetune-adamw"),
        summary="Any weights, fine-tuned on ImageNet-1k at 224 pixels with AdamW, as MAE",
        source="MAE, arXiv 2111.06377, and FINETUNE.md of facebookresearch/mae",
        expected="with MAE's weights of B/16 83.57 %, the mean of 4 runs, of L/16 85.87 %; with "
        "others none is published",
        departs=MAE_DEPARTS,
    ),
    preset(
        "finetune-adamw-384",
        partial(by_beit, "finetune-adamw-384"),
        summary="Any weights, fine-tuned on ImageNet-1k at 384 pixels with AdamW, as BEiT",
        source="get_started_for_image_classification.md of microsoft/unilm, beit",
        expected="with BEiT's weights of B/16 86.82 %, of L/16 88.41 %; with others none is "
        "published",
        departs=BEIT_DEPARTS,
    ),
)
