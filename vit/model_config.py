"""Settings of the model: what its weights are, and how it computes with them.

Nothing here imports PyTorch. The docstring under a field is its `--help`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from support.settings import Rule, Settings, below, broken, setting


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Settings of one Vision Transformer."""

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
    """Outputs of the head; None uses the number of classes in the data."""
    pool: Literal["token", "mean", "map"] = "token"
    """Input of the head: a class token, the mean over tokens, or an attention (MAP) pool."""
    positions: Literal["learned", "sincos2d"] = "learned"
    """Position embedding: learned, or fixed 2-D sin-cos as in big_vision."""
    pre_logits: bool = False
    """Insert a tanh layer of width D before the head, as the ViT paper does in pre-training."""
    class_position: bool = True
    """Positions for the class token and the registers too, not only for the patches."""
    registers: int = 0
    """Learned tokens after the class token that no head reads, as in DINOv2 with registers."""
    layer_scale: float | None = None
    """LayerScale: initial value of a learned factor per channel of each residual branch; None
    leaves the factors out."""
    qkv_bias: bool = True
    """Biases of queries, keys and values."""
    qk_norm: bool = False
    """LayerNorm of the queries and keys of each head."""
    fc_norm: bool = False
    """Mean and map: normalise after pooling instead of before it."""
    norm_eps: float = 1e-6
    """Term added to the variance in each LayerNorm; 1e-12 in models from transformers."""
    gelu: Literal["exact", "tanh"] = "exact"
    """GELU by erf as in timm, or the tanh approximation of Google's JAX code."""
    dropout: float = 0.0
    """Dropout after the position embedding and after each dense layer except q, k and v."""
    drop_path: float = 0.0
    """Stochastic depth: share of the images that skip a branch of the last block."""
    drop_path_rates: Literal["linear", "constant"] = "linear"
    """Stochastic depth of the other blocks: growing linearly from 0 at the first, or the same in
    all as in DeiT III."""
    head_bias: float = 0.0
    """Initial bias of the head; about -ln K (-10 for 21k classes) suits the sigmoid loss."""
    checkpoint_blocks: bool = False
    """Recompute each block in the backward pass: less memory, about a third more computation."""

    def rules(self) -> Iterator[Rule]:
        """Check that sizes divide each other and that rates are probabilities."""
        sizes = ("image_size", "patch_size", "width", "depth", "mlp_width", "heads")
        yield from below(self, 1, *sizes)
        patch, heads, width = self.patch_size, self.heads, self.width
        if min(patch, heads) < 1:
            return
        if self.image_size % patch:
            nearest = max(1, round(self.image_size / patch)) * patch
            yield "image_size", f"must be a multiple of patch_size ({patch}); nearest: {nearest}"
        if width % heads:
            yield "width", f"must be a multiple of heads ({heads})"
        if self.positions == "sincos2d" and (width % 4 or width < 8):
            rule = "must be a multiple of 4 and at least 8 for sincos2d positions"
            yield "width", f"{rule}; set positions to learned"
        scale = self.layer_scale
        yield from broken(
            class_position=(
                self.class_position or self.num_prefix > 0,
                "has no effect without a class token and registers; set it to true",
            ),
            registers=(self.registers >= 0, "must be at least 0"),
            layer_scale=(scale is None or isfinite(scale), "must be finite, or none"),
            fc_norm=(
                not self.fc_norm or self.pool != "token",
                "changes nothing for pool token, whose norm acts on each token; set it to false",
            ),
            norm_eps=(0 < self.norm_eps < 1, "must be above 0 and below 1"),
            num_classes=(
                self.num_classes is None or self.num_classes >= 1,
                "must be at least 1, or none to use the number of classes in the data",
            ),
            dropout=(0 <= self.dropout < 1, "must be at least 0 and below 1"),
            drop_path=(0 <= self.drop_path < 1, "must be at least 0 and below 1"),
            head_bias=(isfinite(self.head_bias), "must be finite"),
        )

    @property
    def grid(self) -> int:
        """Number of patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the patches: the class token if there is one, the registers."""
        return (self.pool == "token") + self.registers

    @property
    def num_tokens(self) -> int:
        """Number of tokens in a block: the patches, and those before them."""
        return self.grid**2 + self.num_prefix

    @property
    def num_positions(self) -> int:
        """Number of position embeddings."""
        return self.grid**2 + self.class_position * self.num_prefix
