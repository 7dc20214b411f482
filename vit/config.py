"""Settings of the model, the images, the loss and the optimizer.

Nothing here imports PyTorch, so that a command line is parsed and checked before the slow imports.
Defaults are defined only here. The docstring under a field is its `--help`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

from support.settings import Rule, Settings, broken, setting
from vit.augment_config import AugmentConfig
from vit.model_config import ModelConfig
from vit.registry import LOSSES, OPTIMIZERS

Unit = Literal["steps", "epochs", "examples", "fraction"]
# width, depth, MLP width, heads: big_vision `models/vit.py:decode_variant`
SIZES = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelConfig):
    """Shape of one Vision Transformer, and what it costs."""

    @classmethod
    def named(cls, name: str, **settings: object) -> "ViTConfig":
        """Return the config of a published size such as "S/16"; keywords set the other fields."""
        size, _, patch = name.partition("/")
        if size not in SIZES or not patch.isdigit():
            raise ValueError(f"unknown ViT {name!r}; sizes: {', '.join(SIZES)}; for example S/16")
        shape = zip(("width", "depth", "mlp_width", "heads"), SIZES[size], strict=True)
        return cls(**{"patch_size": int(patch), **dict(shape), **settings})

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters, including the head."""
        width, hidden = self.width, self.mlp_width
        embedding = 3 * self.patch_size**2 * width + width + self.num_prefix * width
        positions = self.num_positions * width if self.positions == "learned" else 0
        mlp = 2 * width * hidden + hidden + width
        attention = 4 * (width**2 + width)
        block = attention + mlp + 4 * width - (not self.qkv_bias) * 3 * width
        block += (self.layer_scale is not None) * 2 * width + self.qk_norm * 4 * width // self.heads
        pool = (width + attention + 2 * width + mlp) if self.pool == "map" else 0
        pre_logits = width**2 + width if self.pre_logits else 0
        head = (width + 1) * (self.num_classes or 0)
        return embedding + positions + self.depth * block + 2 * width + pool + pre_logits + head

    @property
    def published_flops(self) -> int:
        """Floating-point operations of one image's forward pass, two per multiply-add.

        Counts only matrix products, including attention. Papers and timm report half of this
        number as "GFLOPs".
        """
        tokens, width = self.num_tokens, self.width
        block = tokens * (4 * width**2 + 2 * width * self.mlp_width) + 2 * tokens**2 * width
        head = width * (self.num_classes or 0) + self.pre_logits * width**2
        if self.pool == "map":
            head += 2 * width * ((tokens + 1) * width + tokens + self.mlp_width)
        return 2 * (self.grid**2 * 3 * self.patch_size**2 * width + self.depth * block + head)

    @property
    def forward_flops(self) -> int:
        """Operations that the forward pass really computes; a training step costs three times this.

        With a class token, the last block computes only queries, keys and values for the other
        tokens, which saves 6 % of `published_flops` for B/16.
        """
        if self.pool != "token":
            return self.published_flops
        per_token = self.width**2 + 2 * self.width * (self.mlp_width + self.num_tokens)
        return self.published_flops - 2 * (self.num_tokens - 1) * per_token


@dataclass(frozen=True, kw_only=True)
class ImageConfig(AugmentConfig):
    """Preprocessing of images for training and for evaluation."""

    train_crop: Literal["inception", "simple", "squash"] = "inception"
    """Training: a crop of random area and aspect ratio, resized bilinearly without antialiasing as
    in big_vision; a random square of the image with its short side resized (bicubic, DeiT III); or
    the whole image with another aspect ratio (bilinear, ImageNet-21K-P)."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """Inception: smallest and largest share of the image area that a training crop covers."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Inception: smallest and largest aspect ratio (width / height) of a training crop."""
    eval_resize: Literal["short", "squash"] = "short"
    """Evaluation: resize the short side to image size / crop_pct, or both sides ("squash"), which
    changes the aspect ratio."""
    crop_pct: float = 0.875
    """Share of the resized side that the evaluation crop covers (224 of 256). Protocols
    that crop corners need room around them: for a larger share they resize to 256/224 of the image
    size."""
    eval_interpolation: Literal["area", "linear", "bilinear", "bicubic"] = "area"
    """Area as in big_vision, linear (bilinear without antialiasing) as in vision_transformer, or
    Pillow's antialiased bilinear or bicubic as in timm."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from pixels in [0, 1], per channel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides the pixels after the mean is subtracted, per channel; 0.5 and 0.5 give [-1, 1]."""

    def rules(self) -> Iterator[Rule]:
        """Check the ranges."""
        yield from super().rules()
        area, aspect = self.crop_area, self.crop_aspect
        yield from broken(
            crop_area=(0 < area[0] <= area[1] <= 1, "must be 0 < low <= high <= 1"),
            crop_aspect=(0 < aspect[0] <= aspect[1] < inf, "must be 0 < low <= high"),
            crop_pct=(0 < self.crop_pct <= 1, "must be above 0 and at most 1"),
            std=(min(self.std) > 0, "must be above 0"),
        )

    def eval_side(self, size: int) -> int:
        """Side to which the evaluation resizes an image, for a view of `size` pixels."""
        return int(size / self.crop_pct + 1e-6)

    def corner_side(self, size: int) -> int:
        """Side to which protocols that crop corners resize: `eval_side`, but with room around.

        A crop_pct near 1 would leave corners and centre the same view. AlexNet's share of the
        resized side, 224 of 256, is therefore the largest.
        """
        return int(size / min(self.crop_pct, 224 / 256) + 1e-6)


