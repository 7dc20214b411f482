"""Images per second of `predict` over the bare loop that decodes and computes, on the same cores.

    python -m benchmarks.predict [--models Ti/32 Ti/16 S/16] [--images 600] [--rounds 5]

Both classify the same files, photographs of 500 x 375 pixels and quality 90, in alternating rounds:

    bare      a process for each core: read, decode, crop, normalise, forward pass, in one thread,
              the same batches; it gives nothing back. With a GPU: the slower of decoding in all
              processes, and the forward pass alone on images that lie on the GPU
    predict   what the command does, from the walk of the folder to the finished table (CSV)

Starting processes and loading the model is not counted. A rate is the median of the rounds, and the
ratio is the median of the ratios within a round.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.stream import photographs
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.forward import Forward
from pipeline.predict import table, workers
from pipeline.predict.classifier import Classifier
from pipeline.predict.threads import batches
from vit.config import ViTConfig
from vit.images import decode, eval_view
from vit.model import ViT

CLASSES, TOP = 1000, 5
GPU = torch.cuda.is_available()


def settings_of(name: str) -> EvaluateConfig:
    """What both compute."""
    model = ViTConfig.named(name, num_classes=CLASSES)
    return EvaluateConfig(data="", model=model, precision="bf16" if GPU else "fp32")


class Bare:
    """One process of the bare loop."""

    settings: EvaluateConfig
    forward: Forward | None

    @classmethod
    def load(cls, settings: EvaluateConfig) -> None:
        """Make the model, unless a GPU computes."""
        torch.set_num_threads(1)
        cls.settings = settings
        cls.forward = None if GPU else Forward(ViT(settings.model).eval(), settings)

    @classmethod
    def classify(cls, files: Sequence[Path]) -> int:
        """Read, decode and crop a batch, and compute it; the number of its images."""
        settings = cls.settings
        size = settings.model.image_size
        pixels = torch.empty(len(files), size, size, 3, dtype=torch.uint8)
        for view, file in zip(pixels.numpy(), files, strict=True):
            view[:] = eval_view(decode(file.read_bytes()), settings.images, size)
        if cls.forward:
            cls.forward.eager(pixels)
        return len(files)


def bare(pool: ProcessPoolExecutor, files: Sequence[Path], size: int) -> float:
    """Images/s of the bare loop."""
    begin = time.perf_counter()
    done = sum(pool.map(Bare.classify, batches(files, size)))
    return done / (time.perf_counter() - begin)


def forward(classifier: Classifier) -> float:
    """Images/s of the forward pass alone, on a GPU."""
    size, count = classifier.size, 50
    images = torch.zeros(classifier.batch, size, size, 3, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        classifier.forward.eager(images)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        classifier.forward.eager(images)
    torch.cuda.synchronize()
    return count * classifier.batch / (time.perf_counter() - begin)


def predict(classifier: Classifier, folder: Path, total: int) -> float:
    """Images/s of what the command does."""
    rows = table.Table([f"n{number:08d}" for number in range(CLASSES)], TOP)
    begin = time.perf_counter()
    with (
        closing(workers.by_threads(classifier, [str(folder)], total)) as answers,
        table.written(str(folder.parent / "out.csv"), rows.schema) as add,
    ):
        done = 0
        for files, guesses in answers:
            add(rows.rows(files, guesses))
            done += len(files)
    return done / (time.perf_counter() - begin)


def measure(name: str, folder: Path, rounds: int) -> str:
    """Rates of a model and their ratio, as a line."""
    settings = settings_of(name)
    classifier = Classifier(ViT(settings.model), settings, TOP)
    files, cores = sorted(folder.iterdir()), os.cpu_count()
    # the batches of `predict`
    size = min(classifier.batch, -(-len(files) // cores))
    spawn = multiprocessing.get_context("spawn")
    found = []
    with ProcessPoolExecutor(cores, spawn, Bare.load, (settings,)) as pool:
        for number in range(rounds + 1):
            rates = bare(pool, files, size), predict(classifier, folder, len(files))
            if GPU:
                rates = min(rates[0], forward(classifier)), rates[1]
            if number:  # the first round warms up
                found.append(rates)
    slow, fast = (statistics.median(column) for column in zip(*found, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in found)
    return f"{name:<8}{slow:>10,.1f}{fast:>10,.1f}{ratio:>8.2f}\n"


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["Ti/32", "Ti/16", "S/16"])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        for number, image in enumerate(photographs(options.images)):
            image.save(folder / f"{number:06d}.jpg", quality=90)
        device = torch.cuda.get_device_name() if GPU else f"{os.cpu_count()} CPU cores"
        sys.stdout.write(f"{device}, torch {torch.__version__}, images/s\n")
        sys.stdout.write(f"{'model':<8}{'bare':>10}{'predict':>10}{'ratio':>8}\n")
        for model in options.models:
            sys.stdout.write(measure(model, folder, options.rounds))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
