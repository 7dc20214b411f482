"""Dialects: under which names other programs store the weights of a ViT.

    {their name: tensor} -> translated -> {our name: tensor} -> spoken -> {their name: tensor}

Our names are timm's, so timm, MAE and Alibaba's ImageNet-21K-P (MIIL) need no names. To add a
dialect, add a row to DIALECTS: how to recognise it, its names, which models it has, and how its
program runs them. Google's `.npz` have other layouts too; their names are in `vit.npz`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vit.config import ViTConfig
from vit.names import DINOV2, VIT, Name
from vit.positions import position_slots, without_slots

BLOCK = re.compile(r"(?:^|\.)(?:blocks|layer|layers)\.(\d+)\.")
SUFFIXES = ("", ".weight", ".bias")
EITHER = (False, True)
# which values of its settings a model may have; a row of a dialect changes some of them
PLAIN = {
    "pool": ("token",),
    "class_position": EITHER,
    "registers": (False,),
    "registers with positions": (False,),
    "layer_scale": (False,),
    "qkv_bias": (True,),
    "qk_norm": (False,),
    "fc_norm": (False,),
    "pre_logits": (False,),
}
RANKS = {
    "patch_embed.proj.weight": 4,
    "cls_token": 3,
    "reg_token": 3,
    "pos_embed": 3,
    "head.weight": 2,
}
POOLS = ("token", "mean", "map")
WHY = {
    "pre_logits": " (it has no tanh layer before the head, and a tanh cannot be folded into the"
    " head's matrix: export .npz, or export without the head and the layer: --head drop)",
    "registers with positions": " (its registers have none: class_position=False)",
}
TIMM_TOLD = "; create its model with act_layer and norm_layer that say the same"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SQUASHED = {"eval_resize": "squash", "crop_pct": 1.0, "eval_interpolation": "bilinear"}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How another program stores a ViT."""

    mark: str | None = None
    """Pattern of a key that files of this dialect have, and no others; None is never recognised."""
    lacks: str | None = None
    """Pattern of a key that files of this dialect do not have, if `mark` is not enough."""
    names: tuple[Name, ...] = ()
    """Names that are not ours; of several for one of ours, the first is written."""
    prefix: str = ""
    """Prefix of all names except the head's in files that have a head."""
    ignored: tuple[str, ...] = ()
    """Tensors (1, D) that a classifier does not use; written as zeros, as the loader wants them."""
    token_slot: bool | None = None
    """Whether positions have a slot for the class token, and only for it; None: as in the model."""
    says: Mapping[str, tuple]
    """The models that it has: allowed values of each key of PLAIN."""
    head_of_two: bool = False
    """Whether the head reads the class token and the mean of the patches, side by side."""
    architecture: str = ""
    """Class of transformers, whose `config.json` states the settings."""
    gelu: str = "exact"
    """The form of GELU that its program computes, unless it is told another."""
    norm_eps: float = 1e-6
    """The term in its LayerNorms, unless it is told another."""
    told: str = ""
    """How to tell it."""
    images: Mapping[str, object] = field(default_factory=dict)
    """How its program prepares images for evaluation: fields of ImageConfig."""


# dinov2/data/transforms.py, and transformers' BitImageProcessor: 224 of 256
DINOV2_IMAGES = {**IMAGENET, "crop_pct": 0.875, "eval_interpolation": "bicubic"}
TRANSFORMERS_DINOV2 = {
    "images": DINOV2_IMAGES,
    "names": DINOV2,
    "ignored": ("embeddings.mask_token",),
    "token_slot": True,
    "head_of_two": True,
}
NPZ = {**PLAIN, "pool": POOLS, "pre_logits": EITHER}

DIALECTS = {
    "timm": Dialect(
        told=TIMM_TOLD,
        says={**dict.fromkeys(PLAIN, EITHER), "pool": POOLS, "pre_logits": (False,)},
    ),
    "deit3": Dialect(
        mark=r"\.gamma_1$",
        names=tuple(Name(f"blocks.{{i}}.gamma_{j}", f"blocks.{{i}}.ls{j}.gamma") for j in (1, 2)),
        token_slot=False,
        told=TIMM_TOLD,
        # datasets.py with --eval-crop-ratio 1.0 of README_revenge.md
        images={**IMAGENET, "crop_pct": 1.0, "eval_interpolation": "bicubic"},
        says={**PLAIN, "layer_scale": (True,), "class_position": (False,)},
    ),
    "dinov2": Dialect(
        mark=r"^(register_tokens|mask_token)$",
        names=(Name("register_tokens", "reg_token"),),
        ignored=("mask_token",),
        token_slot=True,
        told=TIMM_TOLD,
        images=DINOV2_IMAGES,
        says={**PLAIN, "layer_scale": (True,), "registers": EITHER},
    ),
    "transformers": Dialect(
        mark=r"\.\d+\.layernorm_before\.",
        names=VIT,
        prefix="vit.",
        token_slot=True,
        architecture="ViTForImageClassification",
        norm_eps=1e-12,
        images=SQUASHED,  # ViTImageProcessor
        says={**PLAIN, "qkv_bias": EITHER},
    ),
    "transformers-dinov2-registers": Dialect(
        mark=r"embeddings\.register_tokens$",
        prefix="dinov2_with_registers.",
        architecture="Dinov2WithRegistersForImageClassification",
        says={**PLAIN, "layer_scale": (True,), "registers": (True,), "qkv_bias": EITHER},
        **TRANSFORMERS_DINOV2,
    ),
    "transformers-dinov2": Dialect(
        mark=r"\.layer_scale1\.lambda1$",
        prefix="dinov2.",
        architecture="Dinov2ForImageClassification",
        says={**PLAIN, "layer_scale": (True,), "qkv_bias": EITHER},
        **TRANSFORMERS_DINOV2,
    ),
    # ImageNet-21K-P: timm's names, and of timm's models with a class token only this has no biases
    "miil": Dialect(
        mark=r"^cls_token$",
        lacks=r"\.attn\.qkv\.bias$|\.attn\.q_norm\.|\.ls1\.|^reg_token$",
        told=TIMM_TOLD,
        # src_files/data_loading/data_loader.py
        images={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **SQUASHED},
        says={**PLAIN, "qkv_bias": (False,)},
    ),
    "npz-vit": Dialect(says=NPZ, gelu="tanh"),
    "npz-big_vision": Dialect(says=NPZ, gelu="tanh"),
}


