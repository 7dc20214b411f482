"""The weights that a run starts from, checked against its settings and its classes.

    init_from -> fetched here -> EvalModel -> InitialWeights: what the workers load, and what is
    said about it

Weights that were fetched from a URI are copied into the folder of the run, `init/`, where every
node finds them, and where they stay, whatever the address names tomorrow.
"""

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.checkpoint import remote
from pipeline.checkpoint.local import described
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.evaluation.model import EvalModel
from pipeline.settings.config import TrainConfig
from shards.dataset import store
from shards.dataset.classes import mapping
from support.files import written
from vit.fitting import Loaded
from vit.model import ViT
from vit.weights import open_weights

log = logging.getLogger(__name__)

INIT = "init"
# settings that no tensor can be fitted to
SHAPE = ("patch_size", "width", "depth", "mlp_width")
# beginning of the files of a checkpoint that only a resumed run needs
STATE = "state"


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights that a run starts from; it is sent to the workers."""

    path: str
    """File or folder, on the machine of the driver or, once it is `placed`, on every node."""
    rows: tuple[int, ...] | None = None
    """With init_head map: the row of the head for each class of the run, -1 without one."""
    loaded: Loaded
    """What becomes of each tensor."""
    is_copy: bool = False
    """Whether it was fetched from a URI, so that other nodes do not see it."""
    files: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
    """Size and SHA-256 of each file in the store of the run, if that is where they are."""

    @classmethod
    def of(cls, path: Path, config: TrainConfig, classes: tuple[str, ...]) -> "InitialWeights":
        """Check the weights of a run, a checkpoint or a file against a run with these classes.

        Raises ValueError if they do not fit the settings, or if their head does not fit the
        classes.
        """
        if not path.exists():
            raise FileNotFoundError(
                f"init_from {path} does not exist; give a run, a checkpoint, or a file of weights"
            )
        source = EvalModel.open(path, needs_head=False)
        check_shape(source, config)
        rows = head_rows(source, config, classes)
        weights = open_weights(source.path)
        with torch.device("meta"):
            state = ViT(config.model).state_dict()
        head = "drop" if config.init_head == "drop" else "keep"
        _, loaded = weights.fitted(
            state, config.model, positions=config.init_positions, head=head, rows=rows
        )
        warn_of_preparation(source, config)
        return cls(path=str(source.path), rows=rows, loaded=loaded)

    def placed(self, folder: RunFolder) -> "InitialWeights":
        """The same where every node finds it: a copy of fetched weights goes into the run."""
        if not self.is_copy:
            return self
        source, target = Path(self.path), folder.path / INIT
        files = sorted(source.iterdir()) if source.is_dir() else [source]
        files = [path for path in files if path.is_file() and not path.name.startswith(STATE)]
        with written(target) as aside:
            aside.mkdir()
            for path in files:
                shutil.copyfile(path, aside / path.name)
        copies = [target / path.name for path in files]
        if folder.uri:
            remote.clear(folder.uri, INIT)
            for path in copies:
                remote.upload(path, folder.uri, INIT)
        return dataclasses.replace(
            self,
            path=str(target if source.is_dir() else target / source.name),
            files=described(copies) if folder.uri else {},
        )

    def place(self, folder: RunFolder) -> str:
        """Where every node must see them, once they are placed."""
        return store.join(folder.uri, INIT) if self.files else self.path

    def fetch(self, folder: RunFolder) -> None:
        """Copy them from the store of the run to this node, unless an unchanged copy is here.

        Raises ValueError if the copy is damaged.
        """
        target = folder.path / INIT
        if self._is_at(target):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with written(target) as aside:
            aside.mkdir()
            for name in self.files:
                remote.download(folder.uri, INIT, aside / name)
            if not self._is_at(aside):
                raise ValueError(f"{self.place(folder)} is damaged: start the run again")

    def _is_at(self, folder: Path) -> bool:
        """Whether the files of a folder are those of the driver."""
        paths = [folder / name for name in self.files]
        if not all(path.is_file() for path in paths):
            return False
        expected = {name: tuple(facts) for name, facts in self.files.items()}
        return described(paths) == expected

    def on_node(self, folder: RunFolder) -> Path:
        """The file or folder on this node."""
        path = Path(self.path)
        if not self.files:
            return path
        # a node may keep its copy elsewhere than the driver
        return folder.path / INIT / (path.name if path.name in self.files else "")


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
    if how == "keep":
        if size == len(classes) and source.classes in (None, classes):
            return None
        differ = f"{len(classes):,}"
        if size == len(classes):
            same = set(source.classes) == set(classes)
            differ = "the same in another order" if same else "other ones"
        raise ValueError(
            f"init_head is keep, but the head of {source.path} has {size:,} classes and the data "
            f"has {differ}: set it to map, which goes by WordNet id, or to drop"
        )
    theirs = source.listed_classes()
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
