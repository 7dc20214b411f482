"""Recognise sources: what each one is, said in words, and the parts that it is read by."""

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from shards.build import archive, devkit, gunzip
from shards.build.archive import Fault, Part, RawSource, Source
from shards.build.config import Kind
from shards.dataset import classes, format, store

Parts = tuple[Kind, list[Part], list[Fault]]


@dataclass(frozen=True)
class Context:
    """What recognising one source takes from the others and from the settings."""

    kind: Kind
    classes: tuple[str, ...] | None
    fs: pafs.FileSystem
    work: str
    """Folder for laid-out archives."""
    labels: Mapping[str, str]


def recognise(locations: Sequence[str], context: Context) -> tuple[Source, ...]:
    """The sources at these locations, in the order given; ValueError where one is unknown."""
    if not locations:
        raise ValueError("no source given; give an archive, a folder of classes, or shards")
    found = [archive.find(location) for location in locations]
    kinds = {one.location: _kind(one, context.kind) for one in found}
    labels: dict[str, str] = {}
    for one in found:
        if kinds[one.location] == "devkit":
            labels |= devkit.labels(one)
    context = Context(context.kind, context.classes, context.fs, context.work, labels)
    sources = [_source(one, kinds[one.location], context) for one in found]
    if not any(source.parts for source in sources):
        raise ValueError(
            f"{', '.join(locations)}: a devkit alone has no images; give an archive too"
        )
    return tuple(sources)


def fingerprint(locations: Sequence[str]) -> str:
    """Text that changes when a source does, from names, sizes and times alone."""
    return json.dumps([_print_of(archive.find(location)) for location in locations])


def _print_of(found: RawSource) -> list[object]:
    own = [found.name, found.info.size, found.info.mtime_ns]
    if found.info.type != pafs.FileType.Directory:
        return own
    inside = store.listing(found.fs, found.path)
    for info in list(inside):
        if info.base_name in archive.SPLITS:
            inside += store.listing(found.fs, info.path)
    # A file that comes or goes changes the time of its folder.
    return [found.name, [[info.base_name, info.size, info.mtime_ns] for info in inside]]


def described(source: Source, wnids: set[str]) -> str:
    """What a source is, in words, given the classes found in it."""
    if source.kind == "devkit":
        return f"{source.name}: devkit of ILSVRC2012"
    size = f", {source.bytes / 1e9:,.2f} GB" if source.bytes else ""
    return f"{source.name}: {source.kind}, {classes.described(wnids)}{size}"


def is_devkit(found: RawSource) -> bool:
    """Whether an archive is the ILSVRC2012 devkit."""
    return _kind(found, "auto") == "devkit"


def _kind(found: RawSource, kind: Kind) -> Kind:
    """What a source is; a devkit is told from others whatever --source-kind says."""
    if found.info.type == pafs.FileType.Directory:
        return kind if kind != "auto" else _folder_kind(found)
    if found.is_gzip:
        seen = archive.kind_of_tar(gunzip.GzipStream(found), gunzip.UNKNOWN, found.location, kind)
    else:
        with store.RangeReader(found.fs, found.path) as reader:
            seen = archive.kind_of_tar(reader, reader.size, found.location, kind)
    return seen if kind == "auto" or seen == "devkit" else kind


def _folder_kind(found: RawSource) -> Kind:
    inside = store.listing(found.fs, found.path)
    names = [info.base_name for info in inside]
    tars = [info for info in inside if info.base_name.endswith(".tar")]
    if format.MANIFEST in names:
        return "webdataset"
    if tars and all(archive.WNID.fullmatch(info.base_name[: -len(".tar")]) for info in tars):
        return "class-tars"
    return "webdataset" if tars else "class-folders"


def _source(found: RawSource, kind: Kind, context: Context) -> Source:
    if kind == "devkit":
        parts, faults = [], []
    elif found.info.type == pafs.FileType.Directory:
        kind, parts, faults = _FOLDERS[kind](found, context)
    else:
        parts, faults = _file(found, kind, context)
    if not parts and kind != "devkit":
        raise ValueError(f"{found.location} ({kind}) holds no class; is it the right archive?")
    return Source(
        location=found.location,
        kind=kind,
        fs=context.fs if found.is_gzip else found.fs,
        path=found.path,
        bytes=found.info.size or 0,
        modified_ns=found.info.mtime_ns or 0,
        parts=tuple(parts),
        faults=tuple(faults),
    )


