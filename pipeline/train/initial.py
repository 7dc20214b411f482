"""The weights that a run starts from, checked against its settings and its classes.

    init_from -> fetched here -> EvalModel -> InitialWeights: what the workers load, and what is
    said about it

Weights that were fetched from an address are copied to where every node finds them
(`pipeline.train.initial_copy`).
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.checkpoint.run_folder import RunFolder
from pipeline.evaluation.model import EvalModel
from pipeline.settings.config import TrainConfig
from pipeline.train.initial_copy import InitialCopy
from shards.dataset.classes import mapping
from vit.fitting import Loaded
from vit.model import ViT
from vit.weights import open_weights

log = logging.getLogger(__name__)

# settings that no tensor can be fitted to
SHAPE = ("patch_size", "width", "depth", "mlp_width")


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights that a run starts from; it is sent to the workers."""

    path: str
    """File or folder, on the machine of the driver."""
    rows: tuple[int, ...] | None = None
    """With init_head map: the row of the head for each class of the run, -1 without one."""
    loaded: Loaded
    """What becomes of each tensor."""
    address: str | None = None
    """Where they were fetched from, so that other nodes do not see `path`."""
    copy: InitialCopy | None = None
    """Fetched weights where every node sees them, once they are `placed`."""

    @classmethod
    def of(cls, path: Path, config: TrainConfig, classes: tuple[str, ...]) -> "InitialWeights":
        """Check the weights of a run, a checkpoint or a file against a run with these classes.

        Raises ValueError if they do not fit the settings, or if their head does not fit the
        classes.
        """
        source = EvalModel.open(path, needs_head=False)
        check_shape(source, config)
        rows = head_rows(source, config, classes)
        weights = open_weights(source.path)
        with torch.device("meta"):
            state = ViT(config.model).state_dict()
        how = {"positions": config.init_positions, "head": head_of(config), "rows": rows}
        _, loaded = weights.fitted(state, config.model, **how)
        warn_of_preparation(source, config)
        return cls(path=str(source.path), rows=rows, loaded=loaded)

    def placed(self, home: RunFolder) -> "InitialWeights":
        """The same where every node finds it: a copy of fetched weights goes into a folder."""
        if not self.address or self.copy:
            return self
        copy = InitialCopy.make(Path(self.path), home, self.address)
        return dataclasses.replace(self, copy=copy)

    @property
    def place(self) -> str:
        """Where every node must see them, once they are placed."""
        return self.copy.place if self.copy else self.path

    @property
    def on_node(self) -> Path:
        """The file or folder on this node."""
        return self.copy.path if self.copy else Path(self.path)


def head_of(config: TrainConfig) -> str:
    """What becomes of the head of the weights, as in `vit.weights.load_weights`."""
    return "drop" if config.init_head == "drop" else "keep"  # a mapped one is kept, by its rows


def check_shape(source: EvalModel, config: TrainConfig) -> None:
    """Raise ValueError if the weights are of a model of another size than that of the run."""
    wrong = {
        name: (theirs, ours)
        for name in SHAPE
        if (theirs := getattr(source.model, name)) != (ours := getattr(config.model, name))
    }
    if wrong:
        of, run = (", ".join(f"{k} {pair[i]}" for k, pair in wrong.items()) for i in (0, 1))
        flags = " ".join(
            f"--model.{k.replace('_', '-')} {theirs}" for k, (theirs, _) in wrong.items()
        )
        raise ValueError(
            f"init_from {source.path} is a model of another size: {of}; the run has {run}. Set "
            f"{flags}, or train finetune, which takes the size from the weights"
        )


def head_rows(
    source: EvalModel, config: TrainConfig, classes: tuple[str, ...]
) -> tuple[int, ...] | None:
    """The row of the head for each class of the run; None if the head is dropped or the same.

    Raises ValueError if the head cannot be kept or mapped.
    """
    how, size = config.init_head, source.model.num_classes
    if how == "drop":
        return None
    if size is None:
        raise ValueError(f"init_head is {how}, but {source.path} has no head: set it to drop")
    theirs = source.listed_classes()
    if how == "keep":
        if size == len(classes) and theirs in (None, classes):
            return None
        differ = f"{len(classes):,}"
        if size == len(classes):
            same = set(theirs) == set(classes)
            differ = "the same in another order" if same else "other ones"
        raise ValueError(
            f"init_head is keep, but the head of {source.path} has {size:,} classes and the data "
            f"has {differ}: set it to map, which goes by WordNet id, or to drop"
        )
    if theirs is None:
        raise ValueError(
            f"init_head is map, but {source.path} has a head of {size:,} classes and does not list "
            f"them: start from a checkpoint that does, or set it to drop"
        )
    if theirs == classes:
        return None
    rows = mapping(classes, theirs)
    if max(rows) < 0:
        raise ValueError(
            f"init_head is map, but the classes of {source.path} ({theirs[0]}, ...) and of the "
            f"data ({classes[0]}, ...) have none in common: set it to drop"
        )
    return tuple(rows)


def warn_of_preparation(source: EvalModel, config: TrainConfig) -> None:
    """Warn if the weights are used to pixels that were normalised in another way."""
    for name in ("mean", "std"):
        theirs, ours = getattr(source.images, name), getattr(config.images, name)
        if theirs != ours:
            log.warning(
                "%s was trained with images.%s %s, the run has %s: set --images.%s %s",
                source.path,
                name,
                theirs,
                ours,
                name,
                " ".join(map(str, theirs)),
            )
