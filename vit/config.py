"""What a recipe says about the model, the images, the loss and the optimizer.

Nothing here imports PyTorch, so that a command line is parsed and checked before the slow imports.
Defaults stand here and nowhere else; the docstring under a field is its `--help`.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

# width, depth, MLP width, heads: big_vision `models/vit.py:decode_variant`
SIZES = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Shape of one Vision Transformer."""

    image_size: int = 224
    """Side of the square input, in pixels; a multiple of patch_size."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    width: int = 384
    """Token width D; a multiple of heads."""
    depth: int = 12
    """Number of blocks."""
    mlp_width: int = 1536
    """Hidden width of each MLP."""
    heads: int = 6
    """Attention heads."""
    num_classes: int | None = None
    """Outputs of the head; None takes the number of classes of the data."""
    pool: Literal["token", "mean", "map"] = "token"
    """What the head reads: a class token, the mean over tokens, or an attention (MAP) pool."""
    positions: Literal["learned", "sincos2d"] = "learned"
    """Position embedding: learned, or fixed 2-D sin-cos after big_vision."""
    pre_logits: bool = False
    """Put a tanh layer of width D before the head, as the ViT paper does in pre-training."""
    gelu: Literal["exact", "tanh"] = "exact"
    """GELU by erf as in timm, or the tanh approximation that Google's JAX code uses."""
    dropout: float = 0.0
    """Dropout after the position embedding and after each dense layer but q, k and v."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; the rate grows linearly from 0 at the first."""
    head_bias: float = 0.0
    """Initial bias of the head; about -ln K (-10 for 21k classes) suits the sigmoid loss."""
    checkpoint_blocks: bool = False
    """Recompute each block in the backward pass: less memory, about a third more work."""

    def __post_init__(self) -> None:
        """Reject shapes that do not divide and rates that are none."""
        for name in ("image_size", "patch_size", "width", "depth", "mlp_width", "heads"):
            check(name, getattr(self, name) >= 1, getattr(self, name), "must be at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size"
                f" ({self.patch_size}); nearest:"
                f" {max(1, round(self.image_size / self.patch_size)) * self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if self.positions == "sincos2d" and (self.width % 4 or self.width < 8):
            raise ValueError(
                f"width ({self.width}) must be a multiple of 4, and at least 8, for sincos2d"
                " positions; set positions='learned'"
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(
                f"num_classes is {self.num_classes}; at least 1, or None for the data's"
            )
        for name in ("dropout", "drop_path"):
            check(name, 0 <= getattr(self, name) < 1, getattr(self, name), "must be in [0, 1)")
        check("head_bias", isfinite(self.head_bias), self.head_bias, "must be finite")

    @classmethod
    def named(cls, name: str, **settings: object) -> "ViTConfig":
        """Config of a published size such as "S/16", with other fields by keyword."""
        size, _, patch = name.partition("/")
        if size not in SIZES or not patch.isdigit():
            raise ValueError(f"unknown ViT {name!r}; sizes: {', '.join(SIZES)}; for example S/16")
        width, depth, mlp_width, heads = SIZES[size]
        shape = dict(width=width, depth=depth, mlp_width=mlp_width, heads=heads)
        return cls(**{"patch_size": int(patch), **shape, **settings})

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens that the blocks see: patches, and the class token if there is one."""
        return self.grid**2 + (self.pool == "token")

    @property
    def num_parameters(self) -> int:
        """Trainable parameters, head included."""
        width, hidden = self.width, self.mlp_width
        tokens = self.grid**2 + (self.pool == "token")
        embedding = 3 * self.patch_size**2 * width + width + (self.pool == "token") * width
        positions = tokens * width if self.positions == "learned" else 0
        mlp = 2 * width * hidden + hidden + width
        attention = 4 * (width**2 + width)
        block = attention + mlp + 4 * width
        pool = (width + attention + 2 * width + mlp) if self.pool == "map" else 0
        pre_logits = width**2 + width if self.pre_logits else 0
        head = (width + 1) * (self.num_classes or 0)
        return embedding + positions + self.depth * block + 2 * width + pool + pre_logits + head

    @property
    def published_flops(self) -> int:
        """Floating-point operations of one image's forward pass, 2 for each multiply-add.

        Matrix products only, attention included. Papers and timm print half of it as "GFLOPs".
        """
        tokens, width = self.num_tokens, self.width
        block = tokens * (4 * width**2 + 2 * width * self.mlp_width) + 2 * tokens**2 * width
        head = width * (self.num_classes or 0) + self.pre_logits * width**2
        if self.pool == "map":
            head += 2 * width * ((tokens + 1) * width + tokens + self.mlp_width)
        return 2 * (self.grid**2 * 3 * self.patch_size**2 * width + self.depth * block + head)

    @property
    def forward_flops(self) -> int:
        """What of `published_flops` is really computed; a training step costs three times as much.

        With a class token the last block makes no other token, beyond its queries, keys and
        values: 6 % less for B/16.
        """
        if self.pool != "token":
            return self.published_flops
        spared = self.grid**2  # tokens
        per_token = self.width**2 + 2 * self.width * self.mlp_width
        return self.published_flops - 2 * spared * (per_token + 2 * self.num_tokens * self.width)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How an image becomes the model's input, in training and in evaluation."""

    crop_area: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest share of the image that a training crop covers."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width/height of a training crop."""
    flip: bool = True
    """Mirror half of the training images."""
    randaugment_layers: int = 0
    """RandAugment operations per training image; 0 is none."""
    randaugment_magnitude: float = 10.0
    """Strength of RandAugment on Google's scale, where 10 is the reference; more extrapolates.

    0 is not "no change" there: it inverts, blackens and greys (AugReg's first "light" setting)."""
    eval_resize: Literal["short", "squash"] = "short"
    """Evaluation: bring the short side to image size / crop_pct, or both sides (aspect lost)."""
    crop_pct: float = 0.875
    """Share of the resized side that the evaluation crop keeps (224 of 256)."""
    eval_interpolation: Literal["area", "bilinear", "bicubic"] = "area"
    """Area as big_vision, or Pillow's antialiased bilinear or bicubic as timm."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from pixels in [0, 1], per channel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides the pixels after the mean, per channel; 0.5 and 0.5 give [-1, 1]."""

    def __post_init__(self) -> None:
        """Reject ranges that are empty or turned round."""
        low, high = self.crop_area
        check("crop_area", 0 < low <= high <= 1, self.crop_area, "must be 0 < low <= high <= 1")
        low, high = self.crop_aspect
        check("crop_aspect", 0 < low <= high, self.crop_aspect, "must be 0 < low <= high")
        layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
        check("randaugment_layers", layers >= 0, layers, "must be 0 or more")
        check("randaugment_magnitude", 0 <= magnitude <= 30, magnitude, "must be in [0, 30]")
        check("crop_pct", 0 < self.crop_pct <= 1, self.crop_pct, "must be in (0, 1]")
        check("std", min(self.std) > 0, self.std, "must be positive")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixing of pairs of training images, on the device."""

    mixup: float = 0.0
    """Mixup: alpha of the Beta distribution of the weights; 0 is off."""
    cutmix: float = 0.0
    """CutMix: alpha of the Beta distribution of the areas; 0 is off. With mixup, each pair
    of images draws one of the two."""

    def __post_init__(self) -> None:
        """Reject negative alphas."""
        check("mixup", self.mixup >= 0, self.mixup, "must be 0 (off) or more")
        check("cutmix", self.cutmix >= 0, self.cutmix, "must be 0 (off) or more")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the logits are held against."""

    name: Literal["softmax", "sigmoid", "semantic"] = "softmax"
    """Softmax cross-entropy; sigmoid cross-entropy summed over classes; or softmax at each level
    of the WordNet tree."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""

    def __post_init__(self) -> None:
        """Reject a smoothing that is no share."""
        smoothing = self.label_smoothing
        check("label_smoothing", 0 <= smoothing < 1, smoothing, "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move, and how fast at each step."""

    name: Literal["adamw", "adamw8bit", "sgd"] = "adamw"
    """AdamW; AdamW with 8-bit moments (needs the extra "quant"); or momentum SGD."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decay of kernels; biases, norms, positions and the class token never decay."""
    decay_scaled_by_lr: bool = True
    """Each step removes lr x weight_decay, as in PyTorch and the papers. False removes weight_decay
    x (lr / peak lr) whatever the peak, as big_vision; its 1e-4 is 0.1 here at lr 1e-3."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW: decay of the two moments."""
    eps: float = 1e-8
    """AdamW: added to the root of the second moment."""
    momentum: float = 0.9
    """SGD: momentum."""
    clip_norm: float | None = 1.0
    """Scale the gradient down to this global norm; None does not clip."""
    layer_decay: float = 1.0
    """Each block learns at this multiple of the next one's rate; 1 is the same rate everywhere."""
    ema: float | None = None
    """Decay of a moving average of the weights, for example 0.9999; None keeps none."""
    schedule: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    """Course of the learning rate after the warm-up: half a cosine or a line down to final_lr,
    constant, or one over the square root of the step."""
    warmup: float = 0.1
    """Length of the linear warm-up, in warmup_unit; 0 is none."""
    warmup_unit: Literal["steps", "epochs", "examples", "fraction"] = "fraction"
    """What warmup counts; fraction is of all steps."""
    warmup_lr: float = 0.0
    """Learning rate of the first step of the warm-up."""
    final_lr: float = 0.0
    """Learning rate at the end of cosine and linear; the ViT paper's linear ends at 1e-5."""
    rsqrt_timescale: int = 10_000
    """Rsqrt: steps after which the rate has fallen by the square root of two."""
    cooldown: float = 0.0
    """Length of a linear descent to 0 that ends the run, in cooldown_unit; 0 is none."""
    cooldown_unit: Literal["steps", "epochs", "examples", "fraction"] = "fraction"
    """What cooldown counts."""

    def __post_init__(self) -> None:
        """Reject rates and shares out of range, and settings without effect."""
        check("lr", 0 < self.lr < float("inf"), self.lr, "must be positive")
        for name in ("weight_decay", "warmup_lr", "final_lr", "warmup", "cooldown"):
            value = getattr(self, name)
            check(name, 0 <= value < float("inf"), value, "must be 0 or more")
        for name in ("warmup_lr", "final_lr"):
            value = getattr(self, name)
            check(name, value <= self.lr, value, f"must not exceed lr ({self.lr})")
        check("betas", all(0 <= b < 1 for b in self.betas), self.betas, "must be in [0, 1)")
        check("eps", self.eps > 0, self.eps, "must be positive")
        check("momentum", 0 <= self.momentum < 1, self.momentum, "must be in [0, 1)")
        check("layer_decay", 0 < self.layer_decay <= 1, self.layer_decay, "must be in (0, 1]")
        check("rsqrt_timescale", self.rsqrt_timescale > 0, self.rsqrt_timescale, "must be positive")
        for name in ("clip_norm", "ema"):
            value = getattr(self, name)
            top = 1 if name == "ema" else float("inf")
            rule = f"must be None or in (0, {top})"
            check(name, value is None or 0 < value < top, value, rule)
        for name in ("warmup", "cooldown"):
            value, unit = getattr(self, name), getattr(self, f"{name}_unit")
            check(name, unit != "fraction" or value < 1, value, "of unit fraction must be below 1")
        if self.name == "sgd" and self.weight_decay and not self.decay_scaled_by_lr:
            raise ValueError(
                "decay_scaled_by_lr=False is for adamw and adamw8bit: SGD adds the decay to the"
                " gradient; set decay_scaled_by_lr=True or weight_decay=0"
            )


def check(name: str, good: bool, value: object, rule: str) -> None:
    """Raise ValueError naming the setting, its value and the rule, unless good."""
    if not good:
        raise ValueError(f"{name} is {value}, but it {rule}")
