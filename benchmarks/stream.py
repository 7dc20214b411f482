"""Images per second of the Ray stream beside what it could be, and beside other loaders.

    python benchmarks/stream.py [--images 4000] [--epochs 8] [--rounds 3] [--cores 2]

All read the same shards (500 x 375 photographs brought to shorter side 256, quality 90) with the
same crop, flip and decoder, on the same cores, in turn:

    bare          processes that read, decode and crop, and hand nothing over
    stream        pipeline.data.feed as a training worker uses it
    webdataset    webdataset + torch DataLoader
    pillow        the same with Pillow, as most recipes for it are written
    ray           ray.data.read_webdataset + map_batches

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

os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import ray
import ray.data
import torch
import webdataset
from PIL import Image

from pipeline.data.dataset import Dataset
from pipeline.data.feed import NodeFeed
from pipeline.data.reader import SampleReader, View
from pipeline.data.staging import Staging
from pipeline.data.stream import Stream, quiet
from pipeline.settings.config import DataConfig
from shards.build.config import BuildConfig
from shards.build.pack import build
from vit.config import ImageConfig
from vit.images import decode, train_view

SIZE, BATCH = 224, 256
DATA = DataConfig(dir="")
IMAGES = ImageConfig()
Decoder = Callable[[bytes], np.ndarray]


def photographs(folder: Path, count: int) -> None:
    """A folder per class of images with the spectrum of photographs (amplitude 1/f)."""
    draw = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / 500)
    for number in range(count):
        phases = np.exp(2j * np.pi * draw.random((3, *fall.shape)))
        pixels = np.fft.irfft2(phases * fall, s=(375, 500))
        pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 128
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        path = folder / f"n{number % 10:08d}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=96, subsampling=0)


def bare_task(reader: SampleReader, span: tuple[int, int]) -> int:
    """Read, decode and crop a batch."""
    return len(reader(reader.dataset.order(0).spans(*span))["position"])


def bare(reader: SampleReader, cores: int, total: int) -> Iterator[int]:
    """Rows done, as they are done, by processes without a framework."""
    spans = [(i, min(i + BATCH, total)) for i in range(0, total, BATCH)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=context) as pool:
        yield from pool.map(partial(bare_task, reader), spans)


def stream(reader: SampleReader, total: int) -> Iterator[int]:
    """Rows as the only worker of a node receives them."""
    ranges = [(first, min(first + BATCH, total)) for first in range(0, total, BATCH)]
    found = Stream(
        reader=reader,
        order=reader.dataset.order(0),
        ranges=ranges,
        task_samples=DATA.task_samples,
        buffer_gib=DATA.buffer_gib,
    )
    staging = Staging(torch.device("cpu"))
    for pieces in NodeFeed.alone().batches(found, ranges):
        yield len(staging(pieces, ("images", "labels")).columns["labels"])


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


def rate(rows: Callable[[], Iterator[int]], epoch: int) -> tuple[float, float, float]:
    """Images/s after the first epoch, seconds to the first batch, ends of epochs over middles."""
    begin = time.perf_counter()
    seconds, done = [0.0], [0]
    for count in rows():
        seconds.append(time.perf_counter() - begin)
        done.append(done[-1] + count)

    def spent(first: float, last: float) -> float:
        return float(np.diff(np.interp([first, last], done, seconds))[0])

    # the first epoch has what was made ahead of the first batch
    inner = range(2 * epoch, done[-1] - epoch + 1, epoch)
    ends = statistics.median(spent(end - epoch / 4, end + epoch / 4) for end in inner)
    middles = statistics.median(spent(end + epoch / 4, end + 3 * epoch / 4) for end in inner)
    return (done[-1] - epoch) / spent(epoch, done[-1]), seconds[1], middles / ends


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="images of an epoch")
    parser.add_argument("--epochs", type=int, default=8, help="read by each loader in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder / "raw", options.images)
        settings = BuildConfig(val_fraction=0.0, shard_samples=250)
        build([folder / "raw"], folder / "shards", settings)
        dataset = Dataset.open([str(folder / "shards")], "train", slice_samples=32)
        reader = SampleReader(dataset=dataset, view=View(images=IMAGES, size=SIZE))
        files = sorted(str(path) for path in (folder / "shards").glob("train-*.tar"))
        ray.init(num_cpus=options.cores, include_dashboard=False, log_to_driver=False)
        quiet()
        total = dataset.samples * options.epochs
        loaders = {
            "bare": partial(bare, reader, options.cores, total),
            "stream": partial(stream, reader, total),
            "webdataset": partial(webdataset_loader, files, options.cores, total, decode),
            "pillow": partial(webdataset_loader, files, options.cores, total, pillow_decode),
            "ray": partial(ray_webdataset, files, total),
        }
        rounds = [
            {name: rate(rows, dataset.samples) for name, rows in loaders.items()}
            for _ in range(options.rounds)
        ]
        report(rounds)


def report(rounds: list[dict[str, tuple[float, float, float]]]) -> None:
    """Print medians and ratios."""
    for number, found in enumerate(rounds):
        figures = "  ".join(f"{name} {images:,.0f}" for name, (images, _, _) in found.items())
        sys.stdout.write(f"round {number}: {figures}\n")
    for name in rounds[0]:
        images = statistics.median(found[name][0] for found in rounds)
        first = statistics.median(found[name][1] for found in rounds)
        sys.stdout.write(f"{name:<12}{images:>9,.0f} images/s   first batch {first:5.1f} s\n")
    for name in rounds[0]:
        if name != "stream":
            ratio = statistics.median(found["stream"][0] / found[name][0] for found in rounds)
            sys.stdout.write(f"stream over {name:<12}{ratio:6.2f}\n")
    seam = statistics.median(found["stream"][2] for found in rounds)
    sys.stdout.write(f"stream, images/s at the ends of epochs over their middles {seam:.2f}\n")


if __name__ == "__main__":
    main()
