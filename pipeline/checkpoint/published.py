"""Weights of other programs in a store: one file, or a folder as Hugging Face has it.

    s3://bucket/vit.npz -> ~/.cache/vit-pipeline/HOST/weights/HASH/vit.npz

A copy is kept under the hash of its address, size and time, so that another file of the same name
is another copy.
"""

import hashlib
from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from pipeline.checkpoint.local import META
from shards.dataset import store
from shards.dataset.store import with_retries
from support.files import cache_dir, written
from vit.weights import CONFIG_FILE, MODEL_FILE, OLD_MODEL_FILE

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
# what says more about the weights in the same folder, if it is there
BESIDE = (CONFIG_FILE, "preprocessor_config.json")
WEIGHTS = "weights"


def fetched_weights(uri: str) -> Path | None:
    """A copy on this machine of the file, or of the folder, at a URI.

    None if it is the place of a run or of a checkpoint, or if there is nothing; FileNotFoundError
    if it names a file that is missing.
    """
    system, path = store.locate(uri)
    where = store.absolute(uri)
    is_file = path.endswith(SUFFIXES)
    folder, _, name = path.rpartition("/") if is_file else (path, "", "")
    look = partial(store.listing, system, folder)
    infos = {info.base_name: info for info in with_retries(look, where)}
    names = [name] if is_file else [MODEL_FILE, OLD_MODEL_FILE]
    if META in infos and not is_file:
        return None
    weights = [infos[name] for name in names if name in infos][:1]
    if not weights:
        if is_file:
            raise FileNotFoundError(f"{where} does not exist")
        return None
    files = [*weights, *(infos[name] for name in BESIDE if name in infos)]
    facts = [f"{info.path} {info.size} {info.mtime_ns}" for info in files]
    digest = hashlib.sha256("\n".join([where, *facts]).encode()).hexdigest()
    target = cache_dir() / WEIGHTS / digest[:32]
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with written(target) as aside:
            aside.mkdir()
            for info in files:
                copy = partial(
                    pafs.copy_files,
                    info.path,
                    str(aside / info.base_name),
                    system,
                    pafs.LocalFileSystem(),
                )
                with_retries(copy, f"{where} ({info.base_name})")
    return target / name if is_file else target
