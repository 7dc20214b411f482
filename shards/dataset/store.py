"""Files in local folders and object stores; writes are atomic.

locate("s3://bucket/set") -> (FileSystem, "bucket/set")
with written(fs, path) as stream: ...      # a temporary name, renamed if the block succeeds
reader = RangeReader(fs, path)             # reader(offset, size) -> bytes, reads ahead in blocks
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs as pafs

from support.files import sync

LOCAL_BLOCK = 1 << 20
REMOTE_BLOCK = 8 << 20  # a request to an object store takes tens of milliseconds at any size
TEMPORARY = ".part"
_SECRETS = re.compile(r"://[^/@]*@")  # s3://KEY:SECRET@bucket


class StorageError(OSError):
    """Storage failed; the message names the operation and the remedy."""


def locate(location: str | Path) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path inside it."""
    text = str(location)
    if "://" in text:
        try:
            system, path = pafs.FileSystem.from_uri(text)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"location {absolute(text)!r} cannot be opened ({error}); give a path, s3://..., "
                "gs://... or file:///..."
            ) from error
        return system, path.rstrip("/") or path
    return pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())


def absolute(location: str) -> str:
    """The location, valid from any working directory and without credentials."""
    return _SECRETS.sub("://", location) if "://" in location else locate(location)[1]


def join(location: str, *names: str) -> str:
    """The location of something inside a folder or prefix; a URI keeps its options (?...)."""
    place, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return "/".join([place.rstrip("/"), *names]) + mark + options


def is_local(system: pafs.FileSystem) -> bool:
    """Whether the files are local: small reads are cheap and folders are real."""
    return isinstance(system, pafs.LocalFileSystem)


def exists(system: pafs.FileSystem, path: str) -> bool:
    """Whether there is a file at path."""
    return size_of(system, path) is not None


def size_of(system: pafs.FileSystem, path: str) -> int | None:
    """Bytes of the file at path, None if there is no file."""
    info = system.get_file_info(path)
    return info.size if info.type == pafs.FileType.File else None


def listing(system: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """Entries of folder, sorted by name; empty if the folder does not exist."""
    selector = pafs.FileSelector(folder, recursive=False, allow_not_found=True)
    return sorted(system.get_file_info(selector), key=lambda info: info.base_name)


def read_bytes(system: pafs.FileSystem, path: str) -> bytes:
    """Content of a file."""
    with system.open_input_file(path) as file:
        return file.read()


@contextlib.contextmanager
def written(system: pafs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream whose bytes appear at path if the block succeeds, and are discarded otherwise."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid4().hex}{TEMPORARY}"
    try:
        with system.open_output_stream(temporary, compression=None) as stream:
            yield stream
        if is_local(system):
            sync(Path(temporary))
        # Object stores need this too: closing a stream publishes it even after a failed write.
        system.move(temporary, path)
    except BaseException as error:
        discard(system, temporary)
        # A StorageError is of a read that failed while this file was being written.
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise StorageError(
                f"cannot write {path}: {error}; once there is room and permission, run the same "
                "command again: finished parts are kept"
            ) from error
        raise


def write_bytes(system: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write data to path, atomically."""
    with written(system, path) as stream:
        stream.write(data)


def read_json(system: pafs.FileSystem, path: str) -> Any:  # noqa: ANN401
    """Content of a JSON file, None if there is no file."""
    return json.loads(read_bytes(system, path)) if exists(system, path) else None


def discard(system: pafs.FileSystem, path: str) -> None:
    """Remove a file if it exists."""
    with contextlib.suppress(OSError):
        system.delete_file(path)


def sweep(system: pafs.FileSystem, folder: str) -> None:
    """Remove temporary files that killed writers left in folder."""
    for info in listing(system, folder):
        if info.base_name.startswith(".") and info.base_name.endswith(TEMPORARY):
            discard(system, info.path)


def make_folder(system: pafs.FileSystem, folder: str) -> None:
    """Create folder and its parents."""
    try:
        system.create_dir(folder, recursive=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {folder}: {error}; give another --out or allow writing there"
        ) from error


def read_range(file: pa.NativeFile, path: str, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of an open file; raises StorageError if it has fewer."""
    try:
        data = file.read_at(size, offset)
    except OSError as error:
        raise StorageError(
            f"cannot read {size} bytes at byte {offset} of {path}: {error}; once it can be read, "
            "run the same command again: finished parts are kept"
        ) from error
    if len(data) < size:
        raise StorageError(
            f"{path} gave {len(data)} of {size} bytes at byte {offset}: it was truncated after it "
            "was opened; run the same command again"
        )
    return data


class RangeReader(contextlib.AbstractContextManager):
    """Random reads of one file, `reader(offset, size)`, short only at the end of the file.

    It reads ahead in blocks. Walking the headers of a tar in an object store then takes one request
    per block, not one per member.
    """

    def __init__(self, system: pafs.FileSystem, path: str, block: int | None = None) -> None:
        self.path = path
        self.block = block or (LOCAL_BLOCK if is_local(system) else REMOTE_BLOCK)
        self._file = system.open_input_file(path)
        self.size = self._file.size()
        self._start, self._data = 0, b""

    def __call__(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of the file."""
        place = offset - self._start
        if place < 0 or place + size > len(self._data):
            length = min(max(size, self.block), self.size - offset)
            self._data = read_range(self._file, self.path, offset, length) if length > 0 else b""
            self._start, place = offset, 0
        return self._data[place : place + size]

    def sha256(self) -> str:
        """Hash of the whole file."""
        hashed = hashlib.sha256()
        for offset in range(0, self.size, self.block):
            hashed.update(self(offset, min(self.block, self.size - offset)))
        return hashed.hexdigest()

    def __exit__(self, *_: object) -> None:
        self._file.close()
