"""Small archives with the nesting, names and faults of the real ones, for the tests of shards."""

import functools
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from pyarrow import fs as pafs

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475")


def synthetic_image(seed: int, width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    """An image with structure of its own for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@functools.cache
def jpeg(seed: int, width: int = 96, height: int = 64, mode: str = "RGB", **options) -> bytes:
    return encoded(synthetic_image(seed, width, height, mode), "JPEG", **{"quality": 96, **options})


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


Member = tuple[str | tarfile.TarInfo, bytes]


def tar_bytes(members: Iterable[Member], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as file:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def class_images(wnid: str, count: int, first: int = 0) -> list[Member]:
    """Members of a class tar: n01440764_0.JPEG and so on, images unlike any other class's."""
    base = 1000 * int(wnid[1:]) + first
    return [(f"{wnid}_{number}.JPEG", jpeg(base + number)) for number in range(count)]


def nested(classes: Mapping[str, Iterable[Member]], prefix: str = "") -> bytes:
    """A tar of one tar per class."""
    return tar_bytes((f"{prefix}{wnid}.tar", tar_bytes(m)) for wnid, m in classes.items())


def small_archive(path: Path, classes: int = 3, images: int = 8) -> Path:
    """fall11_whole.tar, but small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nested({wnid: class_images(wnid, images) for wnid in WNIDS[:classes]}))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def failing_storage(fails_at: int, what: str) -> pafs.FileSystem:
    """The local disk, whose `fails_at`th read or write of a file fails, and every one after it."""
    left = [fails_at]

    class Failing(LocalFileSystem):
        def _open(self, path, mode="rb", **options):
            file = open(path, mode, buffering=0)  # noqa: PTH123
            real = getattr(file, what)

            def counted(*args):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(5, "the storage went away")
                return real(*args)

            class File:
                def __getattr__(self, name):
                    return counted if name == what else getattr(file, name)

            return File()

    return pafs.PyFileSystem(pafs.FSSpecHandler(Failing(skip_instance_cache=True)))
