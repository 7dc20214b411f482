"""Published recipes, transcribed from their sources, apart from the presets that they hold."""

# AugReg, arXiv 2106.10270, section 3.3: RandAugment layers and magnitude, mixup; under the names of
# the released files (vit_jax_augreg.ipynb of google-research/vision_transformer)
AUGREG_SETTINGS = {
    "none": (0, None, 0.0),
    "light0": (2, 0, 0.0),
    "light1": (2, 10, 0.2),
    "medium1": (2, 15, 0.2),
    "medium2": (2, 15, 0.5),
    "strong1": (2, 20, 0.5),
    "strong2": (2, 20, 0.8),
}

# README.md of google-research/vision_transformer, "Available ViT models": pre-trained checkpoint,
# suffix of the fine-tuned one, top-1 on ImageNet-1k
AUGREG_RELEASED = """
L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0  --imagenet2012-steps_20k-lr_0.01-res_384  85.59
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0  --imagenet2012-steps_20k-lr_0.03-res_384  85.49
S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0  --imagenet2012-steps_20k-lr_0.03-res_384  83.73
Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0   --imagenet2012-steps_20k-lr_0.03-res_384  78.22
B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0   --imagenet2012-steps_20k-lr_0.01-res_384  83.59
S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0     --imagenet2012-steps_20k-lr_0.01-res_384  79.58
"""  # noqa: E501

# AugReg, figure 4, % on ImageNet-21k without dropout and stochastic depth, by augmentation in the
# order of AUGREG_SETTINGS
AUGREG_FIGURE_4 = {
    ("Ti/16", 30): (38, 37, 35, 34, 33, 32, 31),
    ("S/32", 30): (40, 39, 38, 37, 35, 35, 34),
    ("S/16", 30): (44, 43, 43, 42, 41, 40, 39),
    ("B/32", 30): (43, 42, 43, 42, 41, 40, 40),
    ("B/16", 30): (46, 47, 47, 46, 46, 45, 44),
    ("L/16", 30): (45, 48, 49, 49, 49, 48, 47),
    ("Ti/16", 300): (41, 41, 40, 39, 37, 37, 36),
    ("S/32", 300): (43, 43, 43, 42, 42, 41, 40),
    ("S/16", 300): (46, 47, 47, 47, 46, 45, 45),
    ("B/16", 300): (43, 48, 50, 51, 50, 50, 50),
    ("L/16", 300): (43, 46, 49, 49, 51, 51, 51),
}

# AugReg, table 3: % on ImageNet-1k after fine-tuning at 224 and at 384, of 30 and of 300 epochs
AUGREG_TABLE_3 = {
    "Ti/16": {30: ("68.89", "74.20"), 300: ("73.75", "78.22")},
    "S/32": {30: ("68.49", "75.74"), 300: ("73.47", "79.58")},
    "S/16": {30: ("76.04", "80.22"), 300: ("80.46", "83.73")},
    "B/32": {30: ("72.24", "78.65"), 300: ("79.13", "83.59")},
    "B/16": {30: ("80.42", "83.46"), 300: ("83.96", "85.49")},
    "L/16": {30: ("82.05", "84.48"), 300: ("83.98", "85.59")},
}

# training images of the data sets: winter21 has 13,153,500 images and 19,167 classes (fastdup's
# report; timm's card of imagenet-w21-wds), of each of which the shards hold 50 out; ImageNet-21K-P
# of winter21 as in processing_instructions.md of Alibaba-MIIL/ImageNet21K; ILSVRC2012
IMAGES = {"data/in21k": 12_195_150, "data/in21k-p": 11_060_223, "data/in1k": 1_281_167}

