"""Images per second of the Ray stream beside what it could be, and beside other loaders.

    python benchmarks/stream.py [--images 3000] [--epochs 10] [--rounds 3] [--cores 2]

All read the same shards (500 x 375 images of quality 90 brought to shorter side 256) with the same
crop, flip and decoder, on the same cores, in turn:

    bare          processes that decode, crop and flip from memory, and hand nothing over
    reader        processes that also read the shards, and fill an array for each batch
    stream        pipeline.data.feed as a training worker uses it
    webdataset    webdataset + torch DataLoader
    pillow        the same with Pillow, as most recipes for it are written
    ray           ray.data.read_webdataset + map_batches

The images are photographs (pieces of the two in scikit-learn) and, in a second set, noise with the
spectrum of photographs, which takes longer to decode.

Each row is images/s, the median of the rounds; ratios are medians of ratios within a round.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import ray
import ray.data
import torch
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.data.dataset import Dataset
from pipeline.data.feed import NodeFeed
from pipeline.data.reader import SampleReader, View
from pipeline.data.staging import HostBuffer, filled
from pipeline.data.stream import Stream, quiet
from pipeline.settings.config import DataConfig
from shards.build.config import BuildConfig
from shards.build.pack import build
from vit.config import ImageConfig
from vit.images import decode
from vit.train_crops import train_view

SIZE, BATCH = 224, 256
DATA = DataConfig(dir="")
IMAGES = ImageConfig()
Decoder = Callable[[bytes], np.ndarray]
Loader = Callable[[], Iterator[int]]


def photographs(count: int) -> Iterator[Image.Image]:
    """Pieces of two photographs, 500 x 375, each at another place and scale."""
    draw = np.random.default_rng(0)
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(count):
        source = sources[number % len(sources)]
        width = draw.uniform(0.4, 0.85) * source.width
        left = draw.uniform(0, source.width - width)
        top = draw.uniform(0, source.height - 0.75 * width)
        box = (left, top, left + width, top + 0.75 * width)
        yield source.resize((500, 375), Image.Resampling.BICUBIC, box)


def noise(count: int) -> Iterator[Image.Image]:
    """Random images with the spectrum of photographs (amplitude 1/f), 500 x 375."""
    draw = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / 500)
    for _ in range(count):
        phases = np.exp(2j * np.pi * draw.random((3, *fall.shape)))
        pixels = np.fft.irfft2(phases * fall, s=(375, 500))
        pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 128
        yield Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


KINDS = {"photographs": photographs, "noise": noise}


def shards_of(images: Iterator[Image.Image], folder: Path) -> Path:
    """A shard set of ten classes with these images."""
    for number, image in enumerate(images):
        path = folder / "raw" / f"n{number % 10:08d}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    build([folder / "raw"], folder / "shards", BuildConfig(val_fraction=0.0, shard_samples=250))
    return folder / "shards"


class Memory:
    """The files of all images, in the memory of one process of `bare`."""

    reader: SampleReader
    slices: list[list[bytes]]

    @classmethod
    def load(cls, reader: SampleReader) -> None:
        """Read them."""
        cls.reader = reader
        rows = range(len(reader.dataset.slices.count))
        cls.slices = [[bytes(record.image) for record in reader.slice(row)] for row in rows]

    @classmethod
    def views(cls, start: int, stop: int) -> int:
        """Make the views of these positions, with the stream's pixels; the number of them."""
        spans, view = cls.reader.dataset.order(0).spans(start, stop), cls.reader.view
        columns = (column.tolist() for column in vars(spans).values())
        for row, first, count, position in zip(*columns, strict=True):
            for step, data in enumerate(cls.slices[row][first : first + count]):
                view(decode(data), position + step)
        return stop - start


def bare(reader: SampleReader, cores: int, total: int) -> Iterator[int]:
    """Rows done, as they are done, by processes without a framework."""
    starts = range(0, total, BATCH)
    stops = [min(start + BATCH, total) for start in starts]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, spawn, Memory.load, (reader,)) as pool:
        yield from pool.map(Memory.views, starts, stops)


def read(reader: SampleReader, start: int, stop: int) -> int:
    """Read these positions into an array; the number of them."""
    return len(reader(reader.dataset.order(0).spans(start, stop))["position"])


def readers(reader: SampleReader, cores: int, total: int) -> Iterator[int]:
    """Rows done by processes without a framework that read the shards."""
    starts = range(0, total, BATCH)
    stops = [min(start + BATCH, total) for start in starts]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, spawn) as pool:
        yield from pool.map(partial(read, reader), starts, stops)


def stream(reader: SampleReader, total: int) -> Iterator[int]:
    """Rows as the only worker of a node receives them, in a host buffer that is used again."""
    ranges = [(first, min(first + BATCH, total)) for first in range(0, total, BATCH)]
    found = Stream(
        reader=reader,
        order=reader.dataset.order(0),
        ranges=ranges,
        task_samples=DATA.task_samples,
        buffer_gib=DATA.buffer_gib,
    )
    buffer = HostBuffer()  # as before a GPU; without one, `Staging` takes fresh memory every time
    for pieces in NodeFeed.alone().batches(found, ranges):
        for name in ("images", "labels"):
            filled(buffer, name, [piece[name] for piece in pieces])
        yield sum(len(piece["position"]) for piece in pieces)


