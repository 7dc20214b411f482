"""Weights in files: ours and timm's safetensors, timm's .pth, Google's .npz.

    file -> read_weights -> {timm name: tensor} -> fit to a model: positions, head -> model

A file is data: nothing in it is run, and it fits whole or is refused with every key that did not
fit. A model trained by Google's JAX code computes GELU by tanh (`gelu="tanh"`); no file says so.
"""

import logging
import pickle
from collections.abc import Mapping, Sequence
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

MODEL_FILE = "model.safetensors"  # within a checkpoint directory
PICKLED = (".pth", ".pt", ".bin", ".tar")
WRAPPERS = ("state_dict", "model")  # under which training programs put the weights
REMEDY = (
    "Make the model of the file's shape (width, depth, patch_size, pool, pre_logits), and choose"
    " head='drop' or a class mapping for another set of classes"
)


def save_safetensors(
    path: Path | str, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file that timm loads as it is; whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with written(Path(path)) as aside:
        save_file(tensors, aside, metadata={"format": "pt", **(metadata or {})})


def save_npz(path: Path | str, model: ViT, layout: str = "vit") -> None:
    """Write a model for Google's JAX code: layout "vit" (also AugReg's) or "big_vision"."""
    write_npz(Path(path), model.state_dict(), model.config.heads, layout)


def load_weights(
    model: ViT,
    path: Path | str,
    *,
    positions: str = "bilinear",
    head: str | Mapping[int, int] = "keep",
) -> None:
    """Load a file, or a checkpoint directory, into a model; all of it or, on an error, nothing.

    Args:
        model: Not yet wrapped or sharded; its weights are overwritten.
        path: Safetensors (ours, timm's, Hugging Face's), .pth (timm's), .npz (Google's), or a
            directory with model.safetensors.
        positions: How learned positions come to another number of patches: "bilinear" with
            aligned corners as the ViT paper, "bicubic" antialiased as timm.
        head: "keep" the file's; "drop" it and its pre_logits layer, leaving the model's own (of
            zero weights if fresh); or a mapping from class numbers of the model to those of the
            file (`class_mapping`), classes without a counterpart keep the model's own row.
    """
    path = Path(path)
    tensors = read_weights(path, heads=model.config.heads)
    own = model.state_dict()
    fit_head(tensors, own, head)
    fit_positions(tensors, own, model, positions, path)
    problems = misfits(tensors, own)
    if problems:
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems)}. {REMEDY}")
    model.load_state_dict(tensors)


def misfits(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors of a file from being a model's, key by key."""
    problems = [
        f"{name} {tuple(tensor.shape)} is missing in the file"
        for name, tensor in own.items()
        if name not in tensors
    ]
    for name, tensor in tensors.items():
        if name not in own:
            problems.append(f"{name} {tuple(tensor.shape)} is not in the model")
        elif tensor.shape != own[name].shape:
            shapes = tuple(tensor.shape), tuple(own[name].shape)
            problems.append(f"{name} is {shapes[0]} in the file and {shapes[1]} in the model")
        elif not tensor.is_floating_point():
            problems.append(f"{name} is {tensor.dtype}, but weights are floating point")
    return problems


def read_weights(path: Path | str, *, heads: int | None = None) -> dict[str, Tensor]:
    """The tensors of a file or checkpoint directory, under timm's names and otherwise as stored.

    Args:
        path: See `load_weights`.
        heads: Attention heads of the model; an .npz with another number is refused, for its
            matrices have the same shapes.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give a .safetensors, .pth or .npz file, or a checkpoint"
            f" directory that holds {MODEL_FILE}"
        )
    if path.suffix == ".npz":
        tensors, found = read_npz(path)
        if heads and found != heads:
            raise ValueError(f"{path} has {found} attention heads, the model {heads}; set heads")
        return tensors
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is no readable safetensors file ({error}); it may be cut off: fetch it"
                " again"
            ) from error
    if path.suffix in PICKLED:
        return read_pth(path)
    raise ValueError(
        f"{path}: unknown kind of file; known: .safetensors, .npz, {', '.join(PICKLED)}"
    )


def read_pth(path: Path) -> dict[str, Tensor]:
    """Tensors that `torch.save` wrote; any other object in the file is refused, not made."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read as weights alone ({reason}); it is cut off or holds other"
            " objects, which are not loaded, for they could run code: save its state_dict by"
            " itself, or take the model's safetensors file"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ValueError(
            f"{path} holds no state_dict; save one: torch.save(model.state_dict(), ...)"
        )
    return {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in loaded.items()
    }


def fit_head(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor], head: str | Mapping[int, int]
) -> None:
    """Keep, drop or map the file's head, in place."""
    if head == "keep":
        if "head.weight" in tensors and not tensors["head.weight"].any():
            log.warning("the head in the file is all zeros (so are Google's first i21k files)")
        return
    if head == "drop":
        for name in [n for n in tensors if n.startswith(("head.", "pre_logits."))]:
            del tensors[name]
        names = [n for n in own if n.startswith(("head.", "pre_logits."))]
        tensors.update({name: own[name] for name in names})
        return
    if isinstance(head, str):
        raise ValueError(f"head is {head!r}; known: keep, drop, or a mapping of class numbers")
    if "head.weight" not in tensors:
        raise ValueError("the file has no head to map; use head='drop'")
    for name in ("head.weight", "head.bias"):
        mapped = own[name].clone()
        for rows, count, which in (
            (head.keys(), len(mapped), "the model"),
            (head.values(), len(tensors[name]), "the file"),
        ):
            if rows and not 0 <= min(rows) <= max(rows) < count:
                raise ValueError(
                    f"the class mapping has numbers {min(rows)} to {max(rows)} for {which}, whose"
                    f" head has {count} classes"
                )
        source = tensors[name][list(head.values())].to(mapped)
        mapped[list(head.keys())] = source
        tensors[name] = mapped


def class_mapping(model_wnids: Sequence[str], file_wnids: Sequence[str]) -> dict[int, int]:
    """From class numbers of a model to those of a file whose wnid is the same."""
    places = {wnid: number for number, wnid in enumerate(file_wnids)}
    shared = {n: places[wnid] for n, wnid in enumerate(model_wnids) if wnid in places}
    if not shared:
        raise ValueError("the two class lists have no wnid in common; are they lists of wnids?")
    return shared


def fit_positions(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor], model: ViT, method: str, path: Path
) -> None:
    """Bring the positions to the model's grid, in place."""
    has_token = model.cls_token is not None
    found = tensors.get("pos_embed")
    if model.config.positions == "learned":
        if found is not None and found.ndim == 3 and (has_token == ("cls_token" in tensors)):
            tensors["pos_embed"] = resample(
                found, model.config.grid, has_token=has_token, method=method
            )
        return
    if found is not None:  # fixed positions need no resampling, but must be the same formula
        grid = round((found.shape[1] - has_token) ** 0.5)
        fixed = sincos2d(grid, model.config.width)
        if found[:, has_token:].shape != fixed.shape or not torch.allclose(
            found[:, has_token:].float(), fixed, atol=1e-5
        ):
            raise ValueError(
                f"{path}: pos_embed is not the sin-cos formula of the model; set"
                " positions='learned' to load it"
            )
    tensors["pos_embed"] = own["pos_embed"]