# steps by training images, epochs and batch, worked by hand
STEPS = {
    (12_195_150, 30, 4096): 89_320,
    (12_195_150, 90, 4096): 267_960,
    (12_195_150, 300, 4096): 893_199,
    (12_195_150, 240, 2048): 1_429_119,
    (11_060_223, 80, 1024): 864_080,
    (1_281_167, 90, 1024): 112_603,
    (1_281_167, 150, 1024): 187_671,
    (1_281_167, 300, 1024): 375_342,
    (1_281_167, 300, 4096): 93_835,
    (1_281_167, 50, 2048): 31_278,
    (1_281_167, 20_000 * 512 / 1_281_167, 512): 20_000,
    (1_281_167, 100, 1024): 125_114,
    (1_281_167, 50, 1024): 62_557,
    (1_281_167, 30, 512): 75_068,
}

# settings of a run that do not decide what is computed: places, names, hardware, records, and how
# the work is divided
RUNNING = {
    *("name", "runs_dir", "experiment", "device", "worker_cpus", "min_workers"),
    *("data.slice_samples", "data.task_samples", "data.buffer_gib", "data.decode_on"),
    *("data.prefetch_batches", "data.max_bad_samples", "data.allow_upsampling", "data.verify"),
    *("probe.data", "probe.train_split", "probe.eval_split", "probe.every", "probe.shots"),
    *("probe.seeds", "probe.neighbours", "probe.temperature", "record.models", "record.register"),
    *("record.system_every_s", "record.price_per_hour", "micro_batch", "parallel", "compile"),
    *(
        "cuda_graphs",
        "deterministic",
        "log_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
    ),
    *("audit", "max_restarts", "hang_minutes"),
}

# big_vision's models/vit.py:decode_variant, the same as in configs/models.py of vision_transformer,
# timm and models_v2.py of facebookresearch/deit: width, depth, MLP width, heads
SIZES = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
}


def shape(size, image_size=224):
    """Settings of a size such as "S/16"."""
    name, patch = size.split("/")
    # arXiv 2010.11929, table 1: no preset has the largest
    width, depth, mlp_width, heads = {**SIZES, "H": (1280, 32, 5120, 16)}[name]
    return {
        "model.image_size": image_size,
        "model.patch_size": int(patch),
        "model.width": width,
        "model.depth": depth,
        "model.mlp_width": mlp_width,
        "model.heads": heads,
    }


# a plain ViT with a class token and nothing else, as in timm; softmax; torch's AdamW with a cosine;
# what no recipe uses is off
PLAIN = {
    "data.extra": [],
    "data.weights": [],
    "data.classes": None,
    "data.fraction": 1.0,
    "data.train_split": "train",
    "data.eval_split": "val",
    "data.select_split": None,
    "model.num_classes": None,
    "model.pool": "token",
    "model.positions": "learned",
    "model.pre_logits": False,
    "model.class_position": True,
    "model.registers": 0,
    "model.layer_scale": None,
    "model.qkv_bias": True,
    "model.qk_norm": False,
    "model.fc_norm": False,
    "model.norm_eps": 1e-6,  # Flax's default; partial(nn.LayerNorm, eps=1e-6) in timm and DeiT
    "model.gelu": "exact",
    "model.dropout": 0.0,
    "model.drop_path": 0.0,
    "model.drop_path_rates": "linear",
    "model.head_bias": 0.0,
    "model.checkpoint_blocks": False,
    "images.flip": True,
    "images.cutout": 0.0,
    "images.randaugment_layers": 0,
    "images.randaugment_magnitude": 10.0,  # without layers it has no effect
    "images.three_augment": False,
    "images.color_jitter": 0.0,
    "images.random_erasing": 0.0,
    "images.erasing_fill": "noise",
    "images.train_crop": "inception",
    "images.crop_area": [0.05, 1.0],
    "images.crop_aspect": [3 / 4, 4 / 3],
    "images.eval_resize": "short",
    "images.crop_pct": 224 / 256,
    "images.eval_interpolation": "area",
    "images.mean": [0.5, 0.5, 0.5],
    "images.std": [0.5, 0.5, 0.5],
    "mix.mixup": 0.0,
    "mix.cutmix": 0.0,
    "loss.name": "softmax",
    "loss.label_smoothing": 0.0,
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.1,
    "optim.decay_scaled_by_lr": True,
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-8,
    "optim.momentum": 0.9,
    "optim.clip_norm": 1.0,
    "optim.layer_decay": 1.0,
    "optim.ema": None,
    "optim.schedule": "cosine",
    "optim.warmup": 10_000,
    "optim.warmup_unit": "steps",
    "optim.warmup_lr": 0.0,
    "optim.final_lr": 0.0,
    "optim.rsqrt_timescale": 10_000,  # of another schedule
    "optim.cooldown": 0.0,
    "optim.cooldown_unit": "fraction",
    "init_from": None,
    "init_head": "drop",
    "init_positions": "bilinear",
    "global_batch": 4096,
    "precision": "bf16",
    "residual": "fp32",
    "seed": 0,
    "skip_steps": [],
    "lr_factors": [],
    # of this project: GPUs, how often to evaluate, and the crops of the last evaluation
    "workers": 8,
    "eval_every": 5000,
    "crops": "ten",
}
RECIPES = {}