def dialect_of(names: Mapping[str, Tensor]) -> str:
    """The dialect of a file's keys; timm's if no other is recognised."""
    for name, dialect in DIALECTS.items():
        if has(names, dialect.mark) and not has(names, dialect.lacks):
            return name
    return "timm"


def has(names: Iterable[str], pattern: str | None) -> bool:
    """Whether a name matches the pattern, if there is one."""
    return pattern is not None and any(re.search(pattern, name) for name in names)


def table(dialect: Dialect, tensors: Mapping[str, Tensor]) -> Iterator[Name]:
    """The names of all tensors that this dialect can have in a model of the tensors' depth."""
    blocks = [int(found[1]) for found in map(BLOCK.search, tensors) if found]
    for name in dialect.names:
        for i in range(1 + max(blocks, default=-1)) if "{i}" in name.ours else (0,):
            for end in SUFFIXES:
                theirs, ours = (n.replace("{i}", str(i)) + end for n in (name.theirs, name.ours))
                yield Name(theirs, ours, name.part, name.parts)


def translated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; keys that the dialect does not have stay as they are.

    A class token that is not pooled, as in MAE, is a register. Where registers have no positions,
    the class token's is added to the token, as the model does.
    """
    dialect = DIALECTS[dialect_of(tensors)]
    known = {name.theirs: name for name in table(dialect, tensors)}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        plain = key.removeprefix(dialect.prefix)
        if plain not in dialect.ignored:
            name = known.get(plain) or Name(key, key)
            parts.setdefault(name.ours, {})[name.part] = tensor
    # a tensor that lacks a part is too short; the check of its shape against the model finds it
    ours = {
        name: joined([numbered[i] for i in sorted(numbered)]) for name, numbered in parts.items()
    }
    check_ranks(ours)
    head = ours.get("head.weight")
    if dialect.head_of_two and head is not None and not head.chunk(2, dim=1)[1].any():
        ours["head.weight"] = head.chunk(2, dim=1)[0].contiguous()
    if "fc_norm.weight" in ours and "cls_token" in ours:
        tokens = [ours.pop("cls_token"), *([ours["reg_token"]] if "reg_token" in ours else [])]
        ours["reg_token"] = torch.cat(tokens, dim=1)
    if "reg_token" in ours and "cls_token" in ours and position_slots(ours) == 1:
        without_slots(ours)
    return ours


def joined(parts: list[Tensor]) -> Tensor:
    """The rows of all parts."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def check_ranks(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a tensor whose shape is read has another number of axes than a ViT's."""
    for name, rank in RANKS.items():
        if name in tensors and tensors[name].ndim != rank:
            shape = tuple(tensors[name].shape)
            raise ValueError(f"{name} is {shape}, but has {rank} axes in a ViT")


def spoken(state: Mapping[str, Tensor], config: ViTConfig, dialect_name: str) -> dict[str, Tensor]:
    """The state of a model under the names of a dialect; ValueError if it has no such model."""
    check_says(config, dialect_name)
    dialect, state = DIALECTS[dialect_name], dict(state)
    if dialect.token_slot and not config.class_position:
        positions = state["pos_embed"]
        state["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if dialect.head_of_two and "head.weight" in state:
        state["head.weight"] = torch.nn.functional.pad(state["head.weight"], (0, config.width))
    theirs: dict[str, list[Name]] = {}
    for name in table(dialect, state):
        known = theirs.setdefault(name.ours, [])
        if len(known) < name.parts:
            known.append(name)
    said = {}
    for ours, tensor in state.items():
        for name in theirs.get(ours) or [Name(ours, ours)]:
            prefix = "" if ours.startswith("head.") else dialect.prefix
            said[prefix + name.theirs] = tensor.chunk(name.parts)[name.part].clone()
    zeros = {dialect.prefix + name: torch.zeros(1, config.width) for name in dialect.ignored}
    return said | zeros


def check_says(config: ViTConfig, dialect: str) -> None:
    """Raise ValueError that lists all settings that a dialect's models do not have."""
    if dialect not in DIALECTS:
        raise ValueError(f"unknown dialect {dialect!r}; known: {', '.join(DIALECTS)}")
    says = DIALECTS[dialect].says
    traits = {name: getattr(config, name, None) for name in PLAIN}
    traits["layer_scale"] = config.layer_scale is not None
    traits["registers"] = config.registers > 0
    traits["registers with positions"] = config.registers > 0 and config.class_position
    problems = [
        f"{name}={getattr(config, name, value)}{WHY.get(name, '')}"
        for name, value in traits.items()
        if value not in says[name]
    ]
    if problems:
        raise ValueError(f"a model of {dialect} cannot have {'; '.join(problems)}")
