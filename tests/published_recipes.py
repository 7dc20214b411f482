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

# epochs (or steps), batch, rate, decay, warm-up, schedule and final rate, % : the settings of each
# other source, by preset
OTHERS = {
    # arXiv 2010.11929, table 3; google-research/vision_transformer/issues/2 and 62
    "in21k-b32-paper": (90, 4096, 1e-3, 0.03, "10000 steps", "linear", 1e-5, "44.04"),
    "in21k-b16-paper": (90, 4096, 1e-3, 0.03, "10000 steps", "linear", 1e-5, "47.88"),
    "in21k-l16-paper": (90, 4096, 1e-3, 0.03, "10000 steps", "linear", 1e-5, "49.90"),
    # big_vision's vit_s16_i1k.py and arXiv 2205.01580, table 1; its decay 1e-4 is 0.1 x the rate
    "in1k-s16-90ep": (90, 1024, 1e-3, 0.1, "10000 steps", "cosine", 0, "76.5"),
    "in1k-s16-150ep": (150, 1024, 1e-3, 0.1, "10000 steps", "cosine", 0, "78.5"),
    "in1k-s16-300ep": (300, 1024, 1e-3, 0.1, "10000 steps", "cosine", 0, "80.0"),
    # big_vision's vit_i1k.py with variant=B/16; figure 4 of AugReg, medium2
    "in1k-b16-300ep": (300, 4096, 1e-3, 0.1, "10000 steps", "cosine", 0, "81"),
    # README_revenge.md of facebookresearch/deit
    "in21k-s16-deit3": (240, 2048, 1e-3, 0.02, "5 epochs", "cosine", 1e-5, "83.1"),
    "in21k-b16-deit3": (240, 2048, 1e-3, 0.02, "5 epochs", "cosine", 1e-5, "85.7"),
    "in21k-l16-deit3": (240, 2048, 1e-3, 0.02, "5 epochs", "cosine", 1e-5, "87.0"),
    "in1k-finetune-s16-deit3": (50, 2048, 3e-4, 0.02, "5 epochs", "cosine", 1e-5, "83.1"),
    "in1k-finetune-b16-deit3": (50, 2048, 3e-4, 0.02, "5 epochs", "cosine", 1e-5, "85.7"),
    "in1k-finetune-l16-deit3": (50, 2048, 3e-4, 0.02, "5 epochs", "cosine", 1e-5, "87.0"),
    # train_semantic_softmax.py of Alibaba-MIIL/ImageNet21K: OneCycleLR divides by 20 and by 1e4
    "in21kp-b16-miil": (80, 1024, 3e-4, 1e-4, "0.1 fraction", "cosine", 1.5e-9, "77.6"),
    # this project
    "in21k-s32-300ep-warmup30": (300, 4096, 1e-3, 0.1, "30 epochs", "cosine", 0, "43"),
    "in1k-s32-300ep": (300, 4096, 3e-3, 0.3, "30 epochs", "cosine", 0, "67.8"),
    # arXiv 2010.11929, table 5; configs/common.py of vision_transformer; big_vision's transfer.py
    "in1k-finetune-b32-paper": ("20000 steps", 512, 0.03, 0, "500 steps", "cosine", 0, "81.28"),
    "in1k-finetune-b16-paper": ("20000 steps", 512, 0.03, 0, "500 steps", "cosine", 0, "83.97"),
    "in1k-finetune-l16-paper": ("20000 steps", 512, 0.03, 0, "500 steps", "cosine", 0, "85.15"),
    "in1k-transfer-b32": ("20000 steps", 512, 0.03, 0, "500 steps", "cosine", 0, "83.27"),
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
