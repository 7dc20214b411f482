"""Files that are written whole or not at all, lines that are appended whole, and locks.

    with written(path) as aside: ...     what is made at `aside`, a file or a folder, becomes `path`
    write_json(path, value)              without secrets
    append_line(path, value)             one JSON object per line
    with locked(path, "message"): ...    one process at a time

When these functions return, the data has reached the disk (fsync): it outlives a loss of power.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

from support.redact import redacted


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A place for a file or folder that becomes `path` when the block ends without an error.

    An earlier `path` is replaced. After an error it is as it was, and nothing is left behind; a
    process that is killed may leave `.NAME.*.tmp`.
    """
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield aside
        sync(aside)
        if path.is_dir():  # a folder cannot be renamed over another one
            shutil.rmtree(path)
        aside.replace(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with written(path) as aside:
        aside.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file without secrets, whole or not at all."""
    write_bytes(path, json.dumps(redacted(value), indent=1).encode())


def sync(path: Path) -> None:
    """Make sure that a file, or a folder and the files in it, has reached the disk."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, value: Mapping[str, object], *, durable: bool = True) -> None:
    """Append a JSON object as one line; several processes may append to the same file.

    Raises OSError, and leaves the file as it was, if the disk has no room for the whole line.

    Args:
        path: File of lines; it is created if it is not there.
        value: The object.
        durable: Wait until the line has reached the disk.
    """
    data = json.dumps(value).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        count = os.write(descriptor, data)
        if count < len(data):
            # the next line would be appended to this piece, and neither could be read again
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - count)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[dict, int]]:
    """Complete lines from byte `start` on, each with the byte after it; none without the file.

    The last line is left out if it does not end: its writer was killed, or is writing it.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield json.loads(line), start


def cut_unfinished_line(path: Path, end: int) -> None:
    """Cut a file of lines at byte `end`, where its last complete line ends."""
    if path.exists():
        os.truncate(path, end)


class AlreadyLocked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold the lock of a file for the block; AlreadyLocked with `message` if it is taken."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyLocked(message) from None
        yield
