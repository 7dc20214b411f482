"""The image classifier that MLflow runs, without this project's packages: a model from code.

    bytes of an image file, base64 of them, or pixels -> classes, names and probabilities

A logged model takes a copy of this file along; MLflow executes it to load the model. It needs the
model's files and the libraries that are imported here: see `pipeline/tracking/mlflow_model.py`.

    model = mlflow.pyfunc.load_model("models:/NAME/1")
    model.predict(pandas.DataFrame({"image": [Path("photo.jpg").read_bytes()]}))
"""

import base64
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import mlflow.models
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext

# as in `vit.loss.LINKS`
LINKS = {"softmax": lambda logits: logits.softmax(1), "sigmoid": torch.sigmoid}
COLUMN = "image"
BASE64 = re.compile(rb"[A-Za-z0-9+/\s]+=*\s*")
BATCH = 32  # images of one forward pass
# what an image that cannot be read, resized or cropped raises
FAULTS = (OSError, ValueError, MemoryError, cv2.error)


class ImageClassifier(PythonModel):
    """Classifies each row of a table with the column "image"."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the files of the model."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        self.decoder = module_of(files["decoder"])
        self.model = torch.export.load(files["graph"] / "model.pt2").module()
        head, images = (
            json.loads(files[name].read_text()) for name in ("classes", "preprocessing")
        )
        self.classes, self.link, self.top = head["classes"], LINKS[head["link"]], head["top"]
        self.size = images["size"]
        self.preparation = SimpleNamespace(
            eval_resize=images["crop_mode"],  # "squash" has this name in timm's words, too
            eval_interpolation=images["interpolation"],
            eval_side=lambda size: images["resize_to"],
        )
        mean, std = (torch.tensor(images[name], dtype=torch.float64) for name in ("mean", "std"))
        self.scale, self.shift = (1 / (255 * std)).float(), (-mean / std).float()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """A row for each image: class1, name1, p1, ... of the most likely classes, and error.

        The error is empty, or says why an image could not be read; it then has no classes.
        """
        cells = list(model_input[COLUMN])
        parts = [self._classified(cells[i : i + BATCH]) for i in range(0, len(cells), BATCH)]
        table = pd.DataFrame([row for rows in parts for row in rows])
        if table["error"].any():  # JSON has null, but no NaN
            table = table.astype(object).where(table.notna(), None)
        return table

    def _classified(self, cells: list) -> list[dict[str, object]]:
        views = np.zeros((len(cells), self.size, self.size, 3), np.uint8)
        faults = [self._fill(view, cell) for view, cell in zip(views, cells, strict=True)]
        pixels = torch.addcmul(self.shift, torch.from_numpy(views).float(), self.scale)
        with torch.no_grad():
            logits = self.model(pixels.permute(0, 3, 1, 2)).float()
        numbers = logits.topk(self.top, dim=1).indices
        shares = self.link(logits).gather(1, numbers)
        table = zip(numbers.tolist(), shares.tolist(), faults, strict=True)
        return [self._row(*each) for each in table]

    def _fill(self, view: np.ndarray, cell: object) -> str:
        """Fill the view (S, S, 3) with an image; returns what is wrong with it."""
        try:
            if not isinstance(cell, np.ndarray):
                cell = self.decoder.decode(file_of(cell))
            elif cell.dtype != np.uint8 or cell.ndim != 3 or cell.shape[2] != 3 or not cell.size:
                raise ValueError(f"pixels {cell.dtype} {cell.shape} must be uint8 (H, W, 3)")
            view[:] = self.decoder.eval_view(cell, self.preparation, self.size)
        except FAULTS as error:
            return str(error) or type(error).__name__
        return ""

    def _row(self, numbers: list[int], shares: list[float], fault: str) -> dict[str, object]:
        row: dict[str, object] = {}
        for place, (number, share) in enumerate(zip(numbers, shares, strict=True), start=1):
            wnid, name = (None, None) if fault else self.classes[number]
            row |= {f"class{place}": wnid, f"name{place}": name}
            row[f"p{place}"] = None if fault else share
        return row | {"error": fault}


def file_of(cell: object) -> bytes:
    """The bytes of an image file; ValueError if the cell is neither bytes nor base64.

    MLflow's server decodes the base64 of a table ("dataframe_split") but not that of "inputs".
    """
    data = cell.encode() if isinstance(cell, str) else cell
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"{type(cell).__name__} is not an image: give bytes, base64 or an array")
    if BASE64.fullmatch(data):  # no image file is
        return base64.b64decode(data)
    if isinstance(cell, str):
        raise ValueError(f"{cell[:20]!r} is not base64 of an image file")
    return bytes(data)


def module_of(path: Path) -> ModuleType:
    """A module from its file; it gets no place among the modules of the process."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(ImageClassifier())
