"""A checkpoint: a folder that is written atomically.

    step-000001000/
        model.safetensors   weights under timm's parameter names, as timm loads them
        state.pt            optimizer state (tensors only, loaded with weights_only=True)
        meta.json           step, samples consumed, metrics, classes, versions, commit
        config.json         every setting of the run by its dotted name

The position in the data is one integer, the number of samples consumed. There is no generator state
to save, because all randomness is addressed by seed and position.
"""

import importlib.metadata
import json
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
    """Samples consumed: the position in the sequence."""
    metrics: Mapping[str, float]
    """Result of the evaluation at this step; empty without one."""
    classes: tuple[str, ...]
    """wnids, by class number."""
    fingerprint: str
    """Fingerprint of the training data."""
    config: Mapping[str, object]
    """Settings of the run, by dotted name."""

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read the metadata of a checkpoint; ValueError if the folder is not a checkpoint."""
        if not (path / META).is_file():
            raise ValueError(f"{path} is not a checkpoint: it has no {META}")
        meta = json.loads((path / META).read_text())
        if meta["format"] != FORMAT:
            raise ValueError(
                f"{path} has checkpoint format {meta['format']}, this version reads {FORMAT}"
            )
        return cls(
            path=path,
            classes=tuple(meta["classes"]),
            config=json.loads((path / "config.json").read_text()),
            **{name: meta[name] for name in ("step", "samples", "metrics", "fingerprint")},
        )

    def state(self) -> dict[str, object]:
        """The optimizer state, on the CPU."""
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
    """Write a checkpoint into `folder`; OSError, and `folder` is unchanged, if that fails."""
    path = folder / f"step-{step:09d}"
    meta = {
        "format": FORMAT,
        "step": step,
        "samples": samples,
        "metrics": dict(metrics),
        "fingerprint": fingerprint,
        **provenance(),
        "classes": classes,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written(path) as aside:  # replaces the same step of an earlier attempt
            aside.mkdir()
            save_safetensors(aside / MODEL_FILE, model, {"format": "pt"})
            torch.save(state, aside / "state.pt")
            write_json(aside / "config.json", config.flat())
            write_json(aside / META, meta)
    except (OSError, RuntimeError, SafetensorError) as error:  # C++ and Rust raise others
        free, reason = shutil.disk_usage(folder).free, str(error).partition("\n")[0]
        raise OSError(
            f"checkpoint of step {step} could not be written to {folder} ({reason}; {free:,} bytes "
            f"are free there); the earlier ones are unchanged: make room and start the run again"
        ) from error
    return path


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return [Checkpoint.open(path) for path in sorted(folder.iterdir()) if NAME.fullmatch(path.name)]


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in a folder."""
    return max(checkpoints(folder), key=lambda checkpoint: checkpoint.step, default=None)


def best(folder: Path) -> Checkpoint | None:
    """The checkpoint with the highest top-1 on the eval split; the earliest of equal ones."""
    evaluated = [checkpoint for checkpoint in checkpoints(folder) if BEST in checkpoint.metrics]
    # `max` returns the first of equal ones
    return max(evaluated, key=lambda checkpoint: checkpoint.metrics[BEST], default=None)


def weights_of(location: str) -> Path:
    """Path of the initial weights; of a run, the path of its best checkpoint."""
    path = Path(location)
    if (path / "checkpoints").is_dir():
        if checkpoint := best(path / "checkpoints"):
            return checkpoint.path
        raise ValueError(f"init_from {path} is a run without an evaluated checkpoint yet")
    if not path.exists():
        raise FileNotFoundError(
            f"init_from {path} does not exist; give a run, a checkpoint, or a file of weights"
        )
    return path


def prune(folder: Path, keep: int) -> None:
    """Delete all but the latest `keep` checkpoints and the best one."""
    top = best(folder)
    for checkpoint in checkpoints(folder)[:-keep]:
        if not top or checkpoint.step != top.step:
            shutil.rmtree(checkpoint.path)


def clear_unfinished(folder: Path) -> None:
    """Remove the unfinished checkpoints of a killed process."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)


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
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        folder = Path(__file__).parent
        described = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=False)
        commit = described.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
        commit = None
    names = ("torch", "ray", "mlflow", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"commit": commit, "versions": versions}
