"""Checkpoints in an object store, for clusters whose nodes share no disk.

    a worker's folder -> push -> s3://... -> pull -> the folder of any worker or driver

A checkpoint in the store is complete once it has its meta.json, which is written last. The store
holds the same checkpoints as the folder: the latest ones and the best one.
"""

import os
import shutil
from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from pipeline.checkpoint import local
from pipeline.checkpoint.local import META
from pipeline.data.reader import with_retries
from shards.dataset import store

LOCAL = pafs.LocalFileSystem()


def push(path: Path, storage: str) -> None:
    """Copy a checkpoint to the store; delete from the store what its folder no longer holds."""
    system, root = store.locate(storage)
    target = f"{root}/{path.name}"
    system.create_dir(target, recursive=True)
    for file in sorted(path.iterdir(), key=lambda file: file.name == META):
        copy = partial(pafs.copy_files, str(file), f"{target}/{file.name}", LOCAL, system)
        with_retries(copy, f"{storage}/{path.name}/{file.name}")
    local_names = {checkpoint.path.name for checkpoint in local.checkpoints(path.parent)}
    for name in complete(storage):
        if name not in local_names:
            # without meta.json it is no longer a checkpoint, even if the other files stay
            system.delete_file(f"{root}/{name}/{META}")
            system.delete_dir(f"{root}/{name}")


def pull(storage: str, folder: Path) -> None:
    """Copy checkpoints that only the store has; several processes may do so at the same time."""
    system, root = store.locate(storage)
    for name in complete(storage):
        path = folder / name
        if path.exists():
            continue
        aside = folder / f".{name}.{os.getpid()}"
        aside.mkdir(parents=True)
        copy = partial(pafs.copy_files, f"{root}/{name}", str(aside), system, LOCAL)
        with_retries(copy, f"{storage}/{name}")
        try:
            aside.rename(path)
        except OSError:  # another worker of this node was faster
            shutil.rmtree(aside)


def complete(storage: str) -> list[str]:
    """Names of the complete checkpoints in the store, oldest first."""
    system, root = store.locate(storage)
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    paths = [Path(info.path) for info in system.get_file_info(selector)]
    names = [path.parent.name for path in paths if path.name == META]
    return sorted(name for name in names if local.NAME.fullmatch(name))