# AugReg, arXiv 2106.10270, sections 3.2 to 3.4, as big_vision's vit_i21k.py has it: inception crop,
# [-1, 1], sigmoid_xent, init_head_bias -10, clip 1, lr 1e-3, wd 1e-4 / 1e-3, warm-up 10,000; the
# released models have a class token and a linear head. With 30 epochs figure 4, with 300 the files.
AUGREG = PLAIN | {
    "data.dir": "data/in21k",
    "model.gelu": "tanh",  # flax's nn.gelu
    "model.head_bias": -10.0,
    "loss.name": "sigmoid",
}
for size, epochs, name, decay in (
    ("Ti/16", 30, "none", 0.1),
    ("S/32", 30, "none", 0.1),
    ("S/16", 30, "none", 0.1),
    ("B/32", 30, "none", 0.1),
    ("B/16", 30, "light1", 0.1),
    ("L/16", 30, "medium2", 0.1),
    ("Ti/16", 300, "none", 0.03),
    ("S/32", 300, "none", 0.1),
    ("S/16", 300, "light1", 0.03),
    ("B/32", 300, "light1", 0.1),
    ("B/16", 300, "medium1", 0.1),
    ("L/16", 300, "strong1", 0.1),
):
    layers, magnitude, mixup = AUGREG_SETTINGS[name]
    RECIPES[f"in21k-{size.lower().replace('/', '')}-{epochs}ep"] = {
        **AUGREG,
        **shape(size),
        "images.randaugment_layers": layers,
        "images.randaugment_magnitude": magnitude or 0,
        "mix.mixup": mixup,
        "optim.weight_decay": decay,
        "epochs": epochs,
    }
# this project's first run
RECIPES["in21k-s32-300ep-warmup30"] = RECIPES["in21k-s32-300ep"] | {
    "optim.warmup": 30,
    "optim.warmup_unit": "epochs",
}

# arXiv 2010.11929, table 3, and google-research/vision_transformer/issues/2, 34: rate 1e-3 to 1e-5
# on a line, decay 0.03, dropout 0.1, representation_size, bias -10; clipped only on ImageNet-1k
PAPER = AUGREG | {
    "model.pre_logits": True,
    "model.dropout": 0.1,
    "optim.weight_decay": 0.03,
    "optim.clip_norm": None,
    "optim.schedule": "linear",
    "optim.final_lr": 1e-5,
    "epochs": 90,
}
for size in ("B/32", "B/16", "L/16"):
    RECIPES[f"in21k-{size.lower().replace('/', '')}-paper"] = PAPER | shape(size)

