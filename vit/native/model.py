"""A Vision Transformer without PyTorch, through the C interface of a back end (source/vit.h).

with NativeViT.open("checkpoint", backend="cpu") as model:
    logits = model(images)  # (B, 3, S, S) float32, normalised -> (B, K) float32
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vit.native.build import built

Floats = ctypes.POINTER(ctypes.c_float)
# vit_observer: context, layer, values, rows, columns
Observer = ctypes.CFUNCTYPE(
    *(None, ctypes.c_void_p, ctypes.c_char_p, Floats, ctypes.c_int64, ctypes.c_int64)
)


class Description(ctypes.Structure):
    """`vit_description` of the C interface."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("image_size", "outputs", "num_parameters")),
        ("num_tensors", ctypes.c_int64),
        ("device", ctypes.c_char * 64),
    ]


SIGNATURES = {
    "vit_open": (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)),
    "vit_describe": (ctypes.c_void_p, ctypes.POINTER(Description)),
    "vit_forward": (ctypes.c_void_p, Floats, ctypes.c_int64, Floats),
    "vit_observe": (
        *(ctypes.c_void_p, Floats, ctypes.c_int64, Floats),
        *(Observer, ctypes.c_void_p),
    ),
    "vit_train_begin": (ctypes.c_void_p, ctypes.c_char_p),
    "vit_train_step": (
        *(ctypes.c_void_p, Floats, Floats, ctypes.c_int64),
        *(ctypes.c_double, ctypes.POINTER(ctypes.c_double)),
    ),
    "vit_gradients": (
        *(ctypes.c_void_p, Floats, Floats, ctypes.c_int64, ctypes.POINTER(ctypes.c_double)),
    ),
    "vit_read": (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, Floats, ctypes.c_int64),
    "vit_state_bytes": (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64)),
    "vit_save": (ctypes.c_void_p, ctypes.c_char_p),
}


def load(path: Path) -> ctypes.CDLL:
    """Load the library of a back end and declare its functions."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ValueError(
            f"{path.name} cannot be loaded ({error}). Those of cpu and sycl cannot be used in one"
            " process, as their oneDNN has the same name; after a move of oneDNN, build again"
        ) from error
    library.vit_error.restype = ctypes.c_char_p
    library.vit_close.argtypes, library.vit_close.restype = [ctypes.c_void_p], None
    for name, arguments in SIGNATURES.items():
        getattr(library, name).argtypes = arguments
    return library


class NativeViT:
    """An open model; each error of the library is a ValueError with its words."""

    def __init__(self, library: ctypes.CDLL, checkpoint: str, options: str) -> None:
        self._library = library
        self._model = ctypes.c_void_p()
        self._call("vit_open", os.fsencode(checkpoint), options.encode(), ctypes.byref(self._model))
        self.description = Description()
        self._call("vit_describe", self._model, ctypes.byref(self.description))

    @classmethod
    def open(cls, checkpoint: str | Path, *, backend: str = "cpu", **options: object) -> Self:
        """Open a checkpoint folder or a safetensors file under timm's names.

        Options are those of `vit_open`: precision ("float32", "tf32", "bfloat16", "int8",
        "float8"), threads, device.
        Raises ValueError if the back end is not built, or cannot compute the model.
        """
        return cls(load(built(backend)), str(checkpoint), text_of(options))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of normalised images: (B, 3, S, S) -> (B, K), both float32."""
        return self._forward("vit_forward", images)

    def observe(
        self, images: np.ndarray, observer: Callable[[str, np.ndarray], None]
    ) -> np.ndarray:
        """As a call, and calls `observer` with each dense layer of the blocks and its inputs.

        A layer has the name of its tensors, such as "blocks.0.attn.qkv", its inputs are
        (rows, width) float32, which are there during the call only. What `observer` raises is
        raised. The model must be open as float32.
        """
        errors: list[BaseException] = []

        def called(_: int, layer: bytes, values: Floats, rows: int, columns: int) -> None:
            if not errors:
                try:
                    observer(layer.decode(), np.ctypeslib.as_array(values, (rows, columns)))
                except BaseException as error:  # noqa: BLE001 - it cannot pass through C
                    errors.append(error)

        logits = self._forward("vit_observe", images, Observer(called), None)
        if errors:
            raise errors[0]
        return logits

    def _forward(self, name: str, images: np.ndarray, *arguments: object) -> np.ndarray:
        images = self._checked(images)
        logits = np.empty((len(images), self.description.outputs), np.float32)
        if len(images):
            self._call(name, self._model, floats(images), len(images), floats(logits), *arguments)
        return logits

    def begin_training(self, **options: object) -> None:
        """Begin to train the weights; options are those of `vit_train_begin`, such as optimizer.

        Raises ValueError for a model that is not open in float32, or has dropout.
        """
        self._call("vit_train_begin", self._model, text_of(options).encode())

    def train_step(self, images: np.ndarray, targets: np.ndarray, lr: float) -> float:
        """Update the weights by one batch: (B, 3, S, S), (B, K) -> its mean loss before.

        Rows of targets count as scaled to sum 1. Raises ValueError, and changes nothing, if the
        loss is not finite.
        """
        images, targets = self._checked(images), self._checked_targets(images, targets)
        loss, batch = ctypes.c_double(), (floats(images), floats(targets), len(images))
        self._call("vit_train_step", self._model, *batch, lr, ctypes.byref(loss))
        return loss.value

    def gradients(self, images: np.ndarray, targets: np.ndarray) -> float:
        """The mean loss of a batch; its gradients can be read afterwards, and nothing changes."""
        images, targets = self._checked(images), self._checked_targets(images, targets)
        loss, batch = ctypes.c_double(), (floats(images), floats(targets), len(images))
        self._call("vit_gradients", self._model, *batch, ctypes.byref(loss))
        return loss.value

    def read(self, what: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The "weight", "gradient", "moment1" or "moment2" of a parameter of this shape."""
        values = np.empty(shape, np.float32)
        arguments = (what.encode(), name.encode(), floats(values), values.size)
        self._call("vit_read", self._model, *arguments)
        return values

    @property
    def state_bytes(self) -> int:
        """Bytes of the optimizer's moments."""
        count = ctypes.c_int64()
        self._call("vit_state_bytes", self._model, ctypes.byref(count))
        return count.value

    def save(self, path: str | Path) -> None:
        """Write the weights as they are trained: a safetensors file in float32."""
        self._call("vit_save", self._model, os.fsencode(path))

    def close(self) -> None:
        """Free the model; it cannot be used afterwards."""
        self._library.vit_close(self._model)
        self._model = ctypes.c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def _checked(self, images: np.ndarray) -> np.ndarray:
        size = self.description.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images are {images.shape}, but the model takes (B, 3, {size}, {size})"
            )
        return np.ascontiguousarray(images, dtype=np.float32)

    def _checked_targets(self, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        wanted = (len(images), self.description.outputs)
        if targets.shape != wanted:
            raise ValueError(f"targets are {targets.shape}, but these images need {wanted}")
        return np.ascontiguousarray(targets, dtype=np.float32)

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._library, name)(*arguments):
            raise ValueError(self._library.vit_error().decode(errors="replace"))


def text_of(options: dict[str, object]) -> str:
    """Options as the C interface takes them."""
    return ",".join(f"{name}={value}" for name, value in options.items())


def floats(array: np.ndarray) -> Floats:
    """The pointer that the C interface takes to an array of float32."""
    return array.ctypes.data_as(Floats)
