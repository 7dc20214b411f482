"""What `shards build` costs beside the work itself: `python benchmarks/pack.py`.

    ratio     images/s of a build over images/s of a bare decode + resize + encode loop, one core
    store     a gzip archive in an object store against the same archive plain on disk: images/s,
              requests for each image, peak memory, stored points and temporary files
    overhead  bytes of shards beyond those of their JPEGs, at about 25 KB per image

It takes about six minutes on two idle cores, 2 GB of memory and 2 GB of disk in the temporary
folder, and runs from a checkout, because the object store is that of the tests. The store runs in
another process of the same machine, and takes a part of its second core. About 130 requests are
made for any set in a store, which are many for the images of a small one: --stored 10016 is 1 GB.

Images are 500x375, quality 96, 4:4:4, about 100 KB, as ImageNet's mostly are. The bare loop is
Pillow's: open, convert, resize with Lanczos to a shorter side of 256, save at quality 90, 4:2:0;
from memory, with no check of any kind. The build reads a tar of class tars from disk, checks and
hashes every image, and writes shards with indexes. A build that draws a val split also computes the
perceptual hash of every image; the loop that it is compared with does the same. All are run by
turns. Each ratio is the median of the rounds, with the least and the largest; CPU seconds as well
as seconds are given, because the first bear a busy machine.
"""

import argparse
import contextlib
import gzip
import io
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.build import unit, writer
from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.build.phash import perceptual_hash
from shards.check.info import describe
from shards.dataset import store

SIZE, SHORT, QUALITY, CLASSES = (500, 375), 256, 90, 32
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


def bare(images: list[bytes], hashed: bool) -> None:
    """The work without anything around it."""
    for data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = SHORT / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.LANCZOS)
        image.save(io.BytesIO(), "JPEG", quality=QUALITY, subsampling="4:2:0")
        if hashed:
            perceptual_hash(image)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


Seconds = list[tuple[float, float]]


