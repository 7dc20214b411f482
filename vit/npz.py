"""Google's `.npz` checkpoints: conversion of keys and shapes from and to timm's.

    .npz (flat JAX keys, kernels as input x output) <-> {timm name: tensor (output x input)}

The layout is detected from the keys, never from the file's name:
  vit          google-research/vision_transformer and AugReg: one counter for all modules of a
               block (`MlpBlock_3`); positions include a slot for the class token; keys of
               training files have the prefix `opt/target/`
  big_vision   one counter per kind of module (`MlpBlock_0`); positions of the patches only;
               prefix `params/`, `params/img/` or none; blocks may be stacked along a leading
               axis, and arrays may be raw bfloat16
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from support.files import written

Array = np.ndarray
PREFIXES = ("opt/target/", "params/img/", "params/", "")
COUNTERS = {"vit": (2, 1, 3), "big_vision": (1, 0, 0)}  # second norm, attention, MLP of a block
POSITIONS = {
    "vit": "Transformer/posembed_input/pos_embedding",
    "big_vision": "pos_embedding",
    "big_vision before 2022": "Transformer/pos_embedding",
}
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError)

# kind of parameter -> (function from JAX to timm, function from timm and head count to JAX)
TRANSFORMS: dict[str, tuple[Callable[[Array], Array], Callable[[Array, int], Array]]] = {
    "same": (lambda a: a, lambda a, heads: a),
    "dense": (lambda a: a.T, lambda a, heads: a.T),
    "conv": (lambda a: a.transpose(3, 2, 0, 1), lambda a, heads: a.transpose(2, 3, 1, 0)),
    "into heads": (  # (D, A, D/A) <-> (D, D)
        lambda a: a.reshape(len(a), -1).T,
        lambda a, heads: a.T.reshape(a.shape[1], heads, -1),
    ),
    "head bias": (lambda a: a.reshape(-1), lambda a, heads: a.reshape(heads, -1)),
    "out of heads": (  # (A, D/A, D) <-> (D, D)
        lambda a: a.reshape(-1, a.shape[-1]).T,
        lambda a, heads: a.T.reshape(heads, -1, len(a)),
    ),
}
RANKS = {"dense": 2, "conv": 4, "into heads": 3, "head bias": 2, "out of heads": 3}


class Entry(NamedTuple):
    """A JAX array and its timm tensor, of which it is part number `part` of `parts`."""

    jax: str
    timm: str
    kind: str
    part: int = 0
    parts: int = 1


def entries(depth: int, layout: str) -> Iterator[Entry]:
    """All arrays that the file of a ViT may contain, except positions."""
    yield Entry("cls", "cls_token", "same")
    yield Entry("MAPHead_0/probe", "attn_pool.latent", "same")
    for jax, timm, kind, *part in layers(depth, layout):
        bias_kind = "head bias" if kind == "into heads" else "same"
        yield Entry(
            f"{jax}/{'scale' if kind == 'same' else 'kernel'}", f"{timm}.weight", kind, *part
        )
        yield Entry(f"{jax}/bias", f"{timm}.bias", bias_kind, *part)


def layers(depth: int, layout: str) -> Iterator[Entry]:
    """The layers with a kernel or scale, whose kind is given here, and a bias."""
    norm2, attention, mlp = COUNTERS[layout]
    yield Entry("embedding", "patch_embed.proj", "conv")
    for i in range(depth):
        source, target = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        yield Entry(f"{source}/LayerNorm_0", f"{target}.norm1", "same")
        heads = f"{source}/MultiHeadDotProductAttention_{attention}"
        for part, name in enumerate(("query", "key", "value")):
            yield Entry(f"{heads}/{name}", f"{target}.attn.qkv", "into heads", part, 3)
        yield Entry(f"{heads}/out", f"{target}.attn.proj", "out of heads")
        yield Entry(f"{source}/LayerNorm_{norm2}", f"{target}.norm2", "same")
        for j in (0, 1):
            yield Entry(f"{source}/MlpBlock_{mlp}/Dense_{j}", f"{target}.mlp.fc{j + 1}", "dense")
    yield Entry("Transformer/encoder_norm", "norm", "same")
    heads = "MAPHead_0/MultiHeadDotProductAttention_0"
    yield Entry(f"{heads}/query", "attn_pool.q", "into heads")
    yield Entry(f"{heads}/key", "attn_pool.kv", "into heads", 0, 2)
    yield Entry(f"{heads}/value", "attn_pool.kv", "into heads", 1, 2)
    yield Entry(f"{heads}/out", "attn_pool.proj", "out of heads")
    yield Entry("MAPHead_0/LayerNorm_0", "attn_pool.norm", "same")
    for j in (0, 1):
        yield Entry(f"MAPHead_0/MlpBlock_0/Dense_{j}", f"attn_pool.mlp.fc{j + 1}", "dense")
    yield Entry("pre_logits", "pre_logits.fc", "dense")
    yield Entry("head", "head", "dense")


def read_npz(path: Path) -> tuple[dict[str, Tensor], int]:
    """Read weights under timm's names, and the number of attention heads, known from the shapes.

    Nothing is unpickled. A model with fixed positions has no `pos_embed`.
    """
    arrays = unstack_blocks(without_prefix(path, read_arrays(path)))
    blocks = re.findall(r"Transformer/encoderblock_(\d+)/", "\n".join(arrays))
    depth = 1 + max(map(int, blocks), default=-1)
    is_new = any("encoderblock_0/MultiHeadDotProductAttention_0/" in name for name in arrays)
    parts: dict[str, dict[int, Array]] = {}
    heads = 0
    for entry in entries(depth, "big_vision" if is_new else "vit"):
        if entry.jax not in arrays:
            continue
        array = arrays.pop(entry.jax)
        if array.ndim != RANKS.get(entry.kind, array.ndim):
            raise ValueError(
                f"{path}: {entry.jax} is {array.shape}, but has {RANKS[entry.kind]} axes in a ViT"
            )
        if not array.ndim:
            raise ValueError(f"{path}: {entry.jax} is a single number")
        if entry.kind == "head bias":
            heads = len(array)
        parts.setdefault(entry.timm, {})[entry.part] = TRANSFORMS[entry.kind][0](array)
    # a tensor that lacks a part is too short; the check of its shape against the model finds it
    tensors = {
        name: np.concatenate([array for _, array in sorted(numbered.items())])
        for name, numbered in parts.items()
    }
    for name in POSITIONS.values():
        if name in arrays:
            tensors["pos_embed"] = with_token_slot(arrays.pop(name), "cls_token" in tensors)
    if arrays:
        raise ValueError(f"{path}: a plain ViT has no parameter for {', '.join(sorted(arrays))}")
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in tensors.items()}, heads


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of the file, floats as float32; raw two-byte values are bfloat16."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except BROKEN as error:
        raise ValueError(
            f"{path} is not a readable .npz file ({error}); it may be truncated: download it again"
        ) from error
    for name, array in arrays.items():
        if array.dtype.kind == "V" and array.dtype.itemsize == 2:
            arrays[name] = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif array.dtype.kind == "f":
            arrays[name] = array.astype(np.float32, copy=False)
    return arrays


def without_prefix(path: Path, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The model's arrays, without the prefix that training programs add to their names."""
    prefix = next((p for p in PREFIXES if f"{p}embedding/kernel" in arrays), None)
    if prefix is None:
        raise ValueError(
            f"{path} is not a ViT of Google's: it lacks the key embedding/kernel (also with the"
            f" prefixes {', '.join(PREFIXES[:-1])}); its keys are {', '.join(list(arrays)[:3])}..."
        )
    inner = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
    for name, array in inner.items():
        if array.dtype.kind != "f":
            raise ValueError(f"{path}: {name} is {array.dtype}, but weights are floats")
    return inner


