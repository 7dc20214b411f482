"""What a recipe says about the model, the images, the loss and the optimizer.

Nothing here imports PyTorch, so that a command line can be parsed and checked before the slow imports.
Defaults stand here and nowhere else; the docstring under a field is its `--help`.
"""

from dataclasses import dataclass
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
    """Side of the square input, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels; divides image_size."""
    width: int = 384
    """Token width D."""
    depth: int = 12
    """Number of blocks."""
    mlp_width: int = 1536
    """Hidden width of each MLP."""
    heads: int = 6
    """Attention heads; divides width."""
    num_classes: int | None = None
    """Outputs of the head; None takes the number of classes of the data."""
    pool: Literal["token", "mean"] = "token"
    """What the head reads: the class token, or the mean over tokens."""
    positions: Literal["learned", "sincos2d"] = "learned"
    """Position embedding: learned, or fixed 2-D sin-cos after big_vision."""
    head_bias: float = 0.0
    """Initial bias of the head; about -ln K (-10 for 21k classes) suits the sigmoid loss."""

    def __post_init__(self) -> None:
        """Reject shapes that do not divide."""
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})"
            )
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")

    @classmethod
    def named(cls, name: str, **settings: object) -> "ViTConfig":
        """Config of a published size such as "S/16", with other fields by keyword."""
        size, _, patch = name.partition("/")
        if size not in SIZES or not patch.isdigit():
            raise ValueError(f"unknown ViT {name!r}; sizes: {', '.join(SIZES)}; for example S/16")
        width, depth, mlp_width, heads = SIZES[size]
        return cls(
            patch_size=int(patch),
            width=width,
            depth=depth,
            mlp_width=mlp_width,
            heads=heads,
            **settings,
        )
