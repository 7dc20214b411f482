"""Recognise sources: the kind of each one, its description, and the parts to read it by."""

import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyarrow import fs as pafs

from shards.build import archive, devkit, gunzip
from shards.build.archive import Fault, Part, RawSource, Source
from shards.build.config import Kind
from shards.dataset import classes, format, store

Parts = Iterator[Part | Fault]


@dataclass(frozen=True)
class Context:
    """What recognising a source needs from the settings and from the other sources."""

    kind: Kind
    classes: tuple[str, ...] | None
    fs: pafs.FileSystem
    """File system of `work`."""
    work: str
    """Folder for laid-out archives."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Classes of the ILSVRC2012 validation images by file name."""


def recognise(locations: Sequence[str], context: Context) -> tuple[Source, ...]:
    """The sources at these locations, in this order; raises ValueError if one is unknown."""
    if not locations:
        raise ValueError("no source given; give an archive, a folder of classes, or shards")
    kinds = [(raw, kind_of(raw, context.kind)) for raw in map(archive.find, locations)]
    for raw, kind in kinds:
        if kind == "devkit":
            context = replace(context, labels={**context.labels, **devkit.labels(raw)})
    sources = tuple(_source(raw, kind, context) for raw, kind in kinds)
    if not any(source.parts for source in sources):
        raise ValueError(
            f"{', '.join(locations)}: a devkit alone has no images; give an archive too"
        )
    return sources


def fingerprint(locations: Sequence[str]) -> str:
    """Text that changes when a source changes, from names, sizes and modification times."""
    return json.dumps([_print_of(archive.find(location)) for location in locations])


def _print_of(raw: RawSource) -> list[object]:
    if raw.info.type != pafs.FileType.Directory:
        return [raw.name, raw.info.size, raw.info.mtime_ns]
    inside = store.listing(raw.fs, raw.path)
    for info in list(inside):
        if info.base_name in archive.SPLITS:
            inside += store.listing(raw.fs, info.path)
    # A new or removed file changes the modification time of its folder.
    return [raw.name, [[info.base_name, info.size, info.mtime_ns] for info in inside]]


def described(source: Source, wnids: set[str]) -> str:
    """Description of a source in one line, given the classes in it."""
    if source.kind == "devkit":
        return f"{source.name}: devkit of ILSVRC2012"
    size = f", {source.bytes / 1e9:,.2f} GB" if source.bytes else ""
    return f"{source.name}: {source.kind}, {classes.described(wnids)}{size}"


def kind_of(raw: RawSource, kind: Kind = "auto") -> Kind:
    """Kind of a source: the one asked for, except that a devkit is always recognised as such."""
    if raw.info.type == pafs.FileType.Directory:
        return kind if kind != "auto" else _folder_kind(raw)
    if raw.is_gzip:
        seen = archive.kind_of_tar(gunzip.GzipStream(raw), gunzip.UNKNOWN, raw.location, kind)
    else:
        with store.RangeReader(raw.fs, raw.path) as reader:
            seen = archive.kind_of_tar(reader, reader.size, raw.location, kind)
    return seen if kind == "auto" or seen == "devkit" else kind


def _folder_kind(raw: RawSource) -> Kind:
    names = [info.base_name for info in store.listing(raw.fs, raw.path)]
    if format.MANIFEST in names:
        return "webdataset"
    stems = [name.removesuffix(".tar") for name in names if name.endswith(".tar")]
    if stems and all(archive.WNID.fullmatch(stem) for stem in stems):
        return "class-tars"
    return "webdataset" if stems else "class-folders"


def _source(raw: RawSource, kind: Kind, context: Context) -> Source:
    items: list[Part | Fault] = []
    if kind != "devkit":
        is_folder = raw.info.type == pafs.FileType.Directory
        items += _FOLDERS[kind](raw, context) if is_folder else _archive(raw, kind, context)
    source = Source(
        name=raw.name,
        kind=kind,
        fs=context.fs if raw.is_gzip else raw.fs,
        bytes=raw.info.size or 0,
        parts=tuple(item for item in items if isinstance(item, Part)),
        faults=tuple(item for item in items if isinstance(item, Fault)),
    )
    if not source.parts and kind != "devkit":
        raise ValueError(f"{raw.location} ({kind}) holds no class; is it the right archive?")
    return source


