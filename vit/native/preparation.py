"""What a checkpoint folder says of images and classes, without PyTorch.

config.json -> image_settings -> vit.images.eval_view -> normalised (B, 3, S, S)
"""

import json
from pathlib import Path

import numpy as np

from vit.config import ImageConfig

MODEL, CONFIG, META = "model.safetensors", "config.json", "meta.json"


def read_table(path: Path) -> dict:
    """A JSON file of a checkpoint folder; ValueError says what is wrong with it."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); give a checkpoint folder, with {MODEL} and {CONFIG}"
        ) from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} is no table of names and values; give a checkpoint folder")
    return table


def image_settings(path: Path) -> ImageConfig:
    """The preprocessing that a checkpoint's config.json states; ValueError if it states none."""
    return settings_of(read_table(path), path)


def settings_of(config: dict, path: Path) -> ImageConfig:
    """The same, of a config.json that has been read from this path."""
    stated = {n[7:]: v for n, v in config.items() if n.startswith("images.")}
    if not stated:
        raise ValueError(f"{path} states no preprocessing of images; give a checkpoint of a run")
    listed = {n: tuple(v) if isinstance(v, list) else v for n, v in stated.items()}
    return ImageConfig().replace(listed)


def class_list(path: Path, outputs: int) -> list[str]:
    """The classes that a checkpoint's meta.json lists; numbers if there is no such file."""
    if not path.is_file():
        return [str(number) for number in range(outputs)]
    classes = read_table(path).get("classes")
    if not isinstance(classes, list) or len(classes) != outputs:
        raise ValueError(f"{path} does not list the {outputs:,} classes of the model")
    return [str(name) for name in classes]


def normalised(views: np.ndarray, settings: ImageConfig) -> np.ndarray:
    """Pixels as the model takes them: (B, S, S, 3) uint8 -> (B, 3, S, S) float32."""
    mean, std = np.array(settings.mean), np.array(settings.std)
    factor, shift = np.float32(1 / (255 * std)), np.float32(-mean / std)
    # in double precision, so that it is rounded once, as in vit/batch.py
    values = views * factor.astype(np.float64) + shift
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)