def compared(name: str, fast: Seconds, slow: Seconds, target: str) -> None:
    """A line with the ratio of two speeds, round by round, by seconds and by CPU seconds."""
    texts = []
    for which in (0, 1):
        ratios = [a[which] / b[which] for a, b in zip(fast, slow, strict=True)]
        middle = statistics.median(ratios)
        texts.append(f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    say(f"{name:34} {texts[0]}   by CPU seconds {texts[1]}   {target}")


def ratio(folder: Path, images: int, rounds: int) -> None:
    """Compare builds, with and without perceptual hashes, with bare loops."""
    write_archive(folder / "ratio.tar", images)
    data = list(jpegs(images))
    bare(data[:20], hashed=True)
    seconds: dict[tuple[str, bool], Seconds] = {}
    for _ in range(rounds):
        for hashed in (False, True):
            out = folder / "ratio"
            config = BuildConfig(val_fraction=None if hashed else 0)
            loop = timed(lambda: bare(data, hashed))  # noqa: B023
            made = timed(lambda: build([folder / "ratio.tar"], out, config))  # noqa: B023
            shutil.rmtree(out)
            seconds.setdefault(("loop", hashed), []).append(loop)
            seconds.setdefault(("build", hashed), []).append(made)
    for (name, hashed), taken in seconds.items():
        wall, cpu = (images / statistics.median(times) for times in zip(*taken, strict=True))
        text = f"{name}, {'with' if hashed else 'without'} perceptual hash"
        say(f"{text:34} {wall:.1f} images/s, {cpu:.1f} per CPU second")
    for hashed in (False, True):
        text = f"build / loop, {'with' if hashed else 'without'} hash"
        compared(text, seconds["loop", hashed], seconds["build", hashed], "(at least 0.90)")
    compared("build with / without hash", seconds["build", False], seconds["build", True], "")


def serve(pipe: Connection) -> None:
    """The object store of the tests; the pipe brings it archives and takes its counts."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import s3_server

    objects = s3_server.Objects()
    with s3_server.serving("bkt", objects) as variables:
        pipe.send(variables)
        while path := pipe.recv():
            if path == "counts":
                pipe.send((len(objects.requests), sum(size for _, size in objects.reads)))
                for name in [name for name in objects.objects if "/set/" in name]:
                    del objects.objects[name]
                objects.requests.clear()
                objects.reads.clear()
            else:
                objects.objects[f"bkt/{Path(path).name}"] = Path(path).read_bytes()
                pipe.send(None)


@contextlib.contextmanager
def served(archives: Sequence[Path]) -> Iterator[Connection]:
    """Serve archives in the bucket "bkt" to this process and its children."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other,))
    process.start()
    os.environ.update(pipe.recv())
    for path in archives:
        pipe.send(str(path))
        pipe.recv()
    yield pipe
    pipe.send(None)
    process.join()


def one_build(archive: str, out: str) -> None:
    """Build in this process, and say its seconds, CPU seconds and peak memory."""
    wall, cpu = timed(lambda: build([archive], out, BuildConfig(shard_samples=1000)))
    # Not ru_maxrss: that begins with the peak of the process that started this one.
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    say(json.dumps({"seconds": (wall, cpu), "peak": peak}))


def built(archive: object, out: object, folder: Path) -> dict[str, Any]:
    """What `one_build` says in a process of its own, and the most temporary bytes it had."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--one", str(archive), str(out)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            with contextlib.suppress(FileNotFoundError):
                files = [path for path in temporary.rglob("*") if path.is_file()]
                most[0] = max(most[0], sum(path.stat().st_size for path in files))

    watcher = threading.Thread(target=watch)
    watcher.start()
    text, _ = process.communicate()
    stop.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"the build of {archive} failed")
    return {**json.loads(text), "temporary": most[0]}


def zipped(path: Path) -> Path:
    """The archive compressed by gzip."""
    with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=1) as out:
        shutil.copyfileobj(plain, out, 1 << 20)
    return Path(f"{path}.gz")


def from_store(folder: Path, images: int, rounds: int) -> None:
    """Compare builds from a gzip archive in a store with those from a plain one on disk."""
    small, large = folder / "small.tar", folder / "large.tar"
    write_archive(small, images)
    write_archive(large, 2 * images)
    archives = [zipped(small), zipped(large)]
    large.unlink()
    size, out = archives[0].stat().st_size, folder / "set"
    say(f"{images:,} images in {size / 1e6:,.0f} MB")
    taken: dict[str, Seconds] = {}
    with served(archives) as pipe:
        for number in range(rounds):
            for name, source, target in (
                ("plain on disk -> disk", small, out),
                ("gzip in store -> disk", "s3://bkt/small.tar.gz", out),
                ("gzip in store -> store", "s3://bkt/small.tar.gz", "s3://bkt/set"),
            ):
                found = built(source, target, folder)
                pipe.send("counts")
                requests, read = pipe.recv()
                taken.setdefault(name, []).append(found["seconds"])
                if not number and "store" in name:
                    rates = requests / images, read / size
                    say("{}: {:.3f} requests for each image (at most 0.1 from 1 GB on), "
                        "{:.2f} times the archive read".format(name, *rates))  # fmt: skip
                if not number and name == "gzip in store -> disk":
                    small_peak = found["peak"]
                    points = sum(path.stat().st_size for path in out.glob("catalogue/unit-*"))
                    parts = points / size, found["temporary"] / size
                    say(
                        "{}: points {:.2%}, temporary files {:.2%} (at most 5 %)".format(
                            name, *parts
                        )
                    )
                shutil.rmtree(out, ignore_errors=True)
        peak = built("s3://bkt/large.tar.gz", out, folder)["peak"]
    say(f"peak memory {small_peak / 1e6:.0f} MB, with twice the archive {peak / 1e6:.0f} MB")
    for name, seconds in taken.items():
        wall, cpu = (images / statistics.median(times) for times in zip(*seconds, strict=True))
        say(f"{name:34} {wall:.1f} images/s, {cpu:.1f} per CPU second")
    plain = taken.pop("plain on disk -> disk")
    for name, seconds in taken.items():
        compared(f"{name} / plain", plain, seconds, "(at least 0.8)")


def at_full_scale(images: int = 13_153_500, size: float = 1.1e12, image: float = 25e3) -> None:
    """Requests for each image of winter21 with spool and shards in a store, from the sizes."""
    units = math.ceil(size / unit.LARGEST)
    shards = math.ceil(images * (image + 1792) / 200e6)
    groups = len(writer.groups("train", shards, int(images * image)))
    found: Mapping[str, int] = {
        "reading the archive twice, in blocks": 2 * math.ceil(size / store.REMOTE_BLOCK),
        "a range of each spool for each task": 2 * units * groups,
        "files of units (26) and shards (18)": 26 * units + 18 * shards,
    }
    total = sum(found.values())
    say(f"winter21 as gzip, by formula: {units} units, {shards:,} shards in {groups} tasks; "
        f"{total:,} requests, {total / images:.3f} for each image (at most 0.1)")  # fmt: skip
    for name, count in found.items():
        say(f"    {count:9,}  {name}")


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
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=800, help="images of the ratio")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the ratio")
    parser.add_argument("--stored", type=int, default=3008, help="images of the archive in a store")
    parser.add_argument("--store-rounds", type=int, default=2, help="rounds of the store")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_build(*arguments.one)
        return
    say(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"Pillow {Image.__version__}")  # fmt: skip
    at_full_scale()
    with tempfile.TemporaryDirectory() as name:
        ratio(Path(name), arguments.images, arguments.rounds)
        from_store(Path(name), arguments.stored, arguments.store_rounds)
        overhead(Path(name), 416)


if __name__ == "__main__":
    main()
