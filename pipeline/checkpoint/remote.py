"""Checkpoints in an object store, which is the truth for a run whose runs_dir is a URI.

    a worker's folder -> upload -> s3://... -> fetch -> a folder of any worker or driver

A checkpoint in the store is complete once it has its meta.json, which is written last and removed
first. What a killed writer left has none, and the next checkpoint of that step replaces it.
"""

import shutil
from functools import partial
from pathlib import Path
from uuid import uuid4

from pyarrow import fs as pafs

from pipeline.checkpoint.local import CONFIG, META, NAME, Checkpoint
from shards.dataset import store
from shards.dataset.store import with_retries
from support.lease import PATIENT_S

LOCAL = pafs.LocalFileSystem()


def checkpoints(uri: str, folder: Path) -> list[Checkpoint]:
    """All complete checkpoints in the store, oldest first, with their paths in a local folder."""
    system, root = store.locate(uri)
    where = store.absolute(uri)
    found = []
    for name in with_retries(lambda: complete(system, root), where):
        meta, config = (
            with_retries(partial(store.read_bytes, system, f"{root}/{name}/{file}"), where)
            for file in (META, CONFIG)
        )
        found.append(Checkpoint.of(folder / name, meta, config))
    return found


def complete(system: pafs.FileSystem, root: str) -> list[str]:
    """Names of the complete checkpoints under a prefix, oldest first."""
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    paths = [Path(info.path) for info in system.get_file_info(selector)]
    names = [path.parent.name for path in paths if path.name == META]
    return sorted(name for name in names if NAME.fullmatch(name))


def clear(uri: str, name: str) -> None:
    """Remove a checkpoint, or what an earlier attempt has left of it; meta.json goes first."""
    system, root = store.locate(uri)
    target, where = f"{root}/{name}", store.absolute(uri)
    remove(system, f"{target}/{META}", where)
    if with_retries(lambda: store.listing(system, target), where, PATIENT_S):
        with_retries(lambda: system.delete_dir(target), where, PATIENT_S)


def remove(system: pafs.FileSystem, path: str, where: str) -> None:
    """Remove a file, if it exists; OSError if the store does not do it."""
    if with_retries(lambda: store.exists(system, path), where, PATIENT_S):
        with_retries(lambda: system.delete_file(path), where, PATIENT_S)


def upload(path: Path, uri: str, name: str) -> None:
    """Copy a file of a checkpoint to the store."""
    system, root = store.locate(uri)
    target = f"{root}/{name}"
    if store.is_local(system):  # file://; object stores have no folders
        store.make_folder(system, target)
    copy = partial(pafs.copy_files, str(path), f"{target}/{path.name}", LOCAL, system)
    with_retries(copy, f"{store.absolute(uri)}/{name}/{path.name}", PATIENT_S)


def download(uri: str, name: str, path: Path) -> None:
    """Copy a file of a checkpoint from the store."""
    system, root = store.locate(uri)
    copy = partial(pafs.copy_files, f"{root}/{name}/{path.name}", str(path), system, LOCAL)
    with_retries(copy, f"{store.absolute(uri)}/{name}/{path.name}")


def delete(checkpoint: Checkpoint, uri: str) -> None:
    """Remove a checkpoint from the store; without meta.json it is none, even if files stay."""
    clear(uri, checkpoint.path.name)


def fetch(checkpoint: Checkpoint, uri: str, only: str = "") -> None:
    """Copy a checkpoint from the store to its path; ValueError if the copy is damaged.

    With `only`, just the files that begin so, beside its settings.
    """
    name, folder = checkpoint.path.name, checkpoint.path.parent
    aside = folder / f".{name}.{uuid4().hex[:8]}.tmp"
    aside.mkdir(parents=True)
    try:
        for file in (*checkpoint.files, META):
            if file in (CONFIG, META) or file.startswith(only):
                download(uri, name, aside / file)
        Checkpoint.open(aside, only=only).verify(only)
        aside.rename(checkpoint.path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
