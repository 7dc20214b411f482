"""Atomic writes of files and folders, atomic appends of lines, and locks.

    with written(path) as temporary: ...   the file or folder created at `temporary` becomes `path`
    write_json(path, value)                without secrets
    append_line(path, value)               one JSON object per line
    with locked(path, "message"): ...      one process at a time

When these functions return, the data is on disk (fsync) and survives a power failure.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

from support.redact import redacted


def cache_dir() -> Path:
    """Folder of this machine for copies of what lies in stores; machines may share a home."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "vit-pipeline" / socket.gethostname()


def cache_path(kind: str, key: str) -> Path:
    """Where the folder for a key is in the cache of this machine, if it is there."""
    return cache_dir() / kind / hashlib.sha256(key.encode()).hexdigest()[:32]


def cached_folder(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The folder for a key in the cache of this machine; `fill` fills it if it is missing.

    It appears whole, and is never replaced: other processes may read it. The key must therefore
    name the content.
    """
    target = cache_path(kind, key)
    if target.is_dir():
        return target
    aside = target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")
    try:
        aside.mkdir(parents=True)
        fill(aside)
        sync(aside)
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # it may be there: another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a path for a file or folder that replaces `path` if the block ends without an error.

    After an error `path` is unchanged and the temporary file is deleted. A killed process may leave
    `.NAME.*.tmp` behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        sync(temporary)
        if path.is_dir():  # a folder cannot be renamed over another one
            remove_folder(path)
        temporary.replace(path)
        flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder; if the process is killed meanwhile, nothing half removed has its name."""
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    path.rename(aside)
    shutil.rmtree(aside)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with written(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file without secrets, atomically."""
    write_bytes(path, json.dumps(redacted(value), indent=1).encode())


def sync(path: Path) -> None:
    """Flush a file, or a folder and everything in it, to disk."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
    flush(path)


def flush(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def described(paths: Iterable[Path]) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 of each file, by its name."""
    return {path.name: (path.stat().st_size, sha256(path)) for path in paths}


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, value: Mapping[str, object], *, durable: bool = True) -> None:
    """Append a JSON object as one line; several processes may append to the same file.

    Raises OSError and leaves the file unchanged if the disk has no room for the whole line. If
    durable, waits until the line is on disk. A missing file is created.
    """
    data = json.dumps(value).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        count = os.write(descriptor, data)
        if count < len(data):
            # the next line would be appended to this fragment, and both would be unreadable
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - count)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[dict, int]]:
    """Yield complete lines from byte `start`, each with its end offset; a missing file is empty.

    An unfinished last line is skipped: its writer was killed or is still writing.
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
    """Truncate a file of lines, if it exists, at byte `end`, after its last complete line."""
    if path.exists():
        os.truncate(path, end)


class AlreadyLocked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold a file lock during the block; raise AlreadyLocked(message) if another process has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyLocked(message) from None
        yield
