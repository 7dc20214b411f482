"""A checkpoint: a folder that is written whole or not at all.

    step-000001000/
        model.safetensors   weights under timm's parameter names, as timm loads them
        state.pt            optimizer state (tensors only, loaded with weights_only=True)
        meta.json           step, samples consumed, metrics, classes, versions, commit
        config.json         every setting of the run by its dotted name

The place in the data is one integer, the number of samples consumed; no generator state is kept,
because all randomness is addressed by seed and position.
"""

import importlib.metadata
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from pipeline.settings.config import TrainConfig
from support.files import write_json, written
from support.redact import redacted
from vit.weights import MODEL_FILE, save_safetensors

log = logging.getLogger(__name__)

FORMAT = 1
META = "meta.json"
NAME = re.compile(r"step-(\d{9})")
BEST = "val/top1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int
    samples: int
    """Samples consumed: the place in the sequence."""
    metrics: Mapping[str, float]
    """Result of the evaluation at this step; empty if there was none."""
    classes: tuple[str, ...]
    """wnids, by class number."""
    fingerprint: str
    """Hash of the manifest of the shard set that it was trained on."""
    config: Mapping[str, object]
    """Settings of the run by dotted name."""

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read what a checkpoint says of itself; ValueError if the folder is not a checkpoint."""
        if not (path / META).is_file():
            raise ValueError(f"{path} is not a checkpoint: it has no {META}")
        meta = json.loads((path / META).read_text())
        if meta["format"] != FORMAT:
            raise ValueError(
                f"{path} has checkpoint format {meta['format']}, this version reads {FORMAT}"
            )
        return cls(
            path=path,
            step=meta["step"],
            samples=meta["samples"],
            metrics=meta["metrics"],
            classes=tuple(meta["classes"]),
            fingerprint=meta["fingerprint"],
            config=json.loads((path / "config.json").read_text()),
        )

    def state(self) -> dict[str, object]:
        """Optimizer state, on the CPU."""
        return torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)


def save(
    folder: Path,
    *,
    step: int,
    samples: int,
    model: Mapping[str, torch.Tensor],
    state: Mapping[str, object],
    metrics: Mapping[str, float],
    config: TrainConfig,
    classes: tuple[str, ...],
    fingerprint: str,
) -> Path:
    """Write a checkpoint into `folder`; on any failure the folder is as it was before."""
    path = folder / f"step-{step:09d}"
    meta = {
        "format": FORMAT,
        "step": step,
        "samples": samples,
        "metrics": dict(metrics),
        "fingerprint": fingerprint,
        **made_by(),
        "classes": classes,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written(path) as aside:  # replaces the same step of an earlier start
            aside.mkdir()
            save_safetensors(aside / MODEL_FILE, model, {"format": "pt"})
            torch.save(state, aside / "state.pt")
            write_json(aside / "config.json", config.flat())
            write_json(aside / META, meta)
    except (OSError, RuntimeError, SafetensorError) as error:  # C++ and Rust do not raise OSError
        free, reason = shutil.disk_usage(folder).free, str(error).partition("\n")[0]
        raise OSError(
            f"checkpoint of step {step} could not be written to {folder} ({reason}; {free:,} bytes "
            f"are free there); the earlier ones are untouched: make room and start the run again"
        ) from error
    return path


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return [Checkpoint.open(path) for path in sorted(folder.iterdir()) if NAME.fullmatch(path.name)]


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run."""
    return max(checkpoints(folder), key=lambda item: item.step, default=None)


def best(folder: Path) -> Checkpoint | None:
    """The checkpoint of the highest top-1 on the eval split; the earliest of equals."""
    rated = [item for item in checkpoints(folder) if BEST in item.metrics]
    return max(rated, key=lambda item: (item.metrics[BEST], -item.step), default=None)


def weights_of(location: str) -> Path:
    """Path of the weights to begin with: of a run, those of its best checkpoint."""
    path = Path(location)
    if (path / "checkpoints").is_dir():
        top = best(path / "checkpoints")
        if top is None:
            raise ValueError(f"init_from {path} is a run without an evaluated checkpoint yet")
        return top.path
    if not path.exists():
        raise FileNotFoundError(
            f"init_from {path} is not there; give a run, a checkpoint, or a file of weights"
        )
    return path


def prune(folder: Path, keep: int) -> None:
    """Delete all but the latest `keep` checkpoints and the best one."""
    found, top = checkpoints(folder), best(folder)
    for item in found[:-keep]:
        if not top or item.step != top.step:
            shutil.rmtree(item.path)


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed writer left aside."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)


def differences(config: TrainConfig, other: Mapping[str, object]) -> list[str]:
    """Settings that keep a run from being resumed from a recorded one: "NAME (A before, B now)"."""
    mine = redacted(config.flat())
    may_change = {name for name, metadata, _ in config.items() if metadata.get("may_change")}
    return [
        f"{name} ({other.get(name, 'absent')} before, {mine.get(name, 'absent')} now)"
        for name in sorted(mine.keys() | other.keys())
        if mine.get(name) != other.get(name) and name not in may_change
    ]


def made_by() -> dict[str, object]:
    """Versions and commit of the code that runs."""
    folder = str(Path(__file__).parent)
    git = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(git, capture_output=True, text=True, check=False)
        commit = described.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
        commit = None
    names = ("torch", "ray", "mlflow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"commit": commit, "versions": versions}
