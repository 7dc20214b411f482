"""The files at the top of a run's folder, on a disk or in a store, by few small reads.

A listing tells what there is, how large and how old; content is read from any byte on.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from shards.dataset import store
from support.lease import LEASE, LIFETIME_S, is_dead


class Folder:
    """The files of one folder: a listing, and what is read of them."""

    def __init__(self, system: pafs.FileSystem, path: str) -> None:
        self._system, self.path = system, path
        infos = store.retried(system, path, partial(store.listing, system, path))
        self.infos = {info.base_name: info for info in infos}

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.rpartition("/")[2]

    def read(self, name: str, start: int = 0) -> bytes:
        """Content of a file from a byte on, as far as the listing knows it; empty without it."""
        if name not in self.infos:
            return b""
        path, size = f"{self.path}/{name}", self.infos[name].size

        def part() -> bytes:
            with self._system.open_input_file(path) as file:
                return file.read_at(size - start, start)

        return store.retried(self._system, path, part)

    def json(self, name: str) -> dict:
        """Content of a JSON object in a file; empty if there is none."""
        with explained(name):
            value = json.loads(self.read(name) or b"{}")
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no JSON object")
        return value

    def lines(self, name: str, start: int = 0) -> list[dict]:
        """The complete lines of a file that begin at byte `start` or later."""
        lines = self.read(name, start).split(b"\n")[:-1]
        with explained(name):
            return [json.loads(line) for line in lines[bool(start) :]]

    @property
    def changed_at(self) -> float:
        """When the newest of its files was written."""
        times = [info.mtime_ns / 1e9 for info in self.infos.values() if info.mtime_ns]
        return max(times, default=0.0)

    def has_driver(self) -> bool:
        """Whether a driver holds the lease, and has renewed it lately by the clock of this machine.

        A list looks once; a driver that takes over watches for as long as a lease lives.
        """
        owner = self.json(LEASE).get("owner")
        if not owner or is_dead(owner):
            return False
        return time.time() - self.infos[LEASE].mtime_ns / 1e9 < LIFETIME_S


@contextlib.contextmanager
def explained(name: str | Path) -> Iterator[None]:
    """Name the file in an error of the block about its JSON."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error


def read_object(path: Path) -> dict:
    """A JSON object in a file, empty if there is no file; ValueError names a damaged one."""
    with explained(path):
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no JSON object")
    return value