def _file(found: RawSource, kind: Kind, context: Context) -> tuple[list[Part], list[Fault]]:
    if kind == "imagenet-val" and not context.labels:
        raise ValueError(
            f"{found.location} has images without classes; give the devkit "
            "(ILSVRC2012_devkit_t12.tar.gz) as a source as well"
        )
    if found.is_gzip:
        return gunzip.lay_out(found, kind, context.fs, context.work)
    if kind == "webdataset":
        return [_shard(found, found.info, context, "")], []
    # Headers that lie far apart are read alone, headers close to each other in blocks.
    far = kind == "class-tars" or store.is_local(found.fs)
    with store.RangeReader(found.fs, found.path, archive.HEADER_READ if far else None) as reader:
        if kind == "class-tars":
            return archive.class_tars(found, reader)
        labels = context.labels if kind == "imagenet-val" else {}
        return archive.flat_tar(found, reader, labels)


def _shard(found: RawSource, info: pafs.FileInfo, context: Context, split: str) -> Part:
    if context.classes is None:
        raise ValueError(
            f"{found.location} holds shards whose class numbers nobody explains; run "
            f"`python -m shards index {found.location}` first, or give --classes"
        )
    return Part(
        path=info.path,
        archive=posixpath.basename(info.path),
        layout="samples",
        stop=info.size,
        split=split,
        classes=context.classes,
    )


def _shard_folder(found: RawSource, context: Context) -> Parts:
    infos = {info.base_name: info for info in store.listing(found.fs, found.path)}
    if format.MANIFEST not in infos:
        tars = [info for name, info in infos.items() if name.endswith(".tar")]
        parts = [_shard(found, i, context, archive.split_of(i.base_name)) for i in tars]
        return "webdataset", parts, []
    given = format.open_set(found.location)
    parts = [
        Part(
            path=given.path(shard),
            archive=shard.name,
            layout="samples",
            stop=shard.bytes,
            split=split,
            classes=given.manifest.classes,
            label=given.manifest.label,
        )
        for split, shards in given.manifest.splits.items()
        for shard in shards
    ]
    return "webdataset", parts, []


def _tar_folder(found: RawSource, context: Context) -> Parts:
    parts, faults = [], []
    for info in store.listing(found.fs, found.path):
        wnid = info.base_name.removesuffix(".tar")
        if (
            archive.WNID.fullmatch(wnid)
            and info.type == pafs.FileType.File
            and wnid != info.base_name
        ):
            parts.append(
                Part(
                    path=info.path,
                    archive=f"{found.name}/{info.base_name}",
                    layout="tar",
                    stop=info.size,
                    wnid=wnid,
                )
            )
        else:
            faults.append(Fault(found.name, info.base_name, 0, "not a class tar (CLASS.tar)"))
    return "class-tars", parts, faults


def _class_folders(found: RawSource, context: Context) -> Parts:
    parts: list[Part] = []
    faults: list[Fault] = []
    for info in store.listing(found.fs, found.path):
        if info.type == pafs.FileType.Directory and info.base_name in archive.SPLITS:
            split = archive.SPLITS[info.base_name]
            for inner in store.listing(found.fs, info.path):
                _class_folder(found, inner, split, parts, faults)
        else:
            _class_folder(found, info, "", parts, faults)
    return "class-folders", parts, faults


def _class_folder(
    found: RawSource, info: pafs.FileInfo, split: str, parts: list[Part], faults: list[Fault]
) -> None:
    inside = info.path.removeprefix(found.path).strip("/")
    if info.type != pafs.FileType.Directory:
        faults.append(Fault(found.name, inside, 0, "not a folder of a class"))
    elif not archive.CLASS_NAME.fullmatch(info.base_name):
        faults.append(Fault(found.name, inside, 0, "not the name of a class"))
    else:
        name = f"{found.name}/{inside}"
        wnid = info.base_name
        parts.append(Part(path=info.path, archive=name, layout="folder", wnid=wnid, split=split))


_FOLDERS: dict[Kind, Callable[[RawSource, Context], Parts]] = {
    "webdataset": _shard_folder,
    "class-tars": _tar_folder,
    "class-folders": _class_folders,
}
