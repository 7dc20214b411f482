"""Recognise sources: the kind of each one, what identifies it, and the parts of a folder.

recognise(["fall11_whole.tar", "data/in1k"], context) -> (Source, Source)
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pyarrow import fs as pafs

from shards.build import archive, devkit
from shards.build.archive import NO_LABELS, Part, RawSource, Source
from shards.build.config import Kind
from shards.build.folder import FOLDERS
from shards.dataset import classes, format, store, tar

KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
"""Where Kaggle's copy of ILSVRC2012 has its images, from each of the folders around them."""
FLAT = ("flat-tar", "imagenet-val")
FIRST_LOOK = 8  # members whose names show the kind of an archive
SAMPLES, SAMPLE_BYTES = 64, 1 << 16  # of the content that identifies a file


@dataclass(frozen=True)
class Context:
    """What recognising a source needs from the settings and from the other sources."""

    kind: Kind
    classes: tuple[str, ...] | None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Classes of the ILSVRC2012 validation images by file name."""


def recognise(raws: Sequence[RawSource], context: Context) -> tuple[Source, ...]:
    """The sources in this order; raises ValueError if one is unknown."""
    if not raws:
        raise ValueError("no source given; give an archive, a folder of classes, or shards")
    kinds = [kind_of(raw, context.kind) for raw in raws]
    labels: dict[str, str] = {}
    for raw, kind in zip(raws, kinds, strict=True):
        if raw.labels_file:
            labels |= devkit.kaggle_labels(raw.labels_file)
        if kind == "devkit":
            read = devkit.kaggle_labels if devkit.is_kaggle_labels(raw.name) else devkit.labels
            labels |= read(raw)
    context = replace(context, labels=labels)
    sources = tuple(_source(*pair, context) for pair in zip(raws, kinds, strict=True))
    if all(kind == "devkit" for kind in kinds):
        raise ValueError(
            f"{', '.join(raw.location for raw in raws)}: a devkit alone has no images; give an "
            "archive too"
        )
    return sources


def find(location: str) -> RawSource:
    """Look up a source; raises FileNotFoundError if nothing exists at `location`."""
    system, path = store.locate(location)
    info = system.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(
            f"no source at {location}; give an archive, a folder of classes or a folder of shards"
        )
    if info.type == pafs.FileType.Directory:
        inside = system.get_file_info([f"{path}/{name}" for name in KAGGLE])
        images = next((one.path for one in inside if one.type == info.type), path)
        labels = system.get_file_info(f"{path}/{devkit.KAGGLE}")
        found = None
        if images != path and labels.type == pafs.FileType.File:
            found = RawSource(labels.path, system, labels.path, labels.size, is_folder=False)
        return RawSource(location, system, images, 0, is_folder=True, labels_file=found)
    if not info.size:
        raise ValueError(f"source {location} is an empty file; was its download cut short?")
    with system.open_input_file(path) as file:
        magic = store.range_of(system, file, path)(0, min(4, info.size))
    if magic == b"PK\3\4":
        raise ValueError(
            f"{location} is a zip file; unpack it (unzip -q {path} -d DIR) and give the folder"
        )
    return RawSource(location, system, path, info.size, is_folder=False, magic=magic)


def fingerprint(raws: Sequence[RawSource]) -> str:
    """Text that changes when a source changes: names, sizes, and samples of the content of files.

    It does not depend on where a source lies and when it was copied there.
    """
    return json.dumps([[raw.name, *_identity(raw)] for raw in raws])


def _identity(raw: RawSource) -> Iterator[object]:
    hashed = hashlib.sha256()
    if raw.labels_file:
        yield from _identity(raw.labels_file)
    if raw.is_folder and store.exists(raw.fs, f"{raw.path}/{format.MANIFEST}"):
        hashed.update(store.read_bytes(raw.fs, f"{raw.path}/{format.MANIFEST}"))
    elif raw.is_folder:
        # folder by folder, because a listing of all images of a set would fill the memory
        pending = [raw.path]
        while pending:
            for info in store.listing(raw.fs, pending.pop()):
                hashed.update(f"{info.path.removeprefix(raw.path)}\0{info.size}\n".encode())
                if info.type == pafs.FileType.Directory:
                    pending.append(info.path)
    else:
        yield raw.size
        last = max(0, raw.size - SAMPLE_BYTES)
        with raw.fs.open_input_file(raw.path) as file:
            read = store.range_of(raw.fs, file, raw.path)
            for offset in np.linspace(0, last, SAMPLES).astype(int).tolist():
                size = min(SAMPLE_BYTES, raw.size - offset)
                hashed.update(read(offset, size))
    yield hashed.hexdigest()


def described(source: Source, wnids: set[str]) -> str:
    """Description of a source in one line, given the classes in it."""
    if source.kind == "devkit":
        return f"{source.name}: labels of the ILSVRC2012 validation images"
    size = f", {source.bytes / 1e9:,.2f} GB" if source.bytes else ""
    labels = f", val labels of {devkit.KAGGLE} in it" if source.raw.labels_file else ""
    return f"{source.name}: {source.kind}, {classes.described(wnids)}{size}{labels}"


def kind_of(raw: RawSource, kind: Kind = "auto") -> Kind:
    """Kind of a source: the one asked for, except that a devkit is always recognised as such.

    Raises ValueError if the one asked for would find no image in it.
    """
    if raw.is_folder:
        seen, known = _folder_kind(raw), list(FOLDERS)
        fits = seen != "class-folders" or kind == seen  # no tar is in it
    elif devkit.is_kaggle_labels(raw.name):
        return "devkit"
    else:
        known = ["class-tars", *FLAT, "webdataset", "devkit"]
        names = itertools.islice(_names(raw), FIRST_LOOK)
        seen = _archive_kind(raw, names, kind if kind in known else "auto")
        fits = (seen == "class-tars") == (kind == "class-tars")
    if kind == "auto" or seen == "devkit":
        return seen
    if kind not in known or not fits:
        what = f"a {'folder' if raw.is_folder else 'file'} of the kind {seen}"
        raise ValueError(
            f"source_kind ({kind}) does not fit {raw.location}, {what}; leave --source-kind out"
        )
    return kind


def _names(raw: RawSource) -> Iterator[str]:
    """Names of the files of an archive, without hidden ones."""
    with Source(raw=raw, kind="auto").open() as reader:
        for member in tar.walk(reader, 0, reader.size, raw.location, archive.ignore_damage):
            if member.kind == "file" and not member.name.rpartition("/")[2].startswith("."):
                yield member.name


def _archive_kind(raw: RawSource, first: Iterable[str], fallback: Kind) -> Kind:
    """Kind of a tar by its first names, or `fallback`; ValueError if that is "auto"."""
    names = []
    for name in first:  # the next one of a gzip archive may be gigabytes further on
        names.append(name)
        base = name.rpartition("/")[2]
        if base in (devkit.TRUTH, devkit.META):
            return "devkit"
        if base.endswith((".tar", ".tar.gz")):
            return "class-tars"
        if base.endswith((".cls", ".json")):
            return "webdataset"
    if any(archive.is_val_image(name) for name in names):
        return "imagenet-val"
    if any(archive.IMAGE_NAME.search(name) or archive.is_kaggle(name) for name in names):
        return "flat-tar"
    if fallback != "auto":
        return fallback
    raise ValueError(
        f"{raw.location} is not recognised: its first members are {names[:3]}; known are a "
        "tar of class tars, a tar of class folders, ILSVRC2012_img_val.tar, the ILSVRC2012 devkit "
        "and WebDataset shards; --source-kind overrides"
    )


def _folder_kind(raw: RawSource) -> Kind:
    if store.exists(raw.fs, f"{raw.path}/{format.MANIFEST}"):
        return "webdataset"
    stems = [name.removesuffix(".tar") for name in format.tar_names(raw.fs, raw.path)]
    if any(archive.WNID.fullmatch(stem) for stem in stems):
        return "class-tars"
    return "webdataset" if stems else "class-folders"


def _source(raw: RawSource, kind: Kind, context: Context) -> Source:
    """The recognised source; what would stop its reading later stops here."""
    first = next(_names(raw), "") if kind == "flat-tar" else ""
    if not context.labels and (kind == "imagenet-val" or archive.is_kaggle(first)):
        raise ValueError(f"{raw.location} has images without classes; {NO_LABELS}")
    if kind == "webdataset":
        if raw.is_gzip:
            raise ValueError(f"{raw.location} is a compressed shard; gunzip it first")
        manifest = raw.is_folder and store.exists(raw.fs, f"{raw.path}/{format.MANIFEST}")
        if not manifest and context.classes is None:
            raise ValueError(
                f"{raw.location} holds shards without the names of their classes; run "
                f"`python -m shards index {raw.location}` first, or give --classes"
            )
    source = Source(raw=raw, kind=kind, labels=context.labels, classes=context.classes)
    return replace(source, has_val=_has_val(source, first))


def _has_val(source: Source, first: str) -> bool:
    """Whether there are known to be val images: by the kind, the folders, or the first member."""
    if source.raw.is_folder:
        parts = FOLDERS[source.kind](source)
        return any(isinstance(part, Part) and part.split == "val" for part in parts)
    if source.kind == "webdataset":
        return archive.split_of(source.name) == "val"
    if source.kind != "flat-tar":
        return source.kind == "imagenet-val"
    if "imagenet21k_" in first or archive.is_kaggle(first):
        return True  # these have val after all of train
    return archive.class_of_path(first)[1] == "val"
