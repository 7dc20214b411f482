"""One process at a time writes to a shard set, on whichever machine.

with written_here(fs, "data/in21k"): ...
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from shards.dataset import store
from support.lease import Lease, leased


@dataclass(frozen=True)
class LeaseFolder:
    """The folder in a shard set where the lease of its writer lies."""

    fs: pafs.FileSystem
    root: str

    @property
    def uri(self) -> str | None:
        """None for a folder of this machine."""
        return None if store.is_local(self.fs) else self.root

    @property
    def location(self) -> str:
        """The path in its file system."""
        return self.root

    def read(self, name: str, pauses_s: Sequence[float] = ()) -> bytes | None:
        """Content of a file; None if there is none."""
        path = f"{self.root}/{name}"
        if not store.with_retries(lambda: store.exists(self.fs, path), path, pauses_s):
            return None
        return store.with_retries(lambda: store.read_bytes(self.fs, path), path, pauses_s)

    def write(self, name: str, data: bytes, pauses_s: Sequence[float] = ()) -> None:
        """Write a file, atomically."""
        path = f"{self.root}/{name}"
        store.with_retries(lambda: store.write_bytes(self.fs, path, data), path, pauses_s)


@contextlib.contextmanager
def written_here(system: pafs.FileSystem, root: str) -> Iterator[Lease]:
    """This process alone writes to the set during the block; AlreadyLocked if another one does."""
    store.make_folder(system, f"{root}/catalogue")
    with leased(LeaseFolder(system, f"{root}/catalogue")) as lease:
        yield lease
