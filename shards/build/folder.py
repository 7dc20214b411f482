"""How folders are cut into parts: of shards, of class tars, of class folders.

To support another kind of folder, add a function here to FOLDERS.
"""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pyarrow import fs as pafs

from shards.build import archive
from shards.build.archive import NO_LABELS, Fault, Part, Source
from shards.build.config import Kind
from shards.dataset import format, store

FOLDER_IMAGES = 1024  # of a folder of validation images that are read in one go


def _shard_folder(source: Source) -> Iterator[Part | Fault]:
    raw = source.raw
    if not store.exists(raw.fs, f"{raw.path}/{format.MANIFEST}"):
        paths = [f"{raw.path}/{name}" for name in format.tar_names(raw.fs, raw.path)]
        for info in raw.fs.get_file_info(paths):
            split = archive.split_of(info.path.removeprefix(f"{raw.path}/"))
            yield shard(source, info.path, info.size, split)
        return
    shard_set = format.open_set(raw.location)
    manifest = shard_set.manifest
    known = replace(source, classes=manifest.classes)
    for split, shards in manifest.splits.items():
        for one in shards:
            part = shard(known, shard_set.path(one), one.bytes, split)
            yield replace(part, label=manifest.label, archive=one.name, sha256=one.sha256)


def shard(source: Source, path: str, size: int, split: str) -> Part:
    """The part that is one WebDataset shard."""
    return Part(
        path=path, archive=posixpath.basename(path), layout="samples", stop=size, split=split,
        classes=source.classes,
    )  # fmt: skip


def _tar_folder(source: Source) -> Iterator[Part | Fault]:
    for info in store.listing(source.fs, source.raw.path):
        wnid, extension = posixpath.splitext(info.base_name)
        is_file = info.type == pafs.FileType.File
        if is_file and extension == ".tar" and archive.WNID.fullmatch(wnid):
            name = f"{source.name}/{info.base_name}"
            yield Part(path=info.path, archive=name, layout="tar", stop=info.size, wnid=wnid)
        else:
            kind = "file" if is_file else "folder"
            yield archive.not_class_tar(source.name, info.base_name, 0, kind)


def _class_folders(source: Source) -> Iterator[Part | Fault]:
    inside = store.listing(source.fs, source.raw.path)
    if _are_val_images(inside):
        yield from _val_images(source, source.raw.path, inside)
        return
    for info in inside:
        split = archive.SPLITS.get(info.base_name)
        if info.type != pafs.FileType.Directory or not (split or info.base_name == archive.TEST):
            yield _class_folder(source, info, "")
        elif split is None:
            yield Fault(source.name, info.base_name, 0, "a folder of test images is left out")
        else:
            below = store.listing(source.fs, info.path)
            if _are_val_images(below):
                yield from _val_images(source, info.path, below)
            else:
                yield from (_class_folder(source, each, split) for each in below)


def _are_val_images(inside: Sequence[pafs.FileInfo]) -> bool:
    return any(archive.VAL_NAME.fullmatch(info.base_name) for info in inside)


def _val_images(source: Source, path: str, inside: Sequence[pafs.FileInfo]) -> Iterator[Part]:
    """Runs of the ILSVRC2012 validation images that lie side by side in a folder."""
    if not source.labels:
        raise ValueError(f"{path} has images without classes; {NO_LABELS}")
    for start in range(0, len(inside), FOLDER_IMAGES):
        run = [info.base_name for info in inside[start : start + FOLDER_IMAGES]]
        yield Part(
            path=path, archive=source.name + path.removeprefix(source.raw.path), layout="folder",
            start=start, stop=start + len(run), split="val",
            labels={name: source.labels[name] for name in run if name in source.labels},
        )  # fmt: skip


def _class_folder(source: Source, info: pafs.FileInfo, split: str) -> Part | Fault:
    inside, wnid = info.path.removeprefix(source.raw.path).strip("/"), info.base_name
    if info.type != pafs.FileType.Directory:
        return Fault(source.name, inside, 0, "not a folder of a class")
    if not archive.CLASS_NAME.fullmatch(wnid):
        reason = "not the name of a class: only letters, digits, - and _; rename it or move it away"
        return Fault(source.name, inside, 0, reason, damage=not wnid.startswith((".", "_")))
    name = f"{source.name}/{inside}"
    return Part(path=info.path, archive=name, layout="folder", wnid=wnid, split=split)


FOLDERS: dict[Kind, Callable[[Source], Iterator[Part | Fault]]] = {
    "webdataset": _shard_folder,
    "class-tars": _tar_folder,
    "class-folders": _class_folders,
}
"""How each kind of folder is cut into parts."""
