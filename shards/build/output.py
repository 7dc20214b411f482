"""The folder or prefix that a build writes: what is there already, who writes, and what may go.

saved = finished(fs, root, identity)            # what is saved of a complete build, or None
with written_here(fs, root) as lease: ...       # no other process writes meanwhile
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from shards.build import assign, report, writer
from shards.build.archive import RawSource
from shards.build.catalogue import DamagedSource
from shards.build.report import Saved
from shards.dataset import format, store
from shards.dataset.format import Manifest
from support.lease import Lease, leased

CLASSES = "classes.txt"
DAMAGED = "catalogue/damaged.txt"


def finished(system: pafs.FileSystem, root: str, identity: str) -> Saved | None:
    """What is saved of this build if it is complete; ValueError if another set is there."""
    saved = report.read(system, root)
    if saved is None:
        return None
    if saved.build != identity:
        raise ValueError(
            f"{root} holds a shard set of other sources or settings; give another --out, or "
            "remove it"
        )
    if missing := list(itertools.islice(_missing(system, root, saved), 5)):
        raise ValueError(
            f"{root} was built and has been changed: {', '.join(missing)} missing or of another "
            f"size; make it whole with `python -m shards verify {root} --repair`"
        )
    return saved


def _missing(system: pafs.FileSystem, root: str, saved: Saved) -> Iterator[str]:
    """Files of a finished set that are not there as they were, by one look at the folder."""
    sizes = {info.base_name: info.size for info in store.listing(system, root)}
    try:
        manifest = format.open_manifest(system, root)
    except (FileNotFoundError, ValueError):
        manifest = None
    if manifest is None or manifest.sha256 != saved.manifest:
        yield format.MANIFEST
        return
    for shard in manifest.shards:
        if sizes.get(shard.name) != shard.bytes:
            yield shard.name
        if shard.index_name not in sizes:
            yield shard.index_name


def refuse_overwriting(system: pafs.FileSystem, root: str, raws: Sequence[RawSource]) -> None:
    """Raise ValueError if the output lies in a source, or holds shards that no build of ours made.

    The shards of an unfinished build may be replaced.
    """
    for raw in raws:
        if raw.is_folder and raw.fs == system and f"{root}/".startswith(f"{raw.path}/"):
            raise ValueError(f"--out {root} lies in the source {raw.path}; give another --out")
    if store.has_folder(system, f"{root}/catalogue"):
        return
    names = (info.base_name for info in store.listing(system, root))
    if found := next((n for n in names if n.endswith(".tar") or n == format.MANIFEST), None):
        raise ValueError(
            f"{root} holds {found}, which this command has not made; give another --out"
        )


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


@contextlib.contextmanager
def undone_if_damaged(system: pafs.FileSystem, root: str) -> Iterator[None]:
    """Let the next build begin anew after a DamagedSource.

    What was read before its damage was found may be wrong too, and the archive that replaces it has
    the same name, and most likely the same fingerprint. The notes are removed by the next build,
    because tasks that were cancelled may still write some.
    """
    mark, notes = f"{root}/{DAMAGED}", ("unit-", "part-", assign.TALLY)
    if store.exists(system, mark):
        for folder in ("catalogue", "plan"):
            for info in store.listing(system, f"{root}/{folder}"):
                if info.base_name.startswith(notes):
                    system.delete_file(info.path)
        system.delete_file(mark)
    try:
        yield
    except DamagedSource as error:
        store.write_bytes(system, mark, str(error).encode())
        raise


def texts(manifest: Manifest) -> dict[str, str]:
    """The files that follow from the manifest, by name; the manifest marks the set as complete."""
    lines = "".join(f"{wnid}\n" for wnid in manifest.classes)
    return {CLASSES: lines, format.TIMM_INFO: manifest.timm_info()}


def publish(system: pafs.FileSystem, root: str, manifest: Manifest) -> Iterator[str]:
    """Write the manifest, after what follows from it; yields the names of files that changed."""
    for name, text in (texts(manifest) | {format.MANIFEST: manifest.to_json()}).items():
        path, data = f"{root}/{name}", text.encode()
        if not store.exists(system, path) or store.read_bytes(system, path) != data:
            store.write_bytes(system, path, data)
            yield name


def clean(system: pafs.FileSystem, root: str, *, keep_work: bool) -> None:
    """Remove the spool, and what an earlier build left that was given up. It may be killed."""
    manifest = format.open_manifest(system, root)
    names = {name for shard in manifest.shards for name in (shard.name, shard.index_name)}
    for info in store.listing(system, root):
        if writer.SHARD_FILE.fullmatch(info.base_name) and info.base_name not in names:
            store.discard(system, info.path)
    plans = {assign.TALLY, *(f"{split}.parquet" for split in manifest.splits)}
    for info in store.listing(system, f"{root}/plan"):
        if info.base_name not in plans:
            store.discard(system, info.path)
    if not keep_work:
        with contextlib.suppress(FileNotFoundError):
            system.delete_dir(f"{root}/work")
