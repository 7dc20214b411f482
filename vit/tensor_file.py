"""A file of tensors: safetensors, or what `torch.save` wrote, whose code is never run."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PICKLED = (".pth", ".pt", ".bin", ".tar")
WRAPPERS = ("state_dict", "model")  # keys under which training programs store the weights


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors or .pth file as they are, and the metadata of the former.

    Raises ValueError if the file is neither.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give a .safetensors, .pth or .npz file, or a checkpoint"
            " directory that contains model.safetensors"
        )
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                names = file.keys()  # noqa: SIM118 - it is not a dictionary
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a readable safetensors file ({error}); it may be truncated:"
                " download it again"
            ) from error
    if path.suffix in PICKLED:
        return read_pth(path), {}
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
