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
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from pipeline.settings.config import TrainConfig
from support.redact import redacted
from vit.weights import save_safetensors

log = logging.getLogger(__name__)

FORMAT = 1
NAME = re.compile(r"step-(\d{9})")
BEST = "val/top1"
# what may change between the parts of one run without changing what it computes
FREE = re.compile(
    r"runs_dir|experiment|workers|min_workers|worker_cpus|device|micro_batch|parallel|compile|log_every|"
    r"eval_every|checkpoint_every|keep_checkpoints|crops|max_restarts|storage|audit|(probe|record)\..*|"
    r"data\.(dir|extra|task_samples|buffer_gib|prefetch_batches|max_bad_samples|verify)"
)


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
        """Read what a checkpoint says of itself; a folder that is none is a ValueError."""
        if not (path / "meta.json").is_file():
            raise ValueError(f"{path} is no checkpoint: it has no meta.json")
        meta = json.loads((path / "meta.json").read_text())
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
    aside = folder / f".{path.name}.{os.getpid()}"
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
        aside.mkdir(parents=True)
        save_safetensors(aside / "model.safetensors", model, {"format": "pt"})
        torch.save(state, aside / "state.pt")
        (aside / "config.json").write_text(json.dumps(redacted(config.flat()), indent=1))
        (aside / "meta.json").write_text(json.dumps(meta, indent=1))
        for file in aside.iterdir():
            _sync(file)
        if path.exists():  # the same step, before a restart: the bytes are equal or newer
            shutil.rmtree(path)
        aside.rename(path)
        _sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # C++ and Rust do not raise OSError
        shutil.rmtree(aside, ignore_errors=True)
        free, words = shutil.disk_usage(folder).free, str(error).partition("\n")[0]
        raise OSError(
            f"checkpoint of step {step} could not be written to {folder} ({words}; {free:,} bytes "
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
    """Settings in which a run differs from a recorded one so that it cannot go on from there."""
    mine = redacted(config.flat())
    return [
        f"{name} ({other.get(name, 'absent')} before, {mine.get(name, 'absent')} now)"
        for name in sorted(mine.keys() | other.keys())
        if mine.get(name) != other.get(name) and not FREE.fullmatch(name)
    ]


def made_by() -> dict[str, object]:
    """Versions and commit of the code that runs."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False)
        commit = found.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
        commit = None
    names = ("torch", "ray", "mlflow", "numpy")
    return {
        "commit": commit,
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def _sync(path: Path) -> None:
    """Make sure that a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
