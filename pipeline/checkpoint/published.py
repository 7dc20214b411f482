"""Weights of other programs in a store: one file, or a folder as Hugging Face has it.

    s3://bucket/vit.npz -> ~/.cache/vit-pipeline/HOST/weights/HASH/vit.npz

A copy is kept under the hash of its address, size and time, so that another file of the same name
is another copy.
"""

from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from pipeline.checkpoint.local import META
from shards.dataset import store
from shards.dataset.store import with_retries
from support.files import cached_folder
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
    names = [name] if is_file else [MODEL_FILE, OLD_MODEL_FILE]
    # by name: the folder may have 50,000 others
    paths = [f"{folder}/{name}" for name in (*names, *BESIDE, *(() if is_file else (META,)))]
    look = partial(system.get_file_info, paths)
    found = [info for info in with_retries(look, where) if info.type == pafs.FileType.File]
    infos = {info.base_name: info for info in found}
    if META in infos:
        return None
    weights = [infos[name] for name in names if name in infos][:1]
    if not weights:
        if is_file:
            raise FileNotFoundError(f"{where} does not exist")
        return None
    files = [*weights, *(infos[name] for name in BESIDE if name in infos)]

    def fill(aside: Path) -> None:
        for info in files:
            target = str(aside / info.base_name)
            copy = partial(pafs.copy_files, info.path, target, system, pafs.LocalFileSystem())
            with_retries(copy, f"{where} ({info.base_name})")

    facts = [f"{info.path} {info.size} {info.mtime_ns}" for info in files]
    target = cached_folder(WEIGHTS, "\n".join([where, *facts]), fill)
    return target / name if is_file else target