def unstack_blocks(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Split blocks that `nn.scan` stored as one block with a leading depth axis."""
    stacked = "Transformer/encoderblock/"
    flat = {name: array for name, array in arrays.items() if not name.startswith(stacked)}
    for name in arrays.keys() - flat.keys():
        for i, array in enumerate(arrays[name]):
            flat[f"Transformer/encoderblock_{i}/{name.removeprefix(stacked)}"] = array
    return flat


def with_token_slot(positions: Array, has_token: bool) -> Array:
    """Positions with timm's slot for the class token, filled with zeros if the file has none."""
    square = round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]
    if has_token and square:
        return np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
    return positions


def write_npz(path: Path, state_dict: Mapping[str, Tensor], heads: int, layout: str) -> None:
    """Write the state of a ViT atomically under Google's names, in layout "vit" or "big_vision".

    The latter has no position slot for the class token, so the slot is added to the token, as the
    model does.
    """
    if layout not in COUNTERS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(COUNTERS)}")
    tensors = {name: t.detach().float().cpu().numpy() for name, t in state_dict.items()}
    positions = tensors.pop("pos_embed")
    if layout == "big_vision" and "cls_token" in tensors:
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        positions = positions[:, 1:]
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    arrays = {POSITIONS[layout]: positions}
    for entry in entries(depth, layout):
        if entry.timm in tensors:
            part = np.split(tensors[entry.timm], entry.parts)[entry.part]
            arrays[entry.jax] = TRANSFORMS[entry.kind][1](part, heads)
    if layout == "big_vision":
        arrays = {f"params/{name}": array for name, array in arrays.items()}
    with written(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})
