"""Static int8 for the native back ends, calibrated on images; without PyTorch.

    checkpoint, images -> inputs of each layer of the blocks -> their ranges -> checkpoint in int8

Each of these layers gets

    X.weight        I8 (out, in)   weight = weight_scale[row] * code, codes from -127 to 127
    X.weight_scale  F32 (out,)     the largest weight of the row / 127
    X.input_range   F32 (2,)       lowest and highest input, 0 among them; others are cut to it

and all other tensors are float32. An input becomes one of 256 steps of its range, or of 128 on x86
CPUs without VNNI, where sums of larger products saturate (`largest_code` in source/model).

Before, what separates the channels of a LayerNorm moves from its outputs to the weights of the next
layer (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438, equation 4 with alpha 0.5), which changes no
output of the float32 model. Outputs of int8 are then off by 0.55 % instead of 0.64 % (root mean
square) on the demo's model, by 3.8 % instead of 9.2 % on a random ViT-S/32 whose LayerNorms have
ten times the weight in every sixtieth channel, and by 2.1 % instead of 2.2 % without these.

The ranges are the extremes over all images. The range of least squared error gives 0.53 %, 5.7 %
and 2.0 % on these, the 99.99th percentile 0.57 %, 15.5 % and 2.0 %: they cut off what matters where
channels differ. Scales of weights by least squared error changed nothing that could be told from
chance.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from support.files import described, write_json, written
from vit.config import ImageConfig
from vit.images import SUFFIXES, decode, eval_view
from vit.native.model import NativeViT
from vit.native.preparation import CONFIG, META, MODEL, image_settings, normalised

FEWEST = 32  # images; fewer leave the ranges to chance
BATCH = 8
LARGEST_CODE = 127  # of a weight
ALPHA = 0.5  # share of the outliers that moves to the weights
TINY = 1e-5  # extremes below it are of channels that are not used
# the LayerNorm whose outputs a layer reads
NORMS = {"attn.qkv": "norm1", "mlp.fc1": "norm2"}
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

Tensors = dict[str, np.ndarray]
Progress = Callable[[int, int], None]


@dataclass
class Extremes:
    """The lowest and the highest value of each channel of a layer's inputs: (in,) float32."""

    low: np.ndarray
    high: np.ndarray

    @property
    def range(self) -> np.ndarray:
        """The lowest and highest of all channels, and 0: (2,)."""
        low, high = min(self.low.min(), 0.0), max(self.high.max(), 0.0)
        return np.array([low, high if high > low else 1.0], np.float32)

    def scaled(self, factors: np.ndarray) -> "Extremes":
        """Those of the inputs times positive factors, by channel."""
        return Extremes(self.low * factors, self.high * factors)


@dataclass(frozen=True)
class Quantised:
    """What became of a checkpoint."""

    bytes_before: int
    bytes_after: int
    difference: float
    """Root mean square of the change of the outputs, as a share of theirs, on the images."""
    agreement: float
    """Share of the images whose largest output is the same."""


def quantise(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    count: int = 256,
    backend: str = "cpu",
    threads: int = 0,
    progress: Progress = lambda done, total: None,
) -> Quantised:
    """Write a checkpoint folder in int8, whole or not at all.

    `images` are files, and folders with files in or below them; `count` of them, evenly spaced in
    the order of their names, calibrate it. Threads 0 takes one for each core. Raises ValueError for
    what cannot be quantised, and if `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; give the folder another name, or remove it")
    settings = image_settings(checkpoint / CONFIG)
    tensors, metadata = read_tensors(checkpoint / MODEL)
    files = calibration_files(images, count)
    options = {"backend": backend, "threads": threads}
    with NativeViT.open(checkpoint, **options) as model:
        views = read_views(files, settings, model.description.image_size)
        extremes, expected = observe(model, views, settings, progress)
    for layer, found in extremes.items():
        tensors |= quantised_layer(tensors, layer, found)
    rule = {"scheme": "int8", "images": len(files), "ranges": "extremes", "smoothing": ALPHA}
    out.parent.mkdir(parents=True, exist_ok=True)
    with written(out) as folder:
        folder.mkdir()
        save_file(tensors, folder / MODEL, metadata | {"quantised": json.dumps(rule)})
        shutil.copy(checkpoint / CONFIG, folder / CONFIG)
        if (checkpoint / META).is_file():
            copy_meta(checkpoint / META, folder)
        with NativeViT.open(folder, precision="int8", **options) as model:
            found = np.concatenate([model(batch) for batch in batches(views, settings)])
    return Quantised(
        *(path.stat().st_size for path in (checkpoint / MODEL, out / MODEL)),
        difference=float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) or 1.0)),
        agreement=float(np.mean(found.argmax(1) == expected.argmax(1))),
    )


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a safetensors file as float32, and its metadata."""
    try:
        data = path.read_bytes()
        stored = deserialize(data)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a checkpoint folder") from error
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if "quantised" in metadata:
        raise ValueError(f"{path} is quantised already; give the checkpoint that it was made of")
    return {name: as_float32(name, entry) for name, entry in stored}, metadata