# configs/common.py and input_pipeline.py of vision_transformer: 20,000 steps of 512, momentum 0.9,
# no decay, clip 1, warm-up 500, cosine; tf.image.resize of the whole image to evaluate
GOOGLE_FINETUNING = PLAIN | {
    "data.dir": "data/in1k",
    "model.gelu": "tanh",
    "images.eval_resize": "squash",
    "images.crop_pct": 1.0,
    "images.eval_interpolation": "linear",
    "optim.name": "sgd",
    "optim.weight_decay": 0.0,
    "optim.warmup": 500,
    "global_batch": 512,
    "epochs": 20_000 * 512 / 1_281_167,
    "eval_every": 1000,
    "crops": "center",
}
# AugReg, table 4: the better of 0.01 and 0.03; at 384 the files of vision_transformer's README, at
# 224 those of timm's vision_transformer.py
AUGREG_FINETUNED = {
    ("Ti/16", 224): 0.03,
    ("S/32", 224): 0.03,
    ("S/16", 224): 0.03,
    ("B/32", 224): 0.03,
    ("B/16", 224): 0.01,
    ("L/16", 224): 0.01,
    ("Ti/16", 384): 0.03,
    ("S/32", 384): 0.01,
    ("S/16", 384): 0.03,
    ("B/32", 384): 0.01,
    ("B/16", 384): 0.03,
    ("L/16", 384): 0.01,
}
for (size, pixels), lr in AUGREG_FINETUNED.items():
    short = size.lower().replace("/", "")
    RECIPES[f"in1k-finetune-{short}{'' if pixels == 384 else '-224'}"] = {
        **GOOGLE_FINETUNING,
        **shape(size, pixels),
        "init_from": f"runs/in21k-{short}-300ep",
        "optim.lr": lr,
    }
# those of timm that are fine-tuned from the recommended checkpoint
AUGREG_FILES_AT_224 = """
Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224.npz
S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224.npz
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224.npz
""".split()  # noqa: E501
# configs/models.py: transformer.dropout_rate
for size, dropout in (("B/32", 0.0), ("B/16", 0.0), ("L/16", 0.1)):
    short = size.lower().replace("/", "")
    RECIPES[f"in1k-finetune-{short}-paper"] = {
        **GOOGLE_FINETUNING,
        **shape(size, 384),
        "init_from": f"runs/in21k-{short}-paper",
        "model.dropout": dropout,
        "optim.lr": 0.03,
    }
# big_vision's transfer.py: resize_small(448)|central_crop(384)
RECIPES["in1k-transfer-b32"] = {
    **GOOGLE_FINETUNING,
    **shape("B/32", 384),
    "init_from": "runs/in21k-b32-300ep",
    "images.eval_resize": "short",
    "images.crop_pct": 384 / 448,
    "images.eval_interpolation": "area",
    "optim.lr": 0.03,
    "crops": "ten",
}

# of any weights: settings without weights stand for S/16
RECIPES["finetune"] = RECIPES["in1k-finetune-s16"] | {"init_from": None}
RECIPES["finetune-224"] = RECIPES["in1k-finetune-s16-224"] | {"init_from": None}
# FINETUNE.md and main_finetune.py of facebookresearch/mae: size, --epochs, --blr, --layer_decay,
# --drop_path; S/16 takes what B/16 has. lr = blr * 1024 / 256.
MAE_FINETUNED = {
    "B/16": (100, 5e-4, 0.65, 0.1),
    "L/16": (50, 1e-3, 0.75, 0.2),
    "H/14": (50, 1e-3, 0.75, 0.3),
}
MAE = PLAIN | {
    "data.dir": "data/in1k",
    "init_positions": "bicubic",  # util/pos_embed.py
    "images.crop_area": [0.08, 1.0],  # timm's RandomResizedCrop
    "images.randaugment_layers": 2,  # --aa rand-m9-mstd0.5-inc1
    "images.randaugment_magnitude": 9,
    "images.random_erasing": 0.25,  # --reprob 0.25 --remode pixel
    "images.eval_interpolation": "bicubic",  # util/datasets.py: Resize(256), CenterCrop(224)
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "loss.label_smoothing": 0.1,  # --smoothing by default
    "optim.weight_decay": 0.05,
    "optim.clip_norm": None,  # --clip_grad by default
    "optim.warmup": 5,  # --warmup_epochs by default
    "optim.warmup_unit": "epochs",
    "optim.final_lr": 1e-6,  # --min_lr by default
    "optim.ema": 0.9999,  # not MAE's
    "global_batch": 1024,
}
RECIPES["finetune-adamw"] = {
    **MAE,
    **shape("S/16"),
    "model.gelu": "tanh",  # of the weights
    "model.drop_path": 0.1,
    "optim.lr": 2e-3,
    "optim.layer_decay": 0.65,
    "epochs": 100,
}