@dataclass(frozen=True, kw_only=True)
class MixConfig(Settings):
    """Mixing of pairs of training images, on the device."""

    mixup: float = 0.0
    """Mixup: alpha of the Beta distribution of the weights; 0 turns it off."""
    cutmix: float = 0.0
    """CutMix: alpha of the Beta distribution of the areas; 0 turns it off. With mixup, each pair of
    images draws one of the two."""

    def rules(self) -> Iterator[Rule]:
        """Check that each is an alpha of a Beta distribution, or 0."""
        yield from broken(
            mixup=(0 <= self.mixup < inf, "must be at least 0; 0 turns it off"),
            cutmix=(0 <= self.cutmix < inf, "must be at least 0; 0 turns it off"),
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """The loss."""

    name: str = setting("softmax", choices=lambda: LOSSES)
    """Softmax cross-entropy, sigmoid cross-entropy summed over classes, or softmax cross-entropy at
    each level of the WordNet tree ("semantic")."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""

    def rules(self) -> Iterator[Rule]:
        """Check the smoothing."""
        allowed = 0 <= self.label_smoothing < 1
        yield from broken(label_smoothing=(allowed, "must be at least 0 and below 1"))


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """Optimizer and learning-rate schedule."""

    name: str = setting("adamw", choices=lambda: OPTIMIZERS, common=True)
    """AdamW, AdamW with 8-bit moments (needs the extra "quant"), LAMB, or momentum SGD."""
    lr: float = setting(1e-3, common=True)
    """Peak learning rate."""
    weight_decay: float = setting(0.1, common=True)
    """Decay of kernels; biases, norms, positions and the class token never decay."""
    decay_scaled_by_lr: bool = True
    """True: each step removes lr x weight_decay, as in PyTorch and the papers. False: each step
    removes weight_decay x (lr / peak lr), as in big_vision, whose 1e-4 is 0.1 here at lr 1e-3."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW and LAMB: decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW and LAMB: term added to the root of the second moment."""
    momentum: float = 0.9
    """SGD: momentum."""
    clip_norm: float | None = 1.0
    """Scale larger gradients down to this global norm; None turns clipping off."""
    layer_decay: float = 1.0
    """Learning rate of each block as a multiple of the next block's; 1 uses one rate everywhere."""
    ema: float | None = None
    """Decay of a moving average of the weights, for example 0.9999; None turns it off."""
    schedule: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    """Learning rate after the warm-up: half a cosine or a line down to final_lr, constant, or
    proportional to one over the square root of the step."""
    warmup: float = setting(0.1, common=True)
    """Length of the linear warm-up, in warmup_unit; 0 turns it off."""
    warmup_unit: Unit = setting("fraction", common=True)
    """Unit of warmup; fraction means a fraction of all steps."""
    warmup_lr: float = 0.0
    """Learning rate of the first step of the warm-up."""
    final_lr: float = 0.0
    """Learning rate at the end of cosine and linear; the ViT paper's linear ends at 1e-5."""
    rsqrt_timescale: int = 10_000
    """Rsqrt: steps after which the rate has fallen by a factor of the square root of two."""
    cooldown: float = 0.0
    """Length of the linear descent to 0 at the end, in cooldown_unit; 0 turns it off."""
    cooldown_unit: Unit = "fraction"
    """Unit of cooldown."""

    def rules(self) -> Iterator[Rule]:
        """Check the ranges, and that the decay setting has an effect."""
        for name in ("weight_decay", "warmup_lr", "final_lr", "warmup", "cooldown"):
            if not 0 <= getattr(self, name) < inf:
                yield name, "must be at least 0"
        for name in ("warmup_lr", "final_lr"):
            if getattr(self, name) > self.lr > 0:
                yield name, f"must not exceed lr ({self.lr})"
        clip, ema = self.clip_norm, self.ema
        yield from broken(
            lr=(0 < self.lr < inf, "must be above 0"),
            betas=(all(0 <= beta < 1 for beta in self.betas), "must be at least 0 and below 1"),
            eps=(self.eps > 0, "must be above 0"),
            momentum=(0 <= self.momentum < 1, "must be at least 0 and below 1"),
            layer_decay=(0 < self.layer_decay <= 1, "must be above 0 and at most 1"),
            rsqrt_timescale=(self.rsqrt_timescale >= 1, "must be at least 1"),
            clip_norm=(clip is None or 0 < clip < inf, "must be above 0, or none"),
            ema=(ema is None or 0 < ema < 1, "must be between 0 and 1, or none"),
        )
        for name in ("warmup", "cooldown"):
            if getattr(self, f"{name}_unit") == "fraction" and getattr(self, name) >= 1:
                yield name, "must be below 1 as a fraction of the run"
        decoupled = OPTIMIZERS[self.name].decoupled_decay
        if self.weight_decay and not self.decay_scaled_by_lr and not decoupled:
            rule = f"must be true for {self.name}, in which decay is no step of its own"
            yield "decay_scaled_by_lr", f"{rule}; set it to true, or weight_decay to 0"
