"""Build a native back end, and use it: `python -m vit.native build|predict|quantise`."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from support.command import dispatch
from support.console import Progress, open_console

log = logging.getLogger("vit.native")


@dataclass(frozen=True, kw_only=True)
class Build:
    """Compile a back end with what this machine has; what is missing is named."""

    backend: tyro.conf.Positional[str]
    """cpu: C++ over oneDNN. sycl: the same on what SYCL reaches, such as Intel's GPUs. cuda: GPUs
    by NVIDIA. cuda-host: its kernels on a CPU, for tests. mojo: Mojo on CPUs."""
    sanitize: bool = False
    """Stop at errors of memory and undefined behaviour, and say where; several times slower."""

    def __call__(self) -> int:
        """Build it and name the library and the program."""
        open_console(verbose=False)
        from vit.native.build import PROGRAM, build

        library = build(self.backend, sanitize=self.sanitize)
        log.info("library     %s", library)
        log.info("program     %s", library.with_name(PROGRAM))
        return 0


@dataclass(frozen=True, kw_only=True)
class Quantise:
    """Write a checkpoint in int8: a quarter of the bytes, and faster on most CPUs.

    It is calibrated on images like those that the model will see, such as a part of the training
    set. `predict OUT IMAGE... --precision int8` reads what it writes, and so does
    NativeViT.open(OUT, precision="int8").
    """

    interrupted: ClassVar[str] = "nothing was written; the same command begins anew"
    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder, with model.safetensors and config.json."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders with images in or below them."""
    out: Path
    """The folder to write."""
    count: int = 256
    """Images to calibrate on, at least 32; they are spaced evenly over those that are found."""
    backend: str = "cpu"
    """The back end that computes."""
    threads: int = 0
    """Threads of a CPU; 0 takes one for each core."""

    def __call__(self) -> int:
        """Quantise, and say how far the outputs moved."""
        open_console(verbose=False)
        from vit.native.quantise import quantise

        done = quantise(
            *(self.checkpoint, self.images, self.out),
            count=self.count,
            backend=self.backend,
            threads=self.threads,
            progress=Progress("calibrate"),
        )
        share = done.bytes_after / done.bytes_before
        log.info("outputs     %.2f%% off float32's on these images", 100 * done.difference)
        log.info("top-1       the same on %.1f%%", 100 * done.agreement)
        log.info("checkpoint  %s, %.0f%% of the bytes", self.out, 100 * share)
        return 0


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify images: the most likely classes of each, with their probabilities.

    An image is prepared as in an evaluation with the centre crop. Images that cannot be read are
    named. The program `classify`, which the build makes, does the same without Python.
    """

    interrupted: ClassVar[str] = "the same command begins anew"
    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder, with model.safetensors and config.json."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    top: int = 5
    """Classes of each image, at most all of the head."""
    backend: str = "cpu"
    """The back end that computes."""
    precision: Literal["float32", "tf32", "bfloat16", "int8", "float8"] = "float32"
    """Of products; int8 and float8 need a checkpoint that `quantise` wrote, tf32 and float8 the
    back end cuda."""
    threads: int = 0
    """Threads of a CPU; 0 takes one for each core."""

    def __call__(self) -> int:
        """Classify; returns 2, as for other bad input, if no image could be read."""
        open_console(verbose=False)
        if self.top < 1:
            raise ValueError(f"--top ({self.top}) must be at least 1")
        if not self.images:
            raise ValueError("no image given: python -m vit.native predict CHECKPOINT IMAGE...")
        from vit.native.model import NativeViT
        from vit.native.predict import classified

        options = {"precision": self.precision, "threads": self.threads}
        with NativeViT.open(self.checkpoint, backend=self.backend, **options) as model:
            unread = 0
            for guess in classified(model, self.checkpoint, self.images, self.top):
                log.info("%s", guess.file)
                for name, share in guess.classes:
                    log.info("  %.4f  %s", share, name)
                if guess.fault:
                    unread += 1
                    log.info("  cannot be read: %s", guess.fault)
        log.info("classified  %d of %d images", len(self.images) - unread, len(self.images))
        return 0 if unread < len(self.images) else 2


COMMANDS = {"build": Build, "predict": Predict, "quantise": Quantise}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    return dispatch("python -m vit.native", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