def transform(data: bytes, key: str, decoder: Decoder = decode) -> np.ndarray:
    """The same view as the stream's, seeded by the key."""
    return train_view(decoder(data), IMAGES, SIZE, hash(key) & (2**63 - 1))


def pillow_decode(data: bytes) -> np.ndarray:
    """The pixels as Pillow decodes them."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def webdataset_loader(files: list[str], cores: int, total: int, decoder: Decoder) -> Iterator[int]:
    """Rows of webdataset's own loader, whose workers live on from epoch to epoch."""
    dataset = (
        webdataset.WebDataset(files, shardshuffle=len(files), empty_check=False)
        .repeat()
        .map(
            lambda s: (torch.from_numpy(transform(s["jpg"], s["__key__"], decoder)), int(s["cls"]))
        )
        .batched(BATCH)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=cores, prefetch_factor=2)
    done = 0
    for images, _ in loader:
        done += len(images)
        yield len(images)
        if done >= total:
            return


def ray_webdataset(files: list[str], total: int) -> Iterator[int]:
    """Rows of Ray's own reader."""

    def crop(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        views = [
            transform(data, key) for data, key in zip(batch["jpg"], batch["__key__"], strict=True)
        ]
        return {"images": np.stack(views), "labels": np.array([int(c) for c in batch["cls"]])}

    done = 0
    while done < total:
        dataset = ray.data.read_webdataset(files, decoder=None, override_num_blocks=len(files))
        dataset = dataset.map_batches(crop, batch_size=BATCH)
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            done += len(batch["labels"])
            yield len(batch["labels"])


class Rate(NamedTuple):
    """How fast one loader was in one round."""

    images: float
    """Images/s after the first epoch, which has what was made ahead of the first batch."""
    first: float
    """Seconds to the first batch."""
    seam: float
    """Images/s at the ends of epochs over those in their middles."""


Round = dict[str, Rate]


def rate(rows: Loader, epoch: int) -> Rate:
    """Take all rows of a loader."""
    begin = time.perf_counter()
    seconds, done = [0.0], [0]
    for count in rows():
        seconds.append(time.perf_counter() - begin)
        done.append(done[-1] + count)

    def spent(first: float, last: float) -> float:
        return float(np.diff(np.interp([first, last], done, seconds))[0])

    inner = range(2 * epoch, done[-1] - epoch + 1, epoch)
    ends = statistics.median(spent(end - epoch / 4, end + epoch / 4) for end in inner)
    middles = statistics.median(spent(end + epoch / 4, end + 3 * epoch / 4) for end in inner)
    return Rate((done[-1] - epoch) / spent(epoch, done[-1]), seconds[1], middles / ends)


def loaders(shards: Path, cores: int, epochs: int) -> tuple[int, dict[str, Loader]]:
    """Images of an epoch, and the loaders of a shard set by name."""
    dataset = Dataset.open([str(shards)], "train", slice_samples=DATA.slice_samples)
    reader = SampleReader(dataset=dataset, view=View(images=IMAGES, size=SIZE))
    files = sorted(str(path) for path in shards.glob("train-*.tar"))
    total = dataset.samples * epochs
    return dataset.samples, {
        "bare": partial(bare, reader, cores, total),
        "reader": partial(readers, reader, cores, total),
        "stream": partial(stream, reader, total),
        "webdataset": partial(webdataset_loader, files, cores, total, decode),
        "pillow": partial(webdataset_loader, files, cores, total, pillow_decode),
        "ray": partial(ray_webdataset, files, total),
    }


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000, help="images of an epoch")
    parser.add_argument("--epochs", type=int, default=10, help="read by each loader in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        sets = {
            kind: loaders(
                shards_of(images(options.images), Path(name, kind)), options.cores, options.epochs
            )
            for kind, images in KINDS.items()
        }
        ray.init(
            address="local", num_cpus=options.cores, include_dashboard=False, log_to_driver=False
        )
        quiet()
        rounds: dict[str, list[Round]] = {kind: [] for kind in sets}
        for number in range(options.rounds):
            for kind, (epoch, named) in sets.items():
                found = {name: rate(rows, epoch) for name, rows in named.items()}
                rounds[kind].append(found)
                figures = "  ".join(f"{name} {rate.images:,.0f}" for name, rate in found.items())
                sys.stdout.write(f"round {number}, {kind}: {figures}\n")
        report(rounds)


def report(rounds: dict[str, list[Round]]) -> None:
    """Print medians and ratios: a row for each loader, three columns for each kind of images."""
    heads = "".join(f"{kind:>12} stream is  first" for kind in rounds)
    sys.stdout.write(f"{'images/s':<12}{heads}\n")
    for name in next(iter(rounds.values()))[0]:
        cells = ""
        for found in rounds.values():
            images = statistics.median(each[name].images for each in found)
            ratio = statistics.median(each["stream"].images / each[name].images for each in found)
            first = statistics.median(each[name].first for each in found)
            cells += f"{images:>12,.0f}{ratio:>9.2f} x{first:>5.1f} s"
        sys.stdout.write(f"{name:<12}{cells}\n")
    for kind, found in rounds.items():
        seam = statistics.median(each["stream"].seam for each in found)
        sys.stdout.write(f"stream, {kind}: ends of epochs over their middles {seam:.2f}\n")


if __name__ == "__main__":
    main()
