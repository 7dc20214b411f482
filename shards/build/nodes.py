"""Whether all nodes of a cluster see the files of this process: on the same disk, or in a store.

check(sources, out)               # ValueError names the node and the path
with marked(folder) as name: ...  # a file that only those find who see this very folder
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from pyarrow import fs as pafs

from shards.build.ray_map import alive, listed, on_every_node
from shards.dataset import store

MARKER = ".driver-"
WHERE = "a folder that every node sees, or an s3:// or gs:// prefix"
ALONE = "or unset RAY_ADDRESS to use this machine alone"


@dataclass(frozen=True)
class View:
    """What this process sees."""

    inputs: Mapping[str, int]
    """Size of each input by its location."""
    out: str
    """Folder of the output; empty without one."""
    marker: str
    """Name of the marker in it."""

    def faults(self, node: str) -> list[str]:
        """What the node of the calling process does not see, each in a sentence that names it."""
        faults = []
        for location, expected in self.inputs.items():
            found = size(location)
            if found is None:
                faults.append(f"{location} is not seen by node {node}: give {WHERE}, {ALONE}")
            elif found != expected:
                faults.append(
                    f"{location} has {found:,} bytes on node {node} and {expected:,} on the "
                    f"driver's: give {WHERE}, {ALONE}"
                )
        if self.out and not finds(self.out, self.marker):
            faults.append(f"the output {self.out} is not seen by node {node}: give {WHERE}")
        return faults


def check(inputs: Sequence[str], out: str | None = None) -> None:
    """Compare with what the other nodes see; ValueError names the node and the path.

    Args:
        inputs: Files, folders or URIs to read. If one is not here either, nothing is compared,
            because the command itself then says what to do.
        out: Folder or URI to write to, created if it is missing.
    """
    sizes = {each: size(each) for each in map(whole, inputs)}
    if None in sizes.values() or len(alive()) < 2:
        return
    out = whole(out) if out else ""
    with marked(out) if out else contextlib.nullcontext("") as marker:
        answers = on_every_node(View.faults, View(sizes, out, marker))
    if faults := [fault for found in answers for fault in found]:
        raise ValueError(listed(faults))


@contextlib.contextmanager
def marked(folder: str) -> Iterator[str]:
    """Name of an empty file in the folder or under the prefix, which is there for the block."""
    system, root = store.locate(folder)
    store.make_folder(system, root)
    for info in store.listing(system, root):
        if info.base_name.startswith(MARKER):  # of a process that was killed
            store.discard(system, info.path)
    # a new name every time, because network disks remember for a while which names were not there
    name = f"{MARKER}{uuid4().hex}"
    store.write_bytes(system, f"{root}/{name}", b"")
    try:
        yield name
    finally:
        store.discard(system, f"{root}/{name}")


def finds(folder: str, name: str) -> bool:
    """Whether there is a file of this name in the folder or under the prefix."""
    system, root = store.locate(folder)
    return store.exists(system, f"{root}/{name}")


def size(location: str) -> int | None:
    """Bytes of a file, or of the files in a folder; None if it does not exist."""
    system, path = store.locate(location)
    info = system.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        return None
    is_file = info.type == pafs.FileType.File
    return info.size if is_file else sum(each.size or 0 for each in store.listing(system, path))


def whole(location: str) -> str:
    """The location as processes in other folders find it."""
    return location if "://" in location else store.locate(location)[1]