def _archive(raw: RawSource, kind: Kind, context: Context) -> Parts:
    if kind == "imagenet-val" and not context.labels:
        raise ValueError(
            f"{raw.location} has images without classes; give the devkit "
            "(ILSVRC2012_devkit_t12.tar.gz) as a source as well"
        )
    if raw.is_gzip:
        yield from gunzip.lay_out(raw, kind, context.fs, context.work)
        return
    if kind == "webdataset":
        yield _shard(raw, raw.info, context, "")
        return
    # Headers that lie far apart are read one by one, headers close to each other in blocks.
    far = kind == "class-tars" or store.is_local(raw.fs)
    with store.RangeReader(raw.fs, raw.path, archive.HEADER_READ if far else None) as reader:
        if kind == "class-tars":
            members = archive.members(reader, 0, reader.size, raw.name)
            yield from archive.class_tars(raw, members)
        else:
            labels = context.labels if kind == "imagenet-val" else {}
            yield from archive.flat_tar(raw, reader, labels)


def _shard(raw: RawSource, info: pafs.FileInfo, context: Context, split: str) -> Part:
    if context.classes is None:
        raise ValueError(
            f"{raw.location} holds shards without the names of their classes; run "
            f"`python -m shards index {raw.location}` first, or give --classes"
        )
    return Part(
        path=info.path,
        archive=posixpath.basename(info.path),
        layout="samples",
        stop=info.size,
        split=split,
        classes=context.classes,
    )


def _shard_folder(raw: RawSource, context: Context) -> Parts:
    infos = {info.base_name: info for info in store.listing(raw.fs, raw.path)}
    if format.MANIFEST not in infos:
        for name, info in infos.items():
            if name.endswith(".tar"):
                yield _shard(raw, info, context, archive.split_of(name))
        return
    shard_set = format.open_set(raw.location)
    for split, shards in shard_set.manifest.splits.items():
        for shard in shards:
            yield Part(
                path=shard_set.path(shard),
                archive=shard.name,
                layout="samples",
                stop=shard.bytes,
                split=split,
                classes=shard_set.manifest.classes,
                label=shard_set.manifest.label,
            )


def _tar_folder(raw: RawSource, _: Context) -> Parts:
    for info in store.listing(raw.fs, raw.path):
        wnid, extension = posixpath.splitext(info.base_name)
        is_file = info.type == pafs.FileType.File
        if is_file and extension == ".tar" and archive.WNID.fullmatch(wnid):
            name = f"{raw.name}/{info.base_name}"
            yield Part(path=info.path, archive=name, layout="tar", stop=info.size, wnid=wnid)
        else:
            yield Fault(raw.name, info.base_name, 0, archive.NOT_CLASS_TAR)


def _class_folders(raw: RawSource, _: Context) -> Parts:
    for info in store.listing(raw.fs, raw.path):
        if info.type == pafs.FileType.Directory and info.base_name in archive.SPLITS:
            for inner in store.listing(raw.fs, info.path):
                yield _class_folder(raw, inner, archive.SPLITS[info.base_name])
        else:
            yield _class_folder(raw, info, "")


def _class_folder(raw: RawSource, info: pafs.FileInfo, split: str) -> Part | Fault:
    inside, wnid = info.path.removeprefix(raw.path).strip("/"), info.base_name
    if info.type != pafs.FileType.Directory:
        return Fault(raw.name, inside, 0, "not a folder of a class")
    if not archive.CLASS_NAME.fullmatch(wnid):
        return Fault(raw.name, inside, 0, "not the name of a class")
    name = f"{raw.name}/{inside}"
    return Part(path=info.path, archive=name, layout="folder", wnid=wnid, split=split)


_FOLDERS: dict[Kind, Callable[[RawSource, Context], Parts]] = {
    "webdataset": _shard_folder,
    "class-tars": _tar_folder,
    "class-folders": _class_folders,
}
