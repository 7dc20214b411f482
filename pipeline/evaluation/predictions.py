"""The predictions or features of a model on disk, during an evaluation and after it.

    FOLDER/identity.json                    what is evaluated: hashes of weights and data, and all
                                            settings
    FOLDER/parts/part-00007.safetensors     the predictions or features for one unit of images
    FOLDER/parts/faults-00007.json          why images of it could not be read, if any could not

Images are divided into units by position. One worker computes a unit, in the same batches for any
number of workers, so the predictions are identical bit for bit. Units on disk are not recomputed.
The driver holds one unit at a time, and a worker one that is not complete.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from pipeline.data.stream import Block, joined
from pipeline.evaluation.metrics import Predictions
from pipeline.evaluation.unreadable import FAULT
from support.files import write_json, written
from support.redact import redacted

IDENTITY = "identity.json"
# about this many units: several for each of 512 workers, so that they divide evenly
UNITS = 2048
# images of a unit: 64 MiB of features of width 1,024
MOST = 1 << 14


class PredictionStore:
    """The finished units of one evaluation, and those that are missing."""

    def __init__(
        self, folder: Path, identity: Mapping[str, object], *, images: int, batch: int
    ) -> None:
        """Open or create the folder of an evaluation; ValueError if it holds another one.

        `identity` (JSON) distinguishes evaluations from each other. `images` is the number of all
        images and `batch` that of a forward pass; a unit is a multiple of it. A folder keeps
        the units that it was begun with.
        """
        self.folder, self.images = folder, images
        path, unit = folder / IDENTITY, unit_images(images, batch)
        current = json.loads(json.dumps({**redacted(identity), "unit": unit}))
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        stored = json.loads(path.read_text()) if path.exists() else {}
        names = (current.keys() | stored.keys()) - {"unit"}
        changed = sorted(name for name in names if current.get(name) != stored.get(name))
        if not stored:
            write_json(path, current)
        elif changed:
            raise ValueError(
                f"{folder} holds another evaluation, which differs in {', '.join(changed)}; "
                f"give another --out"
            )
        self.unit = stored.get("unit", unit)
        self.num_units = math.ceil(images / self.unit)

    def path(self, unit: int) -> Path:
        """File of a unit."""
        return self.folder / "parts" / f"part-{unit:05d}.safetensors"

    def missing(self) -> list[int]:
        """Units without predictions."""
        return [unit for unit in range(self.num_units) if not self.path(unit).exists()]

    def shares(self, workers: int) -> list[list[tuple[int, int]]]:
        """Positions [start, stop) for each worker to predict: runs of missing units."""
        parts = np.array_split(np.array(self.missing(), np.int64), workers)
        shares = [np.split(p, np.flatnonzero(np.diff(p) > 1) + 1) for p in parts if len(p)]
        return [[(int(r[0]) * self.unit, self._stop(int(r[-1]))) for r in runs] for runs in shares]

    def _stop(self, unit: int) -> int:
        return min((unit + 1) * self.unit, self.images)

    def add(self, block: Block) -> None:
        """Write the predictions of a whole unit."""
        unit, positions = int(block["position"][0]) // self.unit, block["position"].tolist()
        faults = {n: str(text) for n, text in zip(positions, block[FAULT], strict=True) if text}
        self._faults(unit).unlink(missing_ok=True)
        if faults:  # before the part, which says that the unit is done
            write_json(self._faults(unit), faults)
        with written(self.path(unit)) as aside:
            save_file({name: column for name, column in block.items() if name != FAULT}, aside)

    def _faults(self, unit: int) -> Path:
        return self.folder / "parts" / f"faults-{unit:05d}.json"

    def faults(self, unit: int | None = None) -> dict[int, str]:
        """Why images could not be read, by position: those of a unit, or all."""
        paths = self.folder.glob("parts/faults-*.json") if unit is None else [self._faults(unit)]
        found = [json.loads(path.read_text()) for path in sorted(paths) if path.exists()]
        return {int(position): text for faults in found for position, text in faults.items()}

    def block(self, unit: int) -> Block:
        """The predictions of a unit, which must be there, mapped into memory."""
        with safe_open(self.path(unit), framework="pt") as part:
            return {name: part.get_tensor(name).numpy() for name in part.keys()}

    def units(self) -> Iterator[Block]:
        """The blocks of all units, which must be there, in order."""
        return map(self.block, range(self.num_units))

    def readable(self, unit: int) -> Block:
        """The rows of a unit whose images could be read."""
        block, faults = self.block(unit), self.faults(unit)
        if not faults:
            return block
        rows = ~np.isin(block["position"], list(faults))
        return {name: column[rows] for name, column in block.items()}

    def read(self) -> Block:
        """All predictions by position; RuntimeError if an image is missing or repeated."""
        columns = joined(list(self.units()))
        seen = np.bincount(columns["position"], minlength=self.images)
        if len(seen) != self.images or not (seen == 1).all():
            raise RuntimeError(
                f"of {self.images} images {int((seen == 0).sum())} were not evaluated and "
                f"{int((seen > 1).sum())} more than once; delete {self.folder} and evaluate again"
            )
        order = np.argsort(columns["position"])
        return {name: column[order] for name, column in columns.items()}


def unit_images(images: int, batch: int) -> int:
    """Images of a unit, by the number of all and that of a batch, of which it is a multiple."""
    return batch * min(math.ceil(images / (UNITS * batch)), max(1, MOST // batch))


def whole_units(blocks: Iterable[Block], unit: int) -> Iterator[Block]:
    """The blocks of each unit as one, given blocks by position, each of one unit."""
    for _, parts in itertools.groupby(blocks, lambda block: int(block["position"][0]) // unit):
        yield joined(list(parts))


def protocol_predictions(columns: Block, name: str) -> Predictions:
    """The predictions under one crop protocol."""
    values = {field: columns[f"{name}/{field}"] for field in ("top", "confidence", "loss")}
    return Predictions(labels=columns["labels"], **values)