def as_float32(name: str, entry: Mapping) -> np.ndarray:
    """A stored tensor as float32."""
    if entry["dtype"] not in STORED:
        raise ValueError(f"{name} is stored as {entry['dtype']}; known: {', '.join(STORED)}")
    values = np.frombuffer(entry["data"], STORED[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def calibration_files(places: Sequence[Path], count: int) -> list[Path]:
    """Image files of these places, evenly spaced by name; ValueError if there are too few."""
    if count < FEWEST:
        raise ValueError(f"count is {count}, but calibration takes {FEWEST} images or more")
    if not places:
        raise ValueError("there is nothing to calibrate on; give image files, or folders of them")
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise ValueError(f"there is no file or folder {place}; give images, or folders of them")
        below = sorted(place.rglob("*")) if place.is_dir() else [place]
        found += [file for file in below if file.suffix.lower() in SUFFIXES and file.is_file()]
    if len(found) < FEWEST:
        raise ValueError(
            f"there are {len(found)} images in {', '.join(map(str, places))}, but calibration takes"
            f" {FEWEST} or more; give images like those that the model will see"
        )
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def read_views(files: Sequence[Path], settings: ImageConfig, size: int) -> np.ndarray:
    """Evaluation views of image files: (N, size, size, 3) uint8; ValueError names broken ones."""
    views = np.empty((len(files), size, size, 3), np.uint8)
    broken = []
    for view, file in zip(views, files, strict=True):
        try:
            view[:] = eval_view(decode(file.read_bytes()), settings, size)
        except (OSError, ValueError) as error:
            broken.append(f"{file}: {error}")
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(files)} images cannot be read; remove or replace them:\n  "
            + "\n  ".join(broken[:10])
        )
    return views


def batches(views: np.ndarray, settings: ImageConfig) -> Iterator[np.ndarray]:
    """Normalised images, a few at a time: (B, 3, S, S) float32."""
    for start in range(0, len(views), BATCH):
        yield normalised(views[start : start + BATCH], settings)


def observe(
    model: NativeViT, views: np.ndarray, settings: ImageConfig, progress: Progress
) -> tuple[dict[str, Extremes], np.ndarray]:
    """The extremes of each layer's inputs over all images, and the outputs: (N, K)."""
    extremes: dict[str, Extremes] = {}

    def add(layer: str, values: np.ndarray) -> None:
        low, high = values.min(0), values.max(0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"the inputs of {layer} are not finite; the weights are damaged")
        known = extremes.setdefault(layer, Extremes(low, high))
        extremes[layer] = Extremes(np.minimum(known.low, low), np.maximum(known.high, high))

    outputs = []
    for batch in batches(views, settings):
        outputs.append(model.observe(batch, add))
        progress(sum(map(len, outputs)), len(views))
    return extremes, np.concatenate(outputs)


def quantised_layer(tensors: Tensors, layer: str, extremes: Extremes) -> Tensors:
    """What replaces the tensors of a layer, given what its inputs are, and of its LayerNorm."""
    changed: Tensors = {}
    weight = tensors[f"{layer}.weight"]
    block, kind = layer.rsplit(".", 2)[0], ".".join(layer.rsplit(".", 2)[1:])
    if kind in NORMS:
        factors = smoothing(weight, extremes)
        for name in (f"{block}.{NORMS[kind]}.{part}" for part in ("weight", "bias")):
            changed[name] = tensors[name] / factors
        weight, extremes = weight * factors, extremes.scaled(1 / factors)
    codes, scales = rounded(weight)
    return changed | {
        f"{layer}.weight": codes,
        f"{layer}.weight_scale": scales,
        f"{layer}.input_range": extremes.range,
    }


def smoothing(weight: np.ndarray, extremes: Extremes) -> np.ndarray:
    """By what each input channel is divided, and its weights multiplied: (in,) float32."""
    inputs = np.maximum(np.maximum(-extremes.low, extremes.high), TINY)
    weights = np.maximum(np.abs(weight).max(0), TINY)
    return (inputs**ALPHA / weights ** (1 - ALPHA)).astype(np.float32)


def rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (out, in) int8 of a weight, and the scale of each row (out,) float32."""
    largest = np.abs(weight).max(1)
    scales = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(LARGEST_CODE)
    codes = np.clip(np.rint(weight / scales[:, None]), -LARGEST_CODE, LARGEST_CODE)
    return codes.astype(np.int8), scales


def copy_meta(path: Path, folder: Path) -> None:
    """Copy meta.json into a folder, with the sizes and hashes of the files that are there."""
    meta = json.loads(path.read_text())
    write_json(folder / META, meta | {"files": described(sorted(folder.iterdir()))})