# microsoft/unilm, beit: get_started_for_image_classification.md at --input_size 384, for weights
# that were fine-tuned on ImageNet-22k, and the defaults of run_class_finetuning.py
BEIT_FINETUNED = {"B/16": (0.85, 0.1), "L/16": (0.9, 0.4)}
BEIT = PLAIN | {
    "data.dir": "data/in1k",
    "init_positions": "bicubic",
    "images.crop_area": [0.08, 1.0],  # timm's RandomResizedCrop
    "images.randaugment_layers": 2,  # --aa rand-m9-mstd0.5-inc1
    "images.randaugment_magnitude": 9,
    "images.random_erasing": 0.25,
    "images.eval_interpolation": "bicubic",
    "images.crop_pct": 1.0,  # datasets.py, from 384 pixels on
    "loss.label_smoothing": 0.1,
    "optim.lr": 2e-5,
    "optim.weight_decay": 1e-8,
    "optim.clip_norm": None,
    "optim.warmup": 5,
    "optim.warmup_unit": "epochs",
    "optim.warmup_lr": 1e-6,
    "optim.final_lr": 1e-6,
    "epochs": 30,
    "global_batch": 512,
}
RECIPES["finetune-adamw-384"] = {
    **BEIT,
    **shape("S/16", 384),
    "model.gelu": "tanh",
    "model.drop_path": 0.1,
    "optim.layer_decay": 0.85,
}

# big_vision's vit_s16_i1k.py and arXiv 2205.01580, table 1
for epochs in (90, 150, 300):
    RECIPES[f"in1k-s16-{epochs}ep"] = {
        **PLAIN,
        **shape("S/16"),
        "data.dir": "data/in1k",
        "model.pool": "mean",
        "model.positions": "sincos2d",
        "model.pre_logits": True,
        "model.gelu": "tanh",
        "images.randaugment_layers": 2,
        "images.randaugment_magnitude": 10,
        "mix.mixup": 0.2,
        "global_batch": 1024,
        "epochs": epochs,
        "eval_every": 2500,
    }
# big_vision's vit_i1k.py with variant=B/16
RECIPES["in1k-b16-300ep"] = {
    **PLAIN,
    **shape("B/16"),
    "data.dir": "data/in1k",
    "model.pre_logits": True,
    "model.gelu": "tanh",
    "model.head_bias": -6.9,
    "images.randaugment_layers": 2,
    "images.randaugment_magnitude": 15,
    "mix.mixup": 0.5,
    "loss.name": "sigmoid",
    "epochs": 300,
    "eval_every": 2500,
}
# this project's first run, with table 3 of arXiv 2010.11929 for ImageNet-1k
RECIPES["in1k-s32-300ep"] = {
    **PLAIN,
    **shape("S/32"),
    "data.dir": "data/in1k",
    "model.dropout": 0.1,
    "optim.lr": 3e-3,
    "optim.weight_decay": 0.3,
    "optim.warmup": 30,
    "optim.warmup_unit": "epochs",
    "optim.warmup_lr": 1e-6,
    "epochs": 300,
    "eval_every": 1000,
}

