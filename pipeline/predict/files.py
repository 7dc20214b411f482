"""The images to classify: files, and folders or prefixes with all that lies below them.

    locations of the command line -> walked, folder by folder -> ImageFile -> bytes

Only one folder's names are in memory at a time, so that a folder of folders may hold millions.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from pyarrow import fs as pafs

from shards.dataset import store
from vit.images import SUFFIXES  # in a folder, files with other suffixes are passed over


class ImageFile(NamedTuple):
    """One image."""

    root: str
    """Location that it was found at, with which its file system is opened."""
    path: str
    """Its path in the file system."""

    @property
    def name(self) -> str:
        """Its path, or its URI without options and secrets."""
        scheme, mark, _ = self.root.partition("://")
        return f"{scheme}://{self.path}" if mark else self.path

    def read(self) -> bytes:
        """Its content; OSError if it cannot be read."""
        system = file_system(self.root)
        return store.retried(
            system, self.path, functools.partial(store.read_bytes, system, self.path)
        )


@functools.lru_cache(maxsize=256)
def file_system(root: str) -> pafs.FileSystem:
    """The file system of a location; opened once, because a store's client is slow to make."""
    return store.locate(root)[0]


def check(locations: Sequence[str]) -> None:
    """FileNotFoundError if a location does not exist; ValueError if there is none."""
    if not locations:
        raise ValueError("predict needs at least one IMAGE: a file, a folder, or an s3:// URI")
    for location in locations:
        system, path = store.locate(location)
        if system.get_file_info(path).type == pafs.FileType.NotFound:
            raise FileNotFoundError(
                f"there is no file or folder {store.absolute(location)}; give images, or folders "
                f"with images"
            )


def walk(locations: Sequence[str]) -> Iterator[ImageFile]:
    """All images, in the order of the locations, and below a folder sorted by name."""
    for location in locations:
        system, path = store.locate(location)
        if system.get_file_info(path).type == pafs.FileType.Directory:
            yield from (ImageFile(location, found) for found in below(system, path))
        else:
            yield ImageFile(location, path)


def below(system: pafs.FileSystem, folder: str) -> Iterator[str]:
    """Paths of the files in a folder that have an image's suffix, and of those in its folders."""
    for info in store.listing(system, folder):
        if info.type == pafs.FileType.Directory:
            yield from below(system, info.path)
        elif PurePosixPath(info.base_name).suffix.lower() in SUFFIXES:
            yield info.path


def count(locations: Sequence[str]) -> int:
    """Number of images; ValueError if there is none."""
    number = sum(1 for _ in walk(locations))
    if not number:
        places = ", ".join(map(store.absolute, locations))
        raise ValueError(
            f"no image in {places}: no file there ends with {', '.join(SUFFIXES)}; to classify the "
            f"images of shards use python -m pipeline evaluate"
        )
    return number
