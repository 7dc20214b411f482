"""Recognise sources: what each one is, said in words, and the parts that it is read by."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyarrow import fs as pafs

from shards import archive, store
from shards.archive import Fault, Found, Kind, Part, Source


def recognise(locations: Sequence[str | Path], kind: Kind = "auto") -> tuple[Source, ...]:
    """The sources at these locations, in the order given; ValueError where one is unknown."""
    if not locations:
        raise ValueError("no source given; give an archive, a folder of classes, or shards")
    labels: Mapping[str, str] = {}
    return tuple(_source(archive.find(str(location)), kind, labels) for location in locations)


def _source(found: Found, kind: Kind, labels: Mapping[str, str]) -> Source:
    faults: list[Fault] = []
    if found.info.type == pafs.FileType.Directory:
        kind, parts, faults = _folder(found, kind)
    else:
        with store.Reader(found.fs, found.path) as reader:
            if kind == "auto":
                kind = archive.kind_of_tar(reader, reader.size, found.location)
            if kind == "class-tars":
                parts, faults = archive.class_tars(found, reader)
            else:
                parts, faults = archive.flat_tar(found, reader, labels)
    if not parts:
        raise ValueError(f"{found.location} ({kind}) holds no class; is it the right archive?")
    return Source(
        location=found.location,
        kind=kind,
        fs=found.fs,
        path=found.path,
        bytes=found.info.size or 0,
        modified_ns=found.info.mtime_ns or 0,
        parts=tuple(parts),
        faults=tuple(faults),
    )


def _folder(found: Found, kind: Kind) -> tuple[Kind, list[Part], list[Fault]]:
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
    found: Found, info: pafs.FileInfo, split: str, parts: list[Part], faults: list[Fault]
) -> None:
    inside = info.path.removeprefix(found.path).strip("/")
    name = f"{found.name}/{inside}"
    if info.type != pafs.FileType.Directory:
        faults.append(Fault(found.name, inside, 0, "not a folder of a class"))
    elif not archive.CLASS_NAME.fullmatch(info.base_name):
        faults.append(Fault(found.name, inside, 0, "not the name of a class"))
    else:
        parts.append(
            Part(path=info.path, archive=name, layout="folder", wnid=info.base_name, split=split)
        )
