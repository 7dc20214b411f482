"""What `shards build` costs beside the work itself: `python benchmarks/pack.py`.

    ratio     images/s of a build over images/s of a bare decode + resize + encode loop, one core
    memory    peak memory of a build while the archive grows tenfold
    overhead  bytes of shards beyond those of their JPEGs, at about 25 KB per image

Images are 500x375, quality 96, 4:4:4, as ImageNet's mostly are. The bare loop is Pillow's: open,
convert, resize with Lanczos to a shorter side of 256, save at quality 90, 4:2:0; from memory, with
no check of any kind. The build reads a tar of class tars from disk, checks and hashes every image,
and writes shards with indexes. Rates are taken in rounds, build and loop by turns, and the medians
are compared; CPU seconds as well as seconds are given, because the first bear a busy machine.
"""

import argparse
import io
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.check.info import describe

SIZE, SHORT, QUALITY, CLASSES = (500, 375), 256, 90, 8
PATTERNS = 32


def photo(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Noise whose spectrum falls as that of photographs does."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3), np.float32)
    for side in (3, 9, 27, 81, 243):
        coarse = random.normal(size=(side * 3 // 4, side, 3)).clip(-3, 3)
        layer = Image.fromarray(((coarse + 3) * 42).astype(np.uint8))
        pixels += np.asarray(layer.resize(size, Image.Resampling.BICUBIC), np.float32) / side**0.5
    pixels += random.normal(size=pixels.shape) * 1.2
    low, high = pixels.min(), pixels.max()
    return Image.fromarray(((pixels - low) / (high - low) * 255).astype(np.uint8))


def jpegs(images: int, quality: int = 96) -> Iterator[bytes]:
    """Images that differ in a comment, so that no two are merged as copies."""
    patterns = []
    for seed in range(min(images, PATTERNS)):
        buffer = io.BytesIO()
        photo(seed).save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
        patterns.append(buffer.getvalue())
    for number in range(images):
        data = patterns[number % len(patterns)]
        yield data[:2] + b"\xff\xfe\x00\x0a" + f"{number:08d}".encode() + data[2:]


def write_archive(path: Path, images: int) -> None:
    """A tar of class tars, one class in memory at a time."""
    data = jpegs(images)
    with tarfile.open(path, "w") as outer:
        for label in range(CLASSES):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for number in range(images // CLASSES):
                    add(inner, f"n{label:08d}_{number}.JPEG", next(data))
            add(outer, f"n{label:08d}.tar", buffer.getvalue())


def add(file: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.addfile(info, io.BytesIO(data))


def bare(images: list[bytes]) -> None:
    """The work without anything around it."""
    for data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = SHORT / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.LANCZOS)
        image.save(io.BytesIO(), "JPEG", quality=QUALITY, subsampling="4:2:0")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def ratio(folder: Path, images: int, rounds: int) -> None:
    """Compare a build with the bare loop."""
    write_archive(folder / "ratio.tar", images)
    data = list(jpegs(images))
    bare(data[:20])
    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "build": []}
    for number in range(rounds):
        out = folder / f"ratio-{number}"
        config = BuildConfig(resize_short=SHORT, quality=QUALITY)
        seconds["bare"].append(timed(lambda: bare(data)))
        seconds["build"].append(timed(lambda: build([folder / "ratio.tar"], out, config)))  # noqa: B023
    rates = {
        name: [images / statistics.median(taken) for taken in zip(*values, strict=True)]
        for name, values in seconds.items()
    }
    for name, (wall, cpu) in rates.items():
        say(f"{name:6} {wall:8.1f} images/s   {cpu:8.1f} images per CPU second")
    wall, cpu = (rates["build"][i] / rates["bare"][i] for i in (0, 1))
    say(f"ratio  {wall:8.3f}            {cpu:8.3f}   (at least 0.85)")


def peak_of_a_build(archive: str, out: str) -> None:
    """Build, and say the peak memory of this process in MB."""
    build([archive], out, BuildConfig(resize_short=SHORT, quality=QUALITY))
    # Not ru_maxrss: that begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    say(str(int(status.split("VmHWM:")[1].split()[0]) / 1024))


def memory(folder: Path, images: int) -> None:
    """Peak memory of two builds, one of ten times the other's images."""
    for count in (images, 10 * images):
        archive, out = folder / f"memory-{count}.tar", folder / f"memory-{count}"
        write_archive(archive, count)
        command = [sys.executable, __file__, "--peak", str(archive), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        size = archive.stat().st_size / 1e6
        archive.unlink()
        say(f"{count:7,} images, archive {size:7,.0f} MB: peak {float(done.stdout):6.0f} MB")


def overhead(folder: Path, images: int) -> None:
    """Bytes of shards beyond the bytes of their images."""
    write_archive(folder / "overhead.tar", images)
    config = BuildConfig(resize_short=288, quality=92, val_fraction=0)
    build([folder / "overhead.tar"], folder / "overhead", config)
    split = describe(str(folder / "overhead")).splits["train"]
    index = sum(path.stat().st_size for path in (folder / "overhead").glob("train-*.parquet"))
    mean = split.image_bytes / split.images / 1e3
    say(f"{mean:.1f} KB per image: tars {split.overhead:.2%} above their JPEGs (under 5 %), "
        f"indexes {index / split.image_bytes:.2%} more")  # fmt: skip


def say(text: str) -> None:
    """A line of the result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=800, help="images of the ratio")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the ratio")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak_of_a_build(*arguments.peak)
        return
    say(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"Pillow {Image.__version__}")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        ratio(Path(name), arguments.images, arguments.rounds)
        overhead(Path(name), 400)
        memory(Path(name), 800)


if __name__ == "__main__":
    main()
