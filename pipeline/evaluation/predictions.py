"""The predictions of a model on disk, while an evaluation is under way and after it.

    FOLDER/identity.json           what is evaluated: hashes of weights and data, and all settings
    FOLDER/parts/part-00007.npz    the predictions for one unit of images

The images are cut into units by their position. A unit is computed by one worker in the same
batches whatever the number of workers, so the predictions are the same bits; what is on disk is
never computed again.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.stream import Block, joined
from pipeline.evaluation.metrics import Predictions
from support.files import write_json, written
from support.redact import redacted

IDENTITY = "identity.json"
# about this many units: enough to share out evenly, and little is lost when one is cut short
UNITS = 200


class PredictionStore:
    """The finished parts of one evaluation, and those that are missing."""

    def __init__(
        self, folder: Path, identity: Mapping[str, object], *, images: int, batch: int
    ) -> None:
        """Open or begin a folder; one that holds another evaluation is a ValueError.

        Args:
            folder: Of the evaluation.
            identity: What makes it this evaluation; JSON.
            images: Images in all.
            batch: Images per forward pass; a unit is a multiple of it.
        """
        self.folder, self.images = folder, images
        self.unit = batch * math.ceil(images / (UNITS * batch))
        self.num_units = math.ceil(images / self.unit)
        self._waiting: dict[int, list[Block]] = {}
        known = json.loads(json.dumps({**redacted(identity), "unit": self.unit}))
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        path = folder / IDENTITY
        if not path.exists():
            write_json(path, known)
        elif (found := json.loads(path.read_text())) != known:
            differ = [k for k in known.keys() | found.keys() if known.get(k) != found.get(k)]
            raise ValueError(
                f"{folder} holds another evaluation, which differs in {', '.join(sorted(differ))}; "
                f"give another --out"
            )

    def path(self, unit: int) -> Path:
        """File of a unit."""
        return self.folder / "parts" / f"part-{unit:05d}.npz"

    def missing(self) -> list[int]:
        """Units without predictions."""
        return [unit for unit in range(self.num_units) if not self.path(unit).exists()]

    def shares(self, workers: int) -> list[list[tuple[int, int]]]:
        """Positions [start, stop) that each worker is to predict: runs of missing units."""
        parts = np.array_split(np.array(self.missing(), np.int64), workers)
        return [list(self._spans(part.tolist())) for part in parts if len(part)]

    def _spans(self, units: Sequence[int]) -> Iterator[tuple[int, int]]:
        for number, unit in enumerate(units):
            if number == 0 or units[number - 1] != unit - 1:
                start = unit * self.unit
            if number + 1 == len(units) or units[number + 1] != unit + 1:
                yield start, min((unit + 1) * self.unit, self.images)

    def add(self, block: Block) -> None:
        """Take a block of predictions, all of one unit; a complete unit is written."""
        unit = int(block["position"][0]) // self.unit
        waiting = self._waiting.setdefault(unit, [])
        waiting.append(block)
        expected = min((unit + 1) * self.unit, self.images) - unit * self.unit
        if sum(len(item["position"]) for item in waiting) < expected:
            return
        columns = joined(self._waiting.pop(unit))
        with written(self.path(unit)) as aside, aside.open("wb") as file:
            np.savez(file, **columns)

    def read(self) -> Block:
        """All predictions by position; an image that is absent or there twice is a RuntimeError."""
        blocks = []
        for unit in range(self.num_units):
            with np.load(self.path(unit), allow_pickle=False) as part:
                blocks.append({name: part[name] for name in part.files})
        columns = joined(blocks)
        seen = np.bincount(columns["position"], minlength=self.images)
        if len(seen) != self.images or not (seen == 1).all():
            raise RuntimeError(
                f"of {self.images} images {int((seen == 0).sum())} were not evaluated and "
                f"{int((seen > 1).sum())} more than once; delete {self.folder} and evaluate again"
            )
        order = np.argsort(columns["position"])
        return {name: column[order] for name, column in columns.items()}


def protocol_predictions(columns: Block, name: str) -> Predictions:
    """The predictions under one crop protocol."""
    return Predictions(
        labels=columns["labels"],
        top=columns[f"{name}/top"],
        confidence=columns[f"{name}/confidence"],
        loss=columns[f"{name}/loss"],
    )
