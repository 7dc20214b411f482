"""Where files lie: local folders and object stores behind one door; writes are whole or absent.

locate("s3://bucket/set") -> (FileSystem, "bucket/set")
with written(fs, path) as stream: ...      # a temporary name, renamed when the block ends well
reader = RangeReader(fs, path)             # reader(offset, size) -> bytes, read ahead in blocks
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs as pafs

from support.files import sync

LOCAL_BLOCK = 1 << 20
REMOTE_BLOCK = (
    8 << 20
)  # one request of an object store costs tens of milliseconds, whatever its size
TEMPORARY = ".part"
_SECRETS = re.compile(r"://[^/@]*@")  # s3://KEY:SECRET@bucket


class StorageError(OSError):
    """Storage failed; the message says what was being done and what to do."""


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
    """The location so that it means the same in another directory, without secrets in it."""
    return _SECRETS.sub("://", location) if "://" in location else locate(location)[1]


def is_local(system: pafs.FileSystem) -> bool:
    """Whether small reads are cheap here and folders are real."""
    return isinstance(system, pafs.LocalFileSystem)


def exists(system: pafs.FileSystem, path: str) -> bool:
    """Whether a file lies at path."""
    return system.get_file_info(path).type == pafs.FileType.File


def size_of(system: pafs.FileSystem, path: str) -> int | None:
    """Bytes of the file at path, None where there is none."""
    info = system.get_file_info(path)
    return info.size if info.type == pafs.FileType.File else None


def listing(system: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """What lies directly in folder, by name; empty where there is no such folder."""
    selector = pafs.FileSelector(folder, recursive=False, allow_not_found=True)
    return sorted(system.get_file_info(selector), key=lambda info: info.base_name)


def read_bytes(system: pafs.FileSystem, path: str) -> bytes:
    """The whole file."""
    with system.open_input_file(path) as file:
        return file.read()


@contextlib.contextmanager
def written(system: pafs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream whose bytes appear at path when the block ends well, and nowhere otherwise."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid4().hex}{TEMPORARY}"
    try:
        with system.open_output_stream(temporary, compression=None) as stream:
            yield stream
        if is_local(system):
            sync(Path(temporary))
        # Also on object stores: closing a stream there publishes it, even after a failed write.
        system.move(temporary, path)
    except StorageError:  # a read that failed while this file was being written
        discard(system, temporary)
        raise
    except OSError as error:
        discard(system, temporary)
        raise StorageError(
            f"cannot write {path}: {error}; once there is room and permission, run the same "
            "command again: finished parts are kept"
        ) from error
    except BaseException:
        discard(system, temporary)
        raise


def write_bytes(system: pafs.FileSystem, path: str, data: bytes) -> None:
    """Put data at path, whole or not at all."""
    with written(system, path) as stream:
        stream.write(data)


def discard(system: pafs.FileSystem, path: str) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(OSError):
        system.delete_file(path)


def sweep(system: pafs.FileSystem, folder: str) -> None:
    """Remove what killed writers left behind in folder."""
    for info in listing(system, folder):
        if info.base_name.startswith(".") and info.base_name.endswith(TEMPORARY):
            discard(system, info.path)


def make_folder(system: pafs.FileSystem, folder: str) -> None:
    """Create folder and its parents."""
    try:
        system.create_dir(folder, recursive=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {folder}: {error}; give another --out or its permission"
        ) from error


def read_range(file: pa.NativeFile, path: str, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of an open file, all of them."""
    try:
        data = file.read_at(size, offset)
    except OSError as error:
        raise StorageError(
            f"cannot read {size} bytes at byte {offset} of {path}: {error}; once it can be read, "
            "run the same command again: finished parts are kept"
        ) from error
    if len(data) < size:
        raise StorageError(
            f"{path} gave {len(data)} of {size} bytes at byte {offset}: it was cut short since it "
            "was opened; run the same command again"
        )
    return data


class RangeReader:
    """Random reads of one file, `reader(offset, size)`, short only at the end of the file.

    Reads ahead in blocks, so that walking the headers of a tar in an object store costs one request
    per block and not one per member.
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

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> "RangeReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
