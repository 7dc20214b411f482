"""Checkpoints for tests that need no training."""

from pathlib import Path

import torch

from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.draft import Draft
from pipeline.checkpoint.sharded import Snapshot
from pipeline.settings.presets import find_preset

CONFIG = find_preset("demo")


def write(folder: Path, step: int, uri: str | None = None, **changes) -> Path:
    """Write a checkpoint into a folder, or through it into a store; its path in the folder."""
    about = {
        "model": {"head.weight": torch.full((2, 3), float(step))},
        "state": {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        "provenance": {"commit": "abc", "versions": {}},
        "samples": step * 128,
        "metrics": {},
        "config": CONFIG,
        "classes": ("n00000001", "n00000002"),
        "fingerprint": "f" * 64,
        **changes,
    }
    snapshot = Snapshot(weights=about.pop("model"), state=about.pop("state"))
    draft = Draft(checkpoints=Checkpoints(folder=folder, uri=uri), step=step)
    draft.begin()
    return draft.commit(draft.add(snapshot.write), **about).path
