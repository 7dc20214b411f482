"""Files of weights: our and timm's safetensors, timm's .pth, Google's .npz.

    file -> read_weights -> {timm name: tensor} -> fit to a model: positions, head -> model

Code in a file is never run. A file that does not fit the model raises an error that names every
key that does not fit. Models trained by Google's JAX code need `gelu="tanh"`, which no file states.
"""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.files import written
from vit.model import ViT
from vit.npz import read_npz, write_npz
from vit.positions import resample, sincos2d

log = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"  # in a checkpoint directory
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
    write_npz(Path(path), model.state_dict(), model.config.heads, layout)


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
        path: Safetensors (ours, timm's, Hugging Face's), .pth (timm's), .npz (Google's), or a
            directory with model.safetensors.
        positions: How learned positions are resampled to another number of patches: "bilinear"
            with aligned corners as in the ViT paper, "bicubic" antialiased as in timm.
        head: "keep" uses the file's head. "drop" leaves the model's own head (its weights are
            zero if it is new) and pre_logits layer.
    """
    path = Path(path)
    tensors = read_weights(path, heads=model.config.heads)
    state = model.state_dict()
    fit_head(tensors, state, head)
    fit_positions(tensors, state, model, positions, path)
    problems = misfits(tensors, state)
    if problems:
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems)}. {REMEDY}")
    model.load_state_dict(tensors)


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


def read_weights(path: Path | str, *, heads: int | None = None) -> dict[str, Tensor]:
    """Read the tensors of a file or checkpoint directory under timm's names, otherwise unchanged.

    An .npz file with another number of attention heads than `heads` raises ValueError, because the
    shapes of its matrices do not show the difference.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give a .safetensors, .pth or .npz file, or a checkpoint"
            f" directory that contains {MODEL_FILE}"
        )
    if path.suffix == ".npz":
        tensors, heads_read = read_npz(path)
        if heads and heads_read != heads:
            has = f"{path} has {heads_read} attention heads"
            raise ValueError(f"{has}, the model has {heads}; set heads")
        return tensors
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
    """Fit the positions to the model's grid in place."""
    config, has_token = model.config, model.cls_token is not None
    positions = tensors.get("pos_embed")
    if config.positions == "learned":
        same_slots = has_token == ("cls_token" in tensors)
        if positions is not None and positions.ndim == 3 and same_slots:
            positions = resample(positions, config.grid, has_token=has_token, method=method)
            tensors["pos_embed"] = positions
        return
    if positions is not None:  # fixed positions need no resampling, but must be the same formula
        patches = positions[:, has_token:]
        fixed = sincos2d(round(patches.shape[1] ** 0.5), config.width)
        if patches.shape != fixed.shape or not torch.allclose(patches.float(), fixed, atol=1e-5):
            raise ValueError(
                f"{path}: pos_embed is not the sin-cos formula of the model; set"
                " positions='learned' to load it"
            )
    tensors["pos_embed"] = state["pos_embed"]
