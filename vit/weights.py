"""Weights in files: safetensors under timm's names, and what timm and Google saved."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vit.positions import resample


def save_safetensors(
    path: Path | str, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file that timm loads as it is; whole or not at all."""
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    save_file(tensors, aside, metadata={"format": "pt", **(metadata or {})})
    aside.replace(path)


def load_weights(
    model: nn.Module, path: Path | str, *, positions: str = "bilinear", head: str = "keep"
) -> None:
    """Load a safetensors file, or a checkpoint directory that holds model.safetensors."""
    path = Path(path)
    tensors = load_file(path / "model.safetensors" if path.is_dir() else path)
    if "pos_embed" in tensors:
        tensors["pos_embed"] = resample(
            tensors["pos_embed"],
            model.config.grid,
            has_token=model.cls_token is not None,
            method=positions,
        )
    if head == "drop":
        own = model.state_dict()
        tensors |= {name: own[name] for name in ("head.weight", "head.bias")}
    model.load_state_dict(tensors)
