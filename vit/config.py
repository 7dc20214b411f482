"""What a recipe says about the model, the images, the loss and the optimizer.

Nothing here imports PyTorch, so that a command line is parsed and checked before the slow imports.
Defaults stand here and nowhere else; the docstring under a field is its `--help`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from support.settings import Rule, Settings, setting
from vit.registry import LOSSES, OPTIMIZERS

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
class ViTConfig(Settings):
    """Shape of one Vision Transformer."""

    image_size: int = setting(224, common=True)
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

    def rules(self) -> Iterator[Rule]:
        """Sizes that divide, and rates that are probabilities."""
        for name in ("image_size", "patch_size", "width", "depth", "mlp_width", "heads"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1"
        if min(self.patch_size, self.heads) < 1:
            return
        if self.image_size % self.patch_size:
            multiple = max(1, round(self.image_size / self.patch_size)) * self.patch_size
            yield (
                "image_size",
                f"must be a multiple of patch_size ({self.patch_size}); nearest: {multiple}",
            )
        if self.width % self.heads:
            yield "width", f"must be a multiple of heads ({self.heads})"
        if self.positions == "sincos2d" and (self.width % 4 or self.width < 8):
            yield (
                "width",
                "must be a multiple of 4, and at least 8, for sincos2d positions; set "
                "positions to learned",
            )
        if self.num_classes is not None and self.num_classes < 1:
            yield "num_classes", "must be at least 1, or none to take the data's"
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                yield name, "must be at least 0 and below 1"
        if not isfinite(self.head_bias):
            yield "head_bias", "must be finite"

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
class ImageConfig(Settings):
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

    def rules(self) -> Iterator[Rule]:
        """Ranges that hold something."""
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            yield "crop_area", "must be 0 < low <= high <= 1"
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1] < inf:
            yield "crop_aspect", "must be 0 < low <= high"
        if self.randaugment_layers < 0:
            yield "randaugment_layers", "must be at least 0"
        if not 0 <= self.randaugment_magnitude <= 30:
            yield "randaugment_magnitude", "must be from 0 to 30"
        if not 0 < self.crop_pct <= 1:
            yield "crop_pct", "must be above 0 and at most 1"
        if not min(self.std) > 0:
            yield "std", "must be above 0"


@dataclass(frozen=True, kw_only=True)
class MixConfig(Settings):
    """Mixing of pairs of training images, on the device."""

    mixup: float = 0.0
    """Mixup: alpha of the Beta distribution of the weights; 0 is off."""
    cutmix: float = 0.0
    """CutMix: alpha of the Beta distribution of the areas; 0 is off. With mixup, each pair
    of images draws one of the two."""

    def rules(self) -> Iterator[Rule]:
        """Alphas of a Beta distribution, or 0."""
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < inf:
                yield name, "must be at least 0; 0 is off"


@dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """The loss."""

    name: str = setting("softmax", choices=lambda: LOSSES)
    """Softmax cross-entropy; sigmoid cross-entropy summed over classes; or softmax at each level
    of the WordNet tree."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""

    def rules(self) -> Iterator[Rule]:
        """A share."""
        if not 0 <= self.label_smoothing < 1:
            yield "label_smoothing", "must be at least 0 and below 1"


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """Optimizer and learning-rate schedule."""

    name: str = setting("adamw", choices=lambda: OPTIMIZERS, common=True)
    """AdamW; AdamW with 8-bit moments (needs the extra "quant"); or momentum SGD."""
    lr: float = setting(1e-3, common=True)
    """Peak learning rate."""
    weight_decay: float = setting(0.1, common=True)
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
    warmup: float = setting(0.1, common=True)
    """Length of the linear warm-up, in warmup_unit; 0 is none."""
    warmup_unit: Literal["steps", "epochs", "examples", "fraction"] = setting(
        "fraction", common=True
    )
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

    def rules(self) -> Iterator[Rule]:
        """Rates and shares in range, and no setting without effect."""
        if not 0 < self.lr < inf:
            yield "lr", "must be above 0"
        for name in ("weight_decay", "warmup_lr", "final_lr", "warmup", "cooldown"):
            if not 0 <= getattr(self, name) < inf:
                yield name, "must be at least 0"
        for name in ("warmup_lr", "final_lr"):
            if getattr(self, name) > self.lr > 0:
                yield name, f"must not exceed lr ({self.lr})"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", "must be at least 0 and below 1"
        if not self.eps > 0:
            yield "eps", "must be above 0"
        if not 0 <= self.momentum < 1:
            yield "momentum", "must be at least 0 and below 1"
        if not 0 < self.layer_decay <= 1:
            yield "layer_decay", "must be above 0 and at most 1"
        if self.rsqrt_timescale < 1:
            yield "rsqrt_timescale", "must be at least 1"
        if self.clip_norm is not None and not 0 < self.clip_norm < inf:
            yield "clip_norm", "must be above 0, or none"
        if self.ema is not None and not 0 < self.ema < 1:
            yield "ema", "must be between 0 and 1, or none"
        for name in ("warmup", "cooldown"):
            if getattr(self, f"{name}_unit") == "fraction" and getattr(self, name) >= 1:
                yield name, "must be below 1 as a fraction of the run"
        decoupled = OPTIMIZERS[self.name].decoupled_decay
        if self.weight_decay and not self.decay_scaled_by_lr and not decoupled:
            yield (
                "decay_scaled_by_lr",
                f"must be true for {self.name}, which adds the decay to the gradient; set it, or "
                "weight_decay to 0",
            )
