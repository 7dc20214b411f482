"""Files of weights: safetensors, .pth and Google's .npz, in all dialects of `vit.dialects`.

    file -> open_weights -> {our name: tensor} -> fitted to a model: positions, head -> model

Code in a file is never run. A file that does not fit the model raises an error that names every
key that does not fit, and the settings of a model that it fits.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from support.files import written
from vit.config import ViTConfig
from vit.config_json import metadata_of, of_metadata, stated, transformers_settings
from vit.dialects import DIALECTS, check_says, dialect_of, spoken, translated
from vit.fitting import HEAD_LAYERS, Loaded, fitted, is_dropped, misfits
from vit.model import ViT
from vit.npz import read_npz, write_npz
from vit.positions import with_slots
from vit.shape import differences, shape_of
from vit.tensor_file import read_tensors

log = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"  # in a checkpoint directory
OLD_MODEL_FILE = "pytorch_model.bin"  # in older folders of transformers
CONFIG_FILE = "config.json"  # beside it in a folder of transformers
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
    warn_untold(model.config, f"npz-{layout}")
    state = dict(model.state_dict())
    if model.config.num_prefix and not model.config.class_position:
        with_slots(state)
    write_npz(Path(path), state, model.config.heads, layout)


def save_weights(
    path: Path | str,
    model: ViT,
    dialect: str = "timm",
    head: str = "keep",
    metadata: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a model for another program; `dialect` is a key of `vit.dialects.DIALECTS`.

    transformers reads a folder, which gets a config.json with the `labels` of the classes; the
    others read one file: safetensors, or .npz. The metadata of safetensors gets `metadata`, and
    where there is no config.json states what the tensors do not show. `head`
    "drop" leaves out the head and the tanh layer before it, so that the other program computes
    features. ValueError lists the settings of the model that the dialect's models do not have.
    """
    path, config, state = Path(path), model.config, dict(model.state_dict())
    if dialect.startswith("npz-"):
        if head != "keep":
            raise ValueError(f"head is {head!r}, but {dialect} files have a head; set it to keep")
        save_npz(path, model, dialect.removeprefix("npz-"))
        return
    if is_dropped(head):
        config = replace(config, num_classes=None, pre_logits=False)
        state = {name: t for name, t in state.items() if not name.startswith(HEAD_LAYERS)}
    tensors = spoken(state, config, dialect)
    if not DIALECTS[dialect].architecture:
        warn_untold(config, dialect)
        save_safetensors(path, tensors, {**metadata_of(config), **(metadata or {})})
        return
    settings = transformers_settings(config, dialect, labels)
    path.mkdir(parents=True, exist_ok=True)
    with written(path / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(settings, indent=2))
    save_safetensors(path / MODEL_FILE, tensors, metadata)


def warn_untold(config: ViTConfig, dialect: str) -> None:
    """Warn of what the other program computes otherwise, since its files cannot tell it."""
    for name in ("gelu", "norm_eps"):
        theirs, ours = getattr(DIALECTS[dialect], name), getattr(config, name)
        if theirs != ours:
            log.warning(
                "%s computes with %s=%s, this model with %s: the outputs differ a little%s",
                dialect,
                name,
                theirs,
                ours,
                DIALECTS[dialect].told,
            )


def load_weights(
    model: ViT,
    path: Path | str,
    *,
    positions: str = "bilinear",
    head: str = "keep",
    rows: Sequence[int] | None = None,
) -> Loaded:
    """Load a file or checkpoint directory into a model; on an error the model is unchanged.

    Args:
        model: A model that is not yet wrapped or sharded; its weights are overwritten.
        path: Safetensors or .pth of any dialect, .npz (Google's), or a directory: a checkpoint, or
            one of Hugging Face's, with timm's or transformers' names.
        positions: How learned positions are resampled to another number of patches: "bilinear"
            with aligned corners as in the ViT paper, "bicubic" antialiased as in timm.
        head: "keep" uses the file's head. "drop" leaves the model's own head (its weights are
            zero if it is new) and pre_logits layer.
        rows: With "keep", the row of the file's head for each class of the model, -1 for a class
            that the file lacks; None if the classes are the same.
    """
    weights = open_weights(path)
    tensors, loaded = weights.fitted(
        model.state_dict(), model.config, positions=positions, head=head, rows=rows
    )
    model.load_state_dict(tensors)
    return loaded


