"""Fits the tensors of a file to a model: its head, its positions, and the account of both.

tensors of a file -> fit_head, fit_positions -> misfits (none) -> Loaded: what became of each
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vit.config import ViTConfig
from vit.positions import (
    num_prefix,
    position_slots,
    resample,
    sincos2d,
    with_slots,
    without_slots,
)

log = logging.getLogger(__name__)

HEADS = ("keep", "drop")
HEAD_LAYERS = ("head.", "pre_logits.")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What became of the tensors of a file in a model."""

    path: Path
    dialect: str
    """Key of `vit.dialects.DIALECTS`."""
    taken: tuple[str, ...]
    """Our names of the tensors of the model that come from the file."""
    new: tuple[str, ...]
    """Those that the model has from its initialisation, because the file has none for them."""
    dropped: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors of the file that the model does not use."""
    grids: tuple[int, int] | None
    """Sides of the grid of positions in the file and in the model; None if they are the same."""
    rows: Sequence[int] | None
    """For each class of the model the row of the file's head, -1 without one; None: no mapping."""

    @property
    def mapped(self) -> str | None:
        """What the head of the model has of that of the file, in words; None without a mapping."""
        if self.rows is None:
            return None
        lacking = sum(row < 0 for row in self.rows)
        zero = f"; {lacking:,} that it lacks are zero" if lacking else ""
        return f"head: {len(self.rows) - lacking:,} of {len(self.rows):,} classes mapped{zero}"

    @property
    def resampled(self) -> str | None:
        """How the positions were resampled, in words; None if they were not."""
        if self.grids is None:
            return None
        return "resampled {0}x{0} -> {1}x{1}".format(*self.grids)

    def __str__(self) -> str:
        """The account in one line."""
        parts = [f"{len(self.taken)} tensors of {self.path} ({self.dialect} names)"]
        if self.resampled:
            parts.append(f"pos_embed {self.resampled}")
        if self.mapped:
            parts.append(self.mapped)
        if "head.weight" in self.dropped:
            parts.append(f"head of {self.dropped['head.weight'][0]:,} classes dropped")
        for what, names in (("dropped", self.dropped), ("new", self.new)):
            layers = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
            if what == "dropped":
                layers.pop("head", None)
            if layers:
                parts.append(f"{what}: {', '.join(layers)}")
        return "; ".join(parts)

    def lines(self) -> list[str]:
        """The account key by key: a name, and what became of it."""
        fates = dict.fromkeys(self.taken, "taken")
        if self.resampled:
            fates["pos_embed"] = self.resampled
        if self.rows is not None:
            fates |= dict.fromkeys(("head.weight", "head.bias"), "mapped by class")
        for name in self.new:
            fates[name] = "new"
        for name, shape in self.dropped.items():
            gone = f"dropped {shape}"
            fates[name] = f"new, {gone}" if name in fates else gone
        width = max(map(len, fates))
        return [f"{name:<{width}}  {fate}" for name, fate in fates.items()]


def fitted(
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    config: ViTConfig,
    *,
    path: Path,
    dialect: str,
    positions: str,
    head: str,
    rows: Sequence[int] | None,
) -> tuple[dict[str, Tensor], Loaded]:
    """Tensors of a file as a model with this state takes them; those that do not fit stay.

    The arguments are those of `vit.weights.load_weights`. Of the state only names and shapes
    count, and the values of what the file does not have.
    """
    ours = dict(tensors)
    fit_head(ours, state, head, rows)
    fit_positions(ours, state, config, positions, path)
    # a name of the model with the model's own tensor
    new = [name for name in ours if name in state and ours[name] is state[name]]
    if config.positions != "learned" and "pos_embed" in tensors:
        new.remove("pos_embed")  # the formula, which the file has, too
    account = Loaded(
        path=path,
        dialect=dialect,
        taken=tuple(name for name in ours if name in state and name not in new),
        new=tuple(new),
        dropped={
            name: tuple(tensor.shape)
            for name, tensor in tensors.items()
            if is_dropped(head) and name.startswith(HEAD_LAYERS)
        },
        grids=grids(tensors, config),
        rows=None if rows is None else tuple(rows),
    )
    return ours, account


def grids(tensors: Mapping[str, Tensor], config: ViTConfig) -> tuple[int, int] | None:
    """Sides of the grids of learned positions of a file and of a model, if they differ."""
    positions = tensors.get("pos_embed")
    if config.positions != "learned" or positions is None or positions.ndim != 3:
        return None
    patches = positions.shape[1] - (position_slots(tensors) or 0)
    side = round(patches**0.5)
    return None if side == config.grid else (side, config.grid)


def is_dropped(head: str) -> bool:
    """Whether `head` is "drop"; ValueError if it is not "keep" either."""
    if head not in HEADS:
        raise ValueError(f"head is {head!r}; known: {', '.join(HEADS)}")
    return head == "drop"


def fit_head(
    tensors: dict[str, Tensor], state: Mapping[str, Tensor], head: str, rows: Sequence[int] | None
) -> None:
    """Keep, drop or map the head of the file in place."""
    if is_dropped(head):
        for name in [name for name in tensors if name.startswith(HEAD_LAYERS)]:
            del tensors[name]
        tensors.update({n: tensor for n, tensor in state.items() if n.startswith(HEAD_LAYERS)})
        return
    if "head.weight" in tensors and not tensors["head.weight"].any():
        log.warning("the head in the file is all zeros, as in Google's first i21k files")
    if rows is not None and tensors.keys() >= {"head.weight", "head.bias"}:
        map_head(tensors, rows)


def map_head(tensors: dict[str, Tensor], rows: Sequence[int]) -> None:
    """Give each class its row of the file's head, in place.

    A class that the file lacks (-1) gets weights of zero and the mean of the other biases: after a
    sigmoid loss these are far below zero, and a bias of zero would make it the answer to anything.
    """
    numbers = torch.tensor(rows)
    known, numbers = numbers >= 0, numbers.clamp(min=0)
    weight, bias = tensors["head.weight"][numbers], tensors["head.bias"][numbers]
    tensors["head.weight"] = weight * known[:, None].to(weight.dtype)
    tensors["head.bias"] = torch.where(known, bias, bias[known].mean())


def fit_positions(
    tensors: dict[str, Tensor],
    state: Mapping[str, Tensor],
    config: ViTConfig,
    method: str,
    path: Path,
) -> None:
    """Fit the positions to the model's grid and to its slots, in place."""
    positions = tensors.get("pos_embed")
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
