"""A Vision Transformer without PyTorch, through the C interface of a back end (source/vit.h).

with NativeViT.open("checkpoint", backend="cpu") as model:
    logits = model(images)  # (B, 3, S, S) float32, normalised -> (B, K) float32
"""

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vit.native.build import built

Floats = ctypes.POINTER(ctypes.c_float)


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
}


def load(path: Path) -> ctypes.CDLL:
    """Load the library of a back end and declare its functions."""
    library = ctypes.CDLL(str(path))
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

        Options are those of `vit_open`: precision ("float32", "bfloat16", "int8"), threads, device.
        Raises ValueError if the back end is not built, or cannot compute the model.
        """
        text = ",".join(f"{name}={value}" for name, value in options.items())
        return cls(load(built(backend)), str(checkpoint), text)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of normalised images: (B, 3, S, S) -> (B, K), both float32."""
        size = self.description.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images are {images.shape}, but the model takes (B, 3, {size}, {size})"
            )
        images = np.ascontiguousarray(images, dtype=np.float32)
        logits = np.empty((len(images), self.description.outputs), np.float32)
        if len(images):
            self._call("vit_forward", self._model, floats(images), len(images), floats(logits))
        return logits

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

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._library, name)(*arguments):
            raise ValueError(self._library.vit_error().decode(errors="replace"))


def floats(array: np.ndarray) -> Floats:
    """The pointer that the C interface takes to an array of float32."""
    return array.ctypes.data_as(Floats)