# README_revenge.md, main.py, augment.py and models_v2.py of facebookresearch/deit 7e160fe. Its
# moving average of the weights (decay 0.99996) is neither evaluated nor released.
DEIT3 = PLAIN | {
    "model.class_position": False,  # x + pos_embed, then the class token
    "model.layer_scale": 1e-4,
    "model.drop_path_rates": "constant",
    "images.train_crop": "simple",  # --src
    "images.three_augment": True,  # --ThreeAugment
    "images.color_jitter": 0.3,  # --color-jitter 0.3
    "images.crop_pct": 1.0,  # --eval-crop-ratio 1.0
    "images.eval_interpolation": "bicubic",
    "images.mean": [0.485, 0.456, 0.406],
    "images.std": [0.229, 0.224, 0.225],
    "mix.cutmix": 1.0,  # --mixup 0 --cutmix 1.0
    "loss.label_smoothing": 0.1,  # --smoothing 0.1
    "optim.name": "lamb",  # --opt fusedlamb; eps by --opt-eps, betas and clipping apex's defaults
    "optim.weight_decay": 0.02,
    "optim.warmup": 5,
    "optim.warmup_unit": "epochs",
    "optim.warmup_lr": 1e-6,
    "optim.final_lr": 1e-5,  # --min-lr by default
    "global_batch": 2048,
}
# --drop-path of both; % after the last epoch of the two logs
DEIT3_RUNS = {
    "S/16": ("small", 0.05, 54.12, 0.05, 83.074),
    "B/16": ("base", 0.1, 56.462, 0.15, 85.698),
    "L/16": ("large", 0.3, 57.412, 0.4, 86.98),
}
for size, (_, drop_path, _, tuned_drop_path, _) in DEIT3_RUNS.items():
    short = size.lower().replace("/", "")
    RECIPES[f"in21k-{short}-deit3"] = {
        **DEIT3,
        **shape(size),
        "data.dir": "data/in21k",
        "model.drop_path": drop_path,
        "optim.lr": 1e-3,
        "epochs": 240,
    }
    RECIPES[f"in1k-finetune-{short}-deit3"] = {
        **DEIT3,
        **shape(size),
        "data.dir": "data/in1k",
        "init_from": f"runs/in21k-{short}-deit3",
        "model.drop_path": tuned_drop_path,
        "optim.lr": 3e-4,
        "epochs": 50,
        "eval_every": 1000,
    }

# train_semantic_softmax.py, factory.py and data_loader.py of Alibaba-MIIL/ImageNet21K 6e4c6a4;
# OneCycleLR starts at 1 / 20 and ends at 1e-4 of that
MIIL_MODEL = {"model.gelu": "exact", "model.qkv_bias": False}
RECIPES["in1k-b16-300ep-miil"] = RECIPES["in1k-b16-300ep"] | MIIL_MODEL
RECIPES["in21kp-b16-miil"] = {
    **PLAIN,
    **shape("B/16"),
    **MIIL_MODEL,
    "data.dir": "data/in21k-p",
    "init_from": "runs/in1k-b16-300ep-miil",
    "images.flip": False,
    "images.cutout": 0.5,
    "images.randaugment_layers": 2,
    "images.randaugment_magnitude": 10,
    "images.train_crop": "squash",
    "images.eval_resize": "squash",
    "images.crop_pct": 1.0,
    "images.eval_interpolation": "bilinear",
    "images.mean": [0, 0, 0],
    "images.std": [1, 1, 1],
    "loss.name": "semantic",
    "loss.label_smoothing": 0.2,
    "optim.lr": 3e-4,
    "optim.weight_decay": 1e-4,
    "optim.warmup": 0.1,
    "optim.warmup_unit": "fraction",
    "optim.warmup_lr": 1.5e-5,
    "optim.final_lr": 1.5e-9,
    "optim.clip_norm": None,
    "global_batch": 1024,  # 64 a GPU; of how many GPUs is not said
    "epochs": 80,
    "crops": "center",
}

