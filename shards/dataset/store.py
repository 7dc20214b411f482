"""Files in local folders and object stores; writes are atomic.

locate("s3://bucket/set") -> (FileSystem, "bucket/set")
with written(fs, path) as stream: ...      # a temporary name, renamed if the block succeeds
reader = RangeReader(fs, path)             # reader(offset, size) -> bytes, reads ahead in blocks
"""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs as pafs

from support.files import sync

T = TypeVar("T")

# seconds between attempts: half a minute in total, about as long as stores throttle
PAUSES_S = (0.1, 0.5, 2.0, 8.0, 20.0)
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


def has_folder(system: pafs.FileSystem, path: str) -> bool:
    """Whether there is a folder, or a prefix with files, at path."""
    return system.get_file_info(path).type == pafs.FileType.Directory


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
    if not exists(system, path):
        return None
    return json.loads(retried(system, path, partial(read_bytes, system, path)))


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


def with_retries(read: Callable[[], T], where: str, pauses_s: Sequence[float] = ()) -> T:
    """Call `read`, and retry after an OSError, unless the file does not exist.

    `pauses_s` are the seconds between attempts, by default PAUSES_S.
    """
    for pause_s in (*(pauses_s or PAUSES_S), None):
        try:
            return read()
        except OSError as error:
            if pause_s is None or isinstance(error, FileNotFoundError):
                raise type(error)(f"{where}: {error}") from error
            # thousands of tasks that failed together must not retry together
            time.sleep(pause_s * random.uniform(0.5, 1.5))


def retried(system: pafs.FileSystem, path: str, read: Callable[[], T]) -> T:
    """What `read` gives, tried again if an object store fails to give `path`.

    The client of a store tries again by itself, except if it asked for fewer bytes than the answer
    of a busy store has.
    """
    return read() if is_local(system) else with_retries(read, path)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn errors of the storage in the block into a StorageError about `what` is read."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError | FileNotFoundError):
            raise
        raise StorageError(
            f"cannot read {what}: {error}; once it can be read, run the same command again: "
            "finished parts are kept"
        ) from error


def read_range(file: pa.NativeFile, path: str, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of an open file; raises StorageError if it has fewer."""
    with reading(f"{size} bytes at byte {offset} of {path}"):
        data = file.read_at(size, offset)
    if len(data) < size:
        raise StorageError(
            f"{path} gave {len(data)} of {size} bytes at byte {offset}: it was truncated after it "
            "was opened; run the same command again"
        )
    return data


def range_of(
    system: pafs.FileSystem, file: pa.NativeFile, path: str
) -> Callable[[int, int], bytes]:
    """read(offset, size) as `read_range`, which tries again where an object store fails."""
    read = partial(read_range, file, path)
    return lambda offset, size: retried(system, path, partial(read, offset, size))


class RangeReader(contextlib.AbstractContextManager):
    """Random reads of one file, `reader(offset, size)`, short only at the end of the file.

    It reads ahead in blocks. Walking the headers of a tar in an object store then takes one request
    per block, not one per member. While the blocks of an object store are read one after the other,
    they double up to REMOTE_BLOCK, and the next one is fetched while one is used: a reader of all
    waits for little, and one of a few places reads little in vain.
    """

    def __init__(self, system: pafs.FileSystem, path: str, block: int | None = None) -> None:
        self.path = path
        self._file = system.open_input_file(path)
        self.size = self._file.size()
        self._start, self._data = 0, b""
        self._range = range_of(system, self._file, path)
        grows = not (is_local(system) or block)
        self._first = self._block = block or LOCAL_BLOCK
        self._largest = REMOTE_BLOCK if grows else self._first
        self._thread = ThreadPoolExecutor(1) if grows else None
        self._next: tuple[int, Future[bytes]] | None = None

    def __call__(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of the file."""
        end = self._start + len(self._data)
        if not self._start <= offset <= end + self._block:
            self._start, self._data, end, self._block = offset, b"", offset, self._first
        if offset + size > end and end < self.size:
            start = min(offset, end)
            pieces = [self._data[start - self._start :]]
            while end < min(offset + size, self.size):
                pieces.append(self._piece(end, offset + size - end))
                end += len(pieces[-1])
            self._start, self._data = start, b"".join(pieces)
        place = offset - self._start
        return self._data[place : place + size]

    def _piece(self, offset: int, size: int) -> bytes:
        """At least one byte from `offset` on, and where reads are small a block."""
        ahead, self._next = self._next, None
        goes_on = offset > self._start
        if goes_on:
            self._block = min(2 * self._block, self._largest)
        if ahead and ahead[0] == offset:
            data = ahead[1].result()
        else:
            data = self._read(offset, max(size, self._block))
        following = offset + len(data)
        if self._thread and goes_on and following < self.size:
            self._next = following, self._thread.submit(self._read, following, self._block)
        return data

    def _read(self, offset: int, size: int) -> bytes:
        return self._range(offset, min(size, self.size - offset))

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
        self._file.close()
