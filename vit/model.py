"""The Vision Transformer, as Google's JAX code and timm compute it.

    images (B, 3, H, W) -> patches (B, N, D) -> blocks -> norm -> pool (B, D) -> logits (B, K)

Shapes: B images, N tokens (class token if there is one, registers, patches), D width, A heads,
K classes. Parameter names and shapes are timm's, so its checkpoints load without conversion.
Weights are initialised as in the reference implementations (see `ViT.init_weights`).
"""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit.config import ViTConfig
from vit.dropout import Dropout, DropPath, number_layers
from vit.positions import sincos2d

GELU = {"exact": nn.GELU, "tanh": partial(nn.GELU, approximate="tanh")}


class PatchEmbed(nn.Module):
    """Cut images into patches and project each: (B, 3, H, W) -> (B, N, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(3, config.width, kernel_size=side, stride=side)

    def forward(self, images: Tensor) -> Tensor:
        """Convolve on CPUs; on accelerators multiply rows of patches by the kernel.

        The results are the same. The matrix product is faster on accelerators in both directions,
        and `torch.compile` fuses cutting the patches into the kernel that normalises the pixels.
        On CPUs oneDNN's convolution is faster.
        """
        if images.device.type == "cpu":
            return self.proj(images).flatten(2).transpose(1, 2)
        return self.product(images)

    def product(self, images: Tensor) -> Tensor:
        """The convolution as one matrix product."""
        (side, _), weight = self.proj.kernel_size, self.proj.weight
        rows = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, 3, h, P, w, P)
        rows = rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, 3 * P * P)
        return F.linear(rows, weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Self-attention of all tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = nn.LayerNorm(config.width // config.heads, eps=config.norm_eps)
            self.k_norm = nn.LayerNorm(config.width // config.heads, eps=config.norm_eps)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, keep: int | None = None) -> Tensor:
        """Attend; return the first `keep` tokens (default: all): (B, N, D) -> (B, keep, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, A, D/A)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, A, N, D/A) each
        if self.q_norm is not None:  # autocast norms in float32, and attention wants one type
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        x = F.scaled_dot_product_attention(q[:, :, :keep], k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two dense layers, applied to each token."""

    def __init__(self, config: ViTConfig, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.act = GELU[config.gelu]()
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Transform each token: (..., D) -> (..., D)."""
        return self.fc2(self.drop(self.act(self.fc1(x)), keys))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(config.width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel: (..., D) -> (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """Encoder block: attention and MLP, each after a LayerNorm and with a residual connection."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        scale = nn.Identity if config.layer_scale is None else partial(LayerScale, config)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config, config.dropout)
        self.ls2 = scale()
        self.drop1, self.drop2 = Dropout(config.dropout), Dropout(config.dropout)
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor, keep: int | None = None, keys: Tensor | None = None) -> Tensor:
        """Return the first `keep` tokens (default: all): (B, N, D) -> (B, keep, D)."""
        branch = self.ls1(self.drop1(self.attn(self.norm1(x), keep), keys))
        # contiguous: Inductor's int8 product adds the wrong rows into a view of rows (torch 2.13)
        x = x[:, :keep].contiguous() + self.drop_path1(branch, keys).to(x.dtype)
        branch = self.ls2(self.drop2(self.mlp(self.norm2(x), keys), keys))
        return x + self.drop_path2(branch, keys).to(x.dtype)


class AttentionPool(nn.Module):
    """MAP head: one learned query attends to all tokens, then an MLP (big_vision's `MAPHead`)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.latent = nn.Parameter(torch.empty(1, 1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Pool the tokens: (B, N, D) -> (B, D)."""
        query = self.q(self.latent).expand(x.shape[0], -1, -1)
        q = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, A, 1, D/A)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]


class ViT(nn.Module):
    """Vision Transformer of the shape in its config.

    `features` returns the head's input; calling the model returns logits. Both raise ValueError
    for images of another size than the config's. In training, masks of dropout and stochastic depth
    follow from the `keys` (B,) of the images (`vit.dropout.image_keys`); without, keys are drawn
    from PyTorch's generator of the device.
    """

    residual_dtype = torch.float32
    """Type of the residual stream under autocast; without autocast it is that of the weights."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        if config.num_classes is None:
            raise ValueError(
                "num_classes is None, but the head needs a size; set it to the number of classes in"
                " the data: dataclasses.replace(config, num_classes=...)"
            )
        self.config = config
        width = config.width
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.pool == "token" else None
        self.reg_token = (
            nn.Parameter(torch.empty(1, config.registers, width)) if config.registers else None
        )
        positions = torch.empty(1, config.num_positions, width)
        if config.positions == "learned":
            self.pos_embed = nn.Parameter(positions)
        else:  # fixed, but stored in checkpoints, so that a loader does not need the formula
            self.register_buffer("pos_embed", positions)
        self.drop = Dropout(config.dropout)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        if config.drop_path_rates == "constant":
            rates = [config.drop_path] * config.depth
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm, self.fc_norm = (nn.Identity(), norm) if config.fc_norm else (norm, nn.Identity())
        self.attn_pool = AttentionPool(config) if config.pool == "map" else None
        self.pre_logits = nn.Identity()
        if config.pre_logits:  # the ViT paper's tanh layer for pre-training
            self.pre_logits = nn.Sequential(OrderedDict(fc=nn.Linear(width, width), act=nn.Tanh()))
        self.head = nn.Linear(width, config.num_classes)
        self.drops = number_layers(self)
        self.init_weights()

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Compute logits: (B, 3, H, W) -> (B, K)."""
        return self.head(self.features(images, keys))

    def features(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Compute the input of the head: (B, 3, H, W) -> (B, D)."""
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images are {tuple(images.shape)}, but the model takes (B, 3, {size}, {size});"
                " resize them, or load the weights into a model with their image_size"
            )
        if keys is None and self.training and self.drops:
            keys = torch.randint(2**32, (len(images),), device=images.device)
        x = self.drop(self.embed(self.patch_embed(images)), keys)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(self.residual_dtype)
        for i, block in enumerate(self.blocks, start=1):
            # the head reads only the class token, so the last block need not compute the rest
            keep = 1 if self.cls_token is not None and i == len(self.blocks) else None
            if self.config.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, keep, keys, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, keep, keys)
        return self.pre_logits(self.fc_norm(self.pool(self.norm(x))))

    def embed(self, patches: Tensor) -> Tensor:
        """Add positions, and put the class token and the registers first: -> (B, N, D)."""
        parts = [t for t in (self.cls_token, self.reg_token) if t is not None]
        parts = [token.expand(patches.shape[0], -1, -1) for token in parts]
        if not self.config.class_position:
            return torch.cat([*parts, patches + self.pos_embed], dim=1)
        return (torch.cat([*parts, patches], dim=1) if parts else patches) + self.pos_embed

    def pool(self, x: Tensor) -> Tensor:
        """Reduce the tokens to one vector: (B, N, D) -> (B, D); the mean leaves registers out."""
        if self.attn_pool is not None:
            return self.attn_pool(x)
        return x[:, self.config.registers :].mean(1) if self.cls_token is None else x[:, 0]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights as in the reference implementation.

        The reference is google-research/vision_transformer for models with a class token and
        big_vision for models without; they differ in the scale of learned positions.
        """
        width = self.config.width
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, self.config.layer_scale)
        lecun_normal(self.patch_embed.proj.weight)
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)  # DINOv2's; equal registers would stay equal
        if self.config.positions == "learned":
            std = 0.02 if self.cls_token is not None else width**-0.5
            nn.init.normal_(self.pos_embed, std=std)
        else:
            self.pos_embed.zero_()  # including the slot of the class token
            self.pos_embed[:, -(self.config.grid**2) :] = sincos2d(self.config.grid, width)
        for block in self.blocks:
            init_attention(block.attn.qkv, block.attn.proj)
            init_mlp(block.mlp)
        if self.attn_pool is not None:
            nn.init.xavier_uniform_(self.attn_pool.latent[0])
            init_attention(self.attn_pool.q, self.attn_pool.kv, self.attn_pool.proj)
            init_mlp(self.attn_pool.mlp)
        if self.config.pre_logits:
            lecun_normal(self.pre_logits.fc.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, self.config.head_bias)


def init_attention(*layers: nn.Linear) -> None:
    """Draw each D x D matrix by Xavier's method.

    A fused qkv holds three such matrices. As one 3D x D matrix its weights would be too small by
    the square root of two.
    """
    for layer in layers:
        for matrix in layer.weight.split(layer.in_features):
            nn.init.xavier_uniform_(matrix)


def init_mlp(mlp: Mlp) -> None:
    """Draw kernels by Xavier's method, and biases close to zero."""
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(layer.bias, std=1e-6)


def lecun_normal(weight: Tensor) -> None:
    """Flax's default kernel: a normal truncated at two deviations, then of variance 1 / fan-in."""
    std = weight[0].numel() ** -0.5 / 0.87962566103423978  # deviation of the truncated normal
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