# accuracies in % that the sources report and the files that they released, by preset
REPORTED = {
    # google-research/vision_transformer/issues/62; arXiv 2010.11929, table 5; README
    "in21k-b32-paper": ("44.04", "81.28"),
    "in21k-b16-paper": ("47.88", "83.97"),
    "in21k-l16-paper": ("49.90", "85.15"),
    "in1k-finetune-b32-paper": ("81.28", "81.66"),
    "in1k-finetune-b16-paper": ("83.97", "84.53"),
    "in1k-finetune-l16-paper": ("85.15", "85.05"),
    # arXiv 2205.01580, table 1; AugReg, figure 4, medium2; transfer.py
    "in1k-s16-90ep": ("76.5",),
    "in1k-s16-150ep": ("78.5",),
    "in1k-s16-300ep": ("80.0",),
    "in1k-b16-300ep": ("81",),
    "in1k-b16-300ep-miil": ("81",),
    "in1k-transfer-b32": ("83.27", "83.22", "83.33"),
    # README_revenge.md, rounded as in its table
    "in21k-s16-deit3": ("54.1", "83.1"),
    "in21k-b16-deit3": ("56.5", "85.7"),
    "in21k-l16-deit3": ("57.4", "87.0"),
    "in1k-finetune-s16-deit3": ("83.1",),
    "in1k-finetune-b16-deit3": ("85.7",),
    "in1k-finetune-l16-deit3": ("87.0",),
    # MODEL_ZOO.md of Alibaba-MIIL/ImageNet21K
    "in21kp-b16-miil": ("77.6", "84.4"),
    # this project
    "in21k-s32-300ep-warmup30": ("43",),
    "in1k-s32-300ep": ("67.8",),
}
RELEASED = {
    "in21k-b32-paper": "imagenet21k/ViT-B_32.npz (its head is zero)",
    "in21k-b16-paper": "imagenet21k/ViT-B_16.npz (its head is zero)",
    "in21k-l16-paper": "imagenet21k/ViT-L_16.npz (its head is zero)",
    "in1k-finetune-b32-paper": "imagenet21k+imagenet2012/ViT-B_32.npz",
    "in1k-finetune-b16-paper": "imagenet21k+imagenet2012/ViT-B_16.npz",
    "in1k-finetune-l16-paper": "imagenet21k+imagenet2012/ViT-L_16.npz",
    "in1k-s16-90ep": "big_vision/vit_s16_i1k_90ep.npz",
    "in1k-s16-150ep": "big_vision/vit_s16_i1k_150ep.npz",
    "in1k-s16-300ep": "big_vision/vit_s16_i1k_300ep.npz",
    "in1k-b16-300ep": "B_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0.npz",
    "in1k-finetune-s16-deit3": "deit_3_small_224_21k.pth",
    "in1k-finetune-b16-deit3": "deit_3_base_224_21k.pth",
    "in1k-finetune-l16-deit3": "deit_3_large_224_21k.pth",
    "in21kp-b16-miil": "vit_base_patch16_224_miil_21k.pth",
}

# training images/s of one GPU: GPU, model, image size, compiled, images/s
THROUGHPUTS = (
    # timm, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv
    ("RTX-3090", "Ti/16", 224, False, 2300),
    ("RTX-3090", "S/32", 224, False, 4446),
    ("RTX-3090", "S/16", 224, False, 1058),
    ("RTX-3090", "B/32", 224, False, 1709),
    ("RTX-3090", "B/16", 224, False, 393),
    ("RTX-3090", "L/16", 224, False, 117),
    ("RTX-3090", "S/32", 384, False, 1456),
    ("RTX-3090", "S/16", 384, False, 239),
    ("RTX-3090", "B/32", 384, False, 543),
    ("RTX-3090", "B/16", 384, False, 97),
    ("RTX-3090", "L/16", 384, False, 29),
    # nvSubquadratic, benchmarks: ViT-5-Small, batch 256, torch.compile
    ("H100", "S/16", 224, True, 7716),
    # NVIDIA NeMo, performance of ViT g/14: one node of 8
    ("A100-80GB", "g/14", 224, True, 693 / 8),
    ("H100", "g/14", 224, True, 1428 / 8),
)
