"""Files of weights: safetensors, .pth and Google's .npz, in all dialects of `vit.dialects`.

    file -> read_weights -> {our name: tensor} -> fit to a model: positions, head -> model

Code in a file is never run. A file that does not fit the model raises an error that names every
key that does not fit, and the settings of a model that it fits.
"""

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.files import written
from vit.config import ViTConfig
from vit.config_json import stated, transformers_settings
from vit.dialects import DIALECTS, check_says, spoken, translated
from vit.model import ViT
from vit.npz import read_npz, write_npz
from vit.positions import (
    num_prefix,
    position_slots,
    resample,
    sincos2d,
    with_slots,
    without_slots,
)
from vit.shape import differences, shape_of

log = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"  # in a checkpoint directory
OLD_MODEL_FILE = "pytorch_model.bin"  # in older folders of transformers
CONFIG_FILE = "config.json"  # beside it in a folder of transformers
PICKLED = (".pth", ".pt", ".bin", ".tar")
WRAPPERS = ("state_dict", "model")  # keys under which training programs store the weights
REMEDY = (
    "Create a model of the file's shape (width, depth, patch_size, pool, pre_logits); for other"
    " classes use head='drop'"
)


def save_safetensors(
    path: Path | str, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors atomically to a file that timm loads without conversion."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with written(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})


def save_npz(path: Path | str, model: ViT, layout: str = "vit") -> None:
    """Write a model for Google's JAX code, in layout "vit" (also AugReg's) or "big_vision"."""
    check_says(model.config, f"npz-{layout}")
    if model.config.gelu != "tanh":
        log.warning("Google's code computes the tanh form of GELU, this model the exact one")
    state = dict(model.state_dict())
    if model.config.num_prefix and not model.config.class_position:
        with_slots(state)
    write_npz(Path(path), state, model.config.heads, layout)


def save_weights(path: Path | str, model: ViT, dialect: str = "timm") -> None:
    """Write a model for another program; `dialect` is a key of `vit.dialects.DIALECTS`.

    transformers reads a folder, which gets a config.json; the others read one file: safetensors, or
    .npz. ValueError lists the settings of the model that the dialect's models do not have.
    """
    path = Path(path)
    if dialect.startswith("npz-"):
        save_npz(path, model, dialect.removeprefix("npz-"))
        return
    tensors = spoken(model.state_dict(), model.config, dialect)
    if not DIALECTS[dialect].architecture:
        save_safetensors(path, tensors)
        return
    settings = transformers_settings(model.config, dialect)
    path.mkdir(parents=True, exist_ok=True)
    with written(path / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(settings, indent=2))
    save_safetensors(path / MODEL_FILE, tensors)


def load_weights(
    model: ViT,
    path: Path | str,
    *,
    positions: str = "bilinear",
    head: str = "keep",
) -> None:
    """Load a file or checkpoint directory into a model; on an error the model is unchanged.

    Args:
        model: A model that is not yet wrapped or sharded; its weights are overwritten.
        path: Safetensors or .pth of any dialect, .npz (Google's), or a directory: a checkpoint, or
            one of Hugging Face's, with timm's or transformers' names.
        positions: How learned positions are resampled to another number of patches: "bilinear"
            with aligned corners as in the ViT paper, "bicubic" antialiased as in timm.
        head: "keep" uses the file's head. "drop" leaves the model's own head (its weights are
            zero if it is new) and pre_logits layer.
    """
    path = Path(path)
    tensors, facts = open_weights(path)
    check_facts(path, facts, model.config)
    state = model.state_dict()
    fit_head(tensors, state, head)
    fit_positions(tensors, state, model, positions, path)
    problems = misfits(tensors, state)
    if problems:
        needed = differences(tensors, model.config)
        settings = ", ".join(f"{name}={value}" for name, value in needed.items())
        remedy = f"{REMEDY}. The file needs {settings}" if needed else REMEDY
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems)}. {remedy}")
    model.load_state_dict(tensors)


