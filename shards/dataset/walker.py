"""The samples of a tar, and one forward pass over a shard: its samples, its damage, its SHA-256.

    with ShardWalker(system, "bucket/set/train-00000.tar", "train-00000.tar") as walker:
        for sample in walker.samples(damage):    # each with the bytes of its members
            ...
        walker.sha256()

Every byte is read once. Memory is that of a sample and of three blocks, however large the shard is.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pyarrow import fs as pafs

from shards.dataset import store, tar

LARGEST = 1 << 28  # bytes of a file, and of a sample
# bytes that are kept before the place read last: after damage, a walk goes back by the metadata
# records of one member
BEHIND = 2 << 20


class Files(NamedTuple):
    """The files of one sample by extension."""

    key: str
    members: dict[str, tar.Member]
    """Their places in the tar."""
    parts: dict[str, memoryview]
    """Their contents."""
    start: int
    stop: int


def grouped(
    members: Iterable[tar.Member], read: tar.Read, where: str, damage: tar.Damage | None = None
) -> Iterator[Files]:
    """Samples: runs of consecutive files with the same key, each file read as it comes.

    A file that cannot belong to the sample is left out and passed to `damage`; without it, the
    file raises ValueError.
    """

    def fault(member: tar.Member, reason: str) -> None:
        if damage is None:
            raise ValueError(f"{where}: byte {member.start}: {reason}")
        damage(member.start, reason)

    def files() -> Iterator[tuple[str, str, tar.Member, memoryview]]:
        key, size = "", 0
        for member in members:
            # ._NAME is what macOS adds to NAME; other readers pass over hidden files, too
            if member.kind != "file" or member.name.rpartition("/")[2].startswith("."):
                continue
            earlier, (key, extension) = key, split_name(member.name)
            size = member.size + (size if key == earlier else 0)
            if size <= LARGEST:
                yield key, extension, member, memoryview(read(member.offset, member.size))
            else:
                fault(member, f"with {member.name!r} sample {key!r} has {size} bytes, at most "
                      f"{LARGEST} are read")  # fmt: skip
                size -= member.size

    for key, run in itertools.groupby(files(), key=lambda file: file[0]):
        found, parts = {}, {}
        for _, extension, member, data in run:
            if extension in parts:
                fault(member, f"a second {member.name!r} in one sample")
                continue
            found[extension], parts[extension] = member, data
            stop = member.stop
        yield Files(key, found, parts, next(iter(found.values())).start, stop)


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension of a member: WebDataset splits at the base name's first dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


class ShardWalker(contextlib.AbstractContextManager):
    """Reads a shard from its first byte to its last; as a function, `walker(offset, size)`."""

    def __init__(self, system: pafs.FileSystem, path: str, name: str) -> None:
        self.name = name
        self._file = system.open_input_file(path)
        self.size = self._file.size()
        self._read = store.range_of(system, self._file, path)
        self._hash = hashlib.sha256()
        self._start, self._data = 0, bytearray()
        self._blocks = self._in_blocks(
            store.LOCAL_BLOCK if store.is_local(system) else store.REMOTE_BLOCK
        )

    def _in_blocks(self, length: int) -> Iterator[bytes]:
        """The file in blocks; a thread reads and hashes the next one while one is in use."""

        def read(start: int) -> bytes:
            data = self._read(start, min(length, self.size - start))
            self._hash.update(data)
            return data

        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(read, 0)
            for start in range(length, self.size, length):
                block, ahead = ahead, thread.submit(read, start)
                yield block.result()
            yield ahead.result()

    def __call__(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size), fewer only at the end of the file."""
        offset = min(offset, self.size)
        size = min(size, self.size - offset)
        if offset < self._start:
            return self._read(offset, size)
        while self._start + len(self._data) < offset + size:
            block = next(self._blocks)
            passed = min(max(offset - BEHIND - self._start, 0), len(self._data))
            del self._data[:passed]
            self._start += passed
            self._data += block
        place = offset - self._start
        return bytes(memoryview(self._data)[place : place + size])

    def samples(self, damage: tar.Damage) -> Iterator[Files]:
        """The samples in the order of the tar; each damaged place is passed to `damage`."""
        return grouped(self._members(damage), self, self.name, damage)

    def _members(self, damage: tar.Damage) -> Iterator[tar.Member]:
        last = 0
        for member in tar.walk(self, 0, self.size, self.name, damage):
            last = member.stop
            yield member
        if not tar.ends(self, last, self.size):
            damage(self.size, tar.NO_END)

    def sha256(self) -> str:
        """Hash of the whole file; reads what is left of it."""
        for _ in self._blocks:
            pass
        self._start, self._data = self.size, bytearray()
        return self._hash.hexdigest()

    def __exit__(self, *_: object) -> None:
        self._blocks.close()  # waits for the block that is being read
        self._file.close()