def config_of(path: Path | str) -> ViTConfig:
    """The config of a model that a file's weights fit; see `Weights.config`."""
    return open_weights(path).config


def check_facts(weights: "Weights", config: ViTConfig) -> None:
    """Refuse another number of heads than the file's; warn of another GELU or norm_eps."""
    path, facts = weights.path, weights.facts
    if facts.get("heads", config.heads) != config.heads:
        has = f"{path} has {facts['heads']} attention heads"
        raise ValueError(f"{has}, the model has {config.heads}; set heads")
    for name in ("gelu", "norm_eps"):
        if facts[name] != (ours := getattr(config, name)):
            log.warning(
                "%s %s %s=%s, the model has %s: its outputs differ a little; set model.%s to"
                " compute the same",
                path,
                "states" if name in weights.stated else f"states no {name}; {weights.dialect} has",
                name,
                facts[name],
                ours,
                name,
            )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The content of a file of weights."""

    path: Path
    tensors: dict[str, Tensor]
    """Under our names."""
    dialect: str
    """Key of `vit.dialects.DIALECTS`."""
    stated: dict[str, object]
    """Settings of the model that the file, or a config.json beside it, states."""
    metadata: Mapping[str, str]
    """That of safetensors, as it is."""

    @property
    def facts(self) -> dict[str, object]:
        """Settings that tensors do not show: as stated, else as the dialect's program has them."""
        dialect = DIALECTS[self.dialect]
        return {"gelu": dialect.gelu, "norm_eps": dialect.norm_eps, **self.stated}

    @property
    def config(self) -> ViTConfig:
        """The config of a model that the weights fit; ValueError if they are not a ViT's."""
        try:
            return shape_of(self.tensors, self.facts)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def fitted(
        self,
        state: Mapping[str, Tensor],
        config: ViTConfig,
        *,
        positions: str = "bilinear",
        head: str = "keep",
        rows: Sequence[int] | None = None,
    ) -> tuple[dict[str, Tensor], Loaded]:
        """The tensors for a model with this state and config, and what became of each.

        The other arguments are those of `load_weights`. ValueError names every key that does not
        fit, and the settings of a model that the file fits.
        """
        check_facts(self, config)
        how = {"path": self.path, "dialect": self.dialect, "positions": positions}
        tensors, loaded = fitted(self.tensors, state, config, **how, head=head, rows=rows)
        if problems := misfits(tensors, state):
            needed = differences(tensors, config)
            settings = ", ".join(f"{name}={value}" for name, value in needed.items())
            remedy = f"{REMEDY}. The file needs {settings}" if needed else REMEDY
            raise ValueError(f"{self.path} does not fit the model: {'; '.join(problems)}. {remedy}")
        return tensors, loaded


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a file or checkpoint directory, of any dialect, under our names."""
    return open_weights(path).tensors


def weights_file(path: Path) -> Path:
    """The file with the weights: that of a directory, or the path itself."""
    if not path.is_dir():
        return path
    new, old = path / MODEL_FILE, path / OLD_MODEL_FILE
    return old if old.is_file() and not new.is_file() else new


def open_weights(path: Path | str) -> Weights:
    """Read the tensors of a file or directory, and what it states of its model."""
    path = weights_file(Path(path))
    if path.suffix == ".npz" and path.is_file():
        tensors, heads = read_npz(path)
        dialect, metadata, facts = "npz-vit", {}, {"heads": heads} if heads else {}
    else:
        tensors, metadata = read_tensors(path)
        if "quantised" in metadata:
            raise ValueError(
                f"{path} is quantised, which only vit.native reads; give the checkpoint that it was"
                " made of"
            )
        dialect, settings = dialect_of(tensors), path.parent / CONFIG_FILE
        facts = (stated(settings) if settings.is_file() else {}) | of_metadata(metadata, path)
    try:
        ours = translated(tensors)
    except (ValueError, RuntimeError) as error:  # the latter for parts of unequal shapes
        raise ValueError(f"{path} has a layer of an impossible shape: {error}") from error
    return Weights(path=path, tensors=ours, dialect=dialect, stated=facts, metadata=metadata)
