"""The shape of a model, read off its weights.

{our name: tensor} and facts that shapes do not show (heads, gelu, norm_eps) -> ViTConfig
"""

import logging
from collections.abc import Mapping

from torch import Tensor

from vit.config import SIZES, ViTConfig
from vit.positions import num_prefix, position_slots

log = logging.getLogger(__name__)

NEEDED = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")


def traits_of(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The settings of a model that the names of its tensors show."""
    pool = "map" if "attn_pool.latent" in tensors else "mean"
    registers = tensors.get("reg_token")
    return {
        "pool": "token" if "cls_token" in tensors else pool,
        "registers": 0 if registers is None else registers.shape[1],
        "class_position": not num_prefix(tensors) or position_slots(tensors) != 0,
        # the initial value, which weights do not show and do not need
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "fc_norm": "fc_norm.weight" in tensors,
        "pre_logits": "pre_logits.fc.weight" in tensors,
    }


def shape_of(tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> ViTConfig:
    """The config of a model with these weights; ValueError if they are not a ViT's.

    `facts` are settings that the file states elsewhere. Without them the number of heads is that of
    the published model of this shape, or one for 64 channels. Without a head num_classes is None.
    """
    absent = [name for name in NEEDED if name not in tensors]
    if absent:
        some = ", ".join(list(tensors)[:3])
        raise ValueError(
            f"these are not the weights of a ViT: {', '.join(absent)} missing, found {some}, ...;"
            " known names: timm's, transformers' ViT and DINOv2, DeiT III's, DINOv2's, Google's"
        )
    width, _, _, side = tensors["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    mlp_width = len(tensors["blocks.0.mlp.fc1.weight"])
    positions, head = tensors.get("pos_embed"), tensors.get("head.weight")
    grid = 224 // side
    if positions is not None:
        grid = round((positions.shape[1] - (position_slots(tensors) or 0)) ** 0.5)
    found = {
        "image_size": grid * side,
        "patch_size": side,
        "width": width,
        "depth": depth,
        "mlp_width": mlp_width,
        "heads": facts.get("heads") or heads_of(tensors, width, depth, mlp_width),
        "num_classes": None if head is None else len(head),
        "positions": "sincos2d" if positions is None else "learned",
        **traits_of(tensors),
    }
    return ViTConfig(**{**found, **facts})


def heads_of(tensors: Mapping[str, Tensor], width: int, depth: int, mlp_width: int) -> int:
    """Heads as the norm of queries shows; else those of the published model; else one per 64."""
    if (norm := tensors.get("blocks.0.attn.q_norm.weight")) is not None:
        return width // len(norm)
    for size in SIZES.values():
        if size[:3] == (width, depth, mlp_width):
            return size[3]
    if width % 64:
        log.warning("the number of heads of width %d is unknown; set --model.heads", width)
        return 1
    return width // 64


def differences(tensors: Mapping[str, Tensor], config: ViTConfig) -> dict[str, object]:
    """The settings that a model needs for these weights and that `config` does not have."""
    found = traits_of(tensors)
    if config.layer_scale is not None and found["layer_scale"] is not None:
        del found["layer_scale"]
    if config.positions == "sincos2d" or config.num_prefix == num_prefix(tensors):
        del found["class_position"]  # slots are added or removed when loading
    return {name: value for name, value in found.items() if value != getattr(config, name)}