def config_of(path: Path | str) -> ViTConfig:
    """The config of a model that a file's weights fit: from their shapes, and a config.json."""
    try:
        return shape_of(*open_weights(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_facts(path: Path, facts: Mapping[str, object], config: ViTConfig) -> None:
    """Refuse another number of heads than the file's; warn of another GELU or norm_eps."""
    if facts.get("heads", config.heads) != config.heads:
        has = f"{path} has {facts['heads']} attention heads"
        raise ValueError(f"{has}, the model has {config.heads}; set heads")
    for name in ("gelu", "norm_eps"):
        if name in facts and facts[name] != (ours := getattr(config, name)):
            log.warning(
                "%s was trained with %s=%s, the model has %s: its outputs differ a little; set"
                " model.%s to compute the same",
                path,
                name,
                facts[name],
                ours,
                name,
            )


def misfits(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The reasons why tensors of a file do not fit the state of a model, one per key."""
    problems = [
        f"{name} {tuple(tensor.shape)} is missing in the file"
        for name, tensor in state.items()
        if name not in tensors
    ]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in state:
            problems.append(f"{name} {shape} is not in the model")
        elif shape != (wanted := tuple(state[name].shape)):
            problems.append(f"{name} is {shape} in the file and {wanted} in the model")
        elif not tensor.is_floating_point():
            problems.append(f"{name} is {tensor.dtype}, but weights are floating point")
    return problems


class Weights(NamedTuple):
    """Tensors under our names, and the settings of their model that the file states elsewhere."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a file or checkpoint directory, of any dialect, under our names."""
    return open_weights(path).tensors


def open_weights(path: Path | str) -> Weights:
    """Read the tensors of a file or directory, and the settings that their shapes do not show.

    These are the number of heads and GELU of an .npz file, and those that transformers states in
    the config.json next to its weights.
    """
    path = Path(path)
    if path.is_dir():
        old = path / OLD_MODEL_FILE
        path = path / MODEL_FILE
        path = old if old.is_file() and not path.is_file() else path
    if path.suffix == ".npz" and path.is_file():
        tensors, heads = read_npz(path)
        facts = {"gelu": "tanh"} | ({"heads": heads} if heads else {})
    else:
        tensors, settings = read_tensors(path), path.parent / CONFIG_FILE
        facts = stated(settings) if settings.is_file() else {}
    try:
        return Weights(translated(tensors), facts)
    except (ValueError, RuntimeError) as error:  # the latter for parts of unequal shapes
        raise ValueError(f"{path} has a layer of an impossible shape: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or .pth file as they are."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give a .safetensors, .pth or .npz file, or a checkpoint"
            f" directory that contains {MODEL_FILE}"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a readable safetensors file ({error}); it may be truncated:"
                " download it again"
            ) from error
    if path.suffix in PICKLED:
        return read_pth(path)
    known = ", ".join((".safetensors", ".npz", *PICKLED))
    raise ValueError(f"{path}: unknown file type; known: {known}")


def read_pth(path: Path) -> dict[str, Tensor]:
    """Read tensors that `torch.save` wrote; raise ValueError if the file holds other objects."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read as weights ({reason}); it is truncated or contains other"
            " objects, which are not loaded because they could run code: save only its state_dict,"
            " or use the model's safetensors file"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ValueError(
            f"{path} contains no state_dict; save one: torch.save(model.state_dict(), ...)"
        )
    return {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in loaded.items()
    }


def fit_head(tensors: dict[str, Tensor], state: Mapping[str, Tensor], head: str) -> None:
    """Keep or drop the head of the file in place."""
    if head not in ("keep", "drop"):
        raise ValueError(f"head is {head!r}; known: keep, drop")
    if head == "drop":
        layers = ("head.", "pre_logits.")
        for name in [name for name in tensors if name.startswith(layers)]:
            del tensors[name]
        tensors.update({n: tensor for n, tensor in state.items() if n.startswith(layers)})
    elif "head.weight" in tensors and not tensors["head.weight"].any():
        log.warning("the head in the file is all zeros, as in Google's first i21k files")


def fit_positions(
    tensors: dict[str, Tensor], state: Mapping[str, Tensor], model: ViT, method: str, path: Path
) -> None:
    """Fit the positions to the model's grid and to its slots, in place."""
    config, positions = model.config, tensors.get("pos_embed")
    fits = num_prefix(tensors) == config.num_prefix
    slots = position_slots(tensors) if fits else None
    if config.positions == "learned":
        if positions is None or positions.ndim != 3 or not fits:
            return
        if slots and not config.class_position:
            without_slots(tensors)
        elif slots == 0 and config.class_position:
            with_slots(tensors)
        slots = config.class_position * config.num_prefix
        resampled = resample(tensors["pos_embed"], config.grid, slots=slots, method=method)
        tensors["pos_embed"] = resampled
        return
    if positions is not None:  # fixed positions need no resampling, but must be the same formula
        patches = positions[:, slots or 0 :]
        fixed = sincos2d(round(patches.shape[1] ** 0.5), config.width)
        if patches.shape != fixed.shape or not torch.allclose(patches.float(), fixed, atol=1e-5):
            raise ValueError(
                f"{path}: pos_embed is not the sin-cos formula of the model; set"
                " positions='learned' to load it"
            )
    tensors["pos_embed"] = state["pos_embed"]
