"""A checkpoint: a folder that is written atomically.

    step-000001000/
        model.safetensors   weights under timm's parameter names, as timm loads them
        state.pt            training state (`pipeline.checkpoint.sharded`), or its shards
        config.json         every setting of the run by its dotted name
        meta.json           step, samples consumed, metrics, classes, versions, commit, and size and
                            SHA-256 of the other files

The position in the data is one integer, the number of samples consumed. There is no generator state
to save, because all randomness is addressed by seed and position. The SHA-256 of meta.json, the
digest, therefore names the whole content of a checkpoint.
"""

import hashlib
import importlib.metadata
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings.config import TrainConfig
from support import code
from support.files import remove_folder, sha256, written
from support.redact import redacted

log = logging.getLogger(__name__)

FORMAT = 2
META, CONFIG = "meta.json", "config.json"
NAME = re.compile(r"step-(\d{9})")
# of the split that selects, if the run has one
SELECT = "select/top1"
# beginning of the files that are its model, and of those that only a resumed run needs
MODEL, STATE = "model", "state"


class Incomplete(ValueError):
    """A folder that holds no checkpoint, or not all of one."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint, on disk or in a store."""

    path: Path
    """Its folder; of one in a store, where `Checkpoints.fetch` puts it."""
    step: int
    samples: int
    """Samples consumed: the position in the sequence."""
    metrics: Mapping[str, float]
    """Result of the evaluation at this step; empty without one."""
    classes: tuple[str, ...]
    """wnids, by class number."""
    fingerprint: str
    """Fingerprint of the training data."""
    config: Mapping[str, object]
    """Settings of the run, by dotted name."""
    files: Mapping[str, Sequence]
    """Size in bytes and SHA-256 of each file."""
    digest: str
    """SHA-256 of meta.json."""

    @classmethod
    def open(cls, path: Path, *, only: str = "") -> "Checkpoint":
        """Read the metadata of a checkpoint; Incomplete if the folder does not hold all of one.

        With `only`, of the files that begin so: a copy may hold the weights without the state.
        """
        for name in (META, CONFIG):
            if not (path / name).is_file():
                raise Incomplete(f"{path} is not a checkpoint: it has no {name}")
        checkpoint = cls.of(path, (path / META).read_bytes(), (path / CONFIG).read_bytes())
        for name, (size, _) in checkpoint.files.items():
            if not name.startswith(only):
                continue
            found = (path / name).stat().st_size if (path / name).exists() else 0
            if found != size:
                raise Incomplete(f"{path} is cut off: {name} has {found:,} bytes of {size:,}")
        return checkpoint

    @classmethod
    def of(cls, path: Path, meta_json: bytes, config_json: bytes) -> "Checkpoint":
        """A checkpoint from its two JSON files; ValueError if it has another format."""
        meta = json.loads(meta_json)
        if meta["format"] != FORMAT:
            raise ValueError(
                f"{path} has checkpoint format {meta['format']}, this version reads {FORMAT}"
            )
        return cls(
            path=path,
            classes=tuple(meta["classes"]),
            config=json.loads(config_json),
            digest=hashlib.sha256(meta_json).hexdigest(),
            **{name: meta[name] for name in ("step", "samples", "metrics", "fingerprint", "files")},
        )

    def verify(self, only: str = "") -> None:
        """Raise ValueError if a file on disk that begins so is not what meta.json says."""
        for name, (_, expected) in self.files.items():
            if name.startswith(only) and sha256(self.path / name) != expected:
                raise ValueError(
                    f"{self.path / name} is damaged: its SHA-256 is not the one in {META}"
                )


def checkpoints(folder: Path, *, only: str = "") -> list[Checkpoint]:
    """All complete checkpoints in a folder, oldest first; incomplete ones are logged.

    With `only`, just the files that begin so must be there.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not NAME.fullmatch(path.name):
            continue
        try:
            found.append(Checkpoint.open(path, only=only))
        except Incomplete as error:
            log.warning("not used: %s", error)
    return found


def link(source: Path, target: Path, *, only: str) -> None:
    """Give a checkpoint another folder, which stays when the first one is deleted.

    The files that begin so, and its settings, are hard links where the file system has these: they
    take no room until the first folder is gone. Other files are left out.
    """
    checkpoint = Checkpoint.open(source, only=only)
    target.parent.mkdir(exist_ok=True)
    with written(target) as aside:
        aside.mkdir()
        for name in (*checkpoint.files, META):
            if name in (CONFIG, META) or name.startswith(only):
                linked(source / name, aside / name)


def linked(source: Path, target: Path) -> None:
    """Link a file, or copy it where there are no hard links."""
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def latest(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """The newest one."""
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


def chosen(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """The one that a run reports and hands on: the newest, unless a split selects.

    With data.select_split it is that with the highest top-1 on it, the earliest of equal ones.
    """
    found = list(found)
    selected = [checkpoint for checkpoint in found if SELECT in checkpoint.metrics]
    # `max` returns the first of equal ones
    return max(selected, key=lambda one: one.metrics[SELECT], default=latest(found))


def superfluous(found: Sequence[Checkpoint], keep: int) -> list[Checkpoint]:
    """All but the newest `keep` and the chosen one, of checkpoints that are sorted by step."""
    kept = chosen(found)
    return [one for one in found[:-keep] if one.step != kept.step]


def clear_unfinished(folder: Path) -> None:
    """Remove the unfinished checkpoints of a killed process, and those it had begun to remove."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)  # its worker may still be about to end
    for path in folder.glob("step-*"):
        if not (path / META).is_file():
            remove_folder(path)


def differences(config: TrainConfig, other: Mapping[str, object]) -> list[str]:
    """Changes to recorded settings that prevent a run from resuming: "NAME (A before, B now)"."""
    current = redacted(config.flat())
    may_change = {name for name, metadata, _ in config.items() if metadata.get("may_change")}
    return [
        f"{name} ({other.get(name, 'absent')} before, {current.get(name, 'absent')} now)"
        for name in sorted(current.keys() | other.keys())
        if current.get(name) != other.get(name) and name not in may_change
    ]


def provenance() -> dict[str, object]:
    """Versions and commit of the running code."""
    names = ("torch", "ray", "mlflow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"commit": code.commit(), "versions": versions}
