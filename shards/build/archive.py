"""The kinds of sources, how to recognise them, and how to cut archives into parts.

    find("fall11_whole.tar") -> RawSource -> class_tars(...) -> Part, Part, ...

A part is the byte range of one inner tar, a run of members of a flat tar, the folder of one class,
or one WebDataset shard; each can be read alone. To support another kind of archive, add a function
here that yields its parts.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pyarrow import fs as pafs

from shards.build.config import Kind
from shards.dataset import store, tar

PART_BYTES = 128 << 20
HEADER_READ = 4096
CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
SPLITS = {
    "train": "train",
    "val": "val",
    "imagenet21k_train": "train",
    "imagenet21k_val": "val",
    "imagenet21k_small_classes": "small",
}
"""Names of folders of classes, and the split that each one holds."""
WNID = re.compile(r"[a-z]\d{8}")
SPLIT_NAME = re.compile(r"(?:^|[-_/])(train|val)(?:id|idation)?(?:[-_.0-9/]|$)")
IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp)$", re.IGNORECASE)
NOT_CLASS_TAR = "not a class tar (CLASS.tar)"
NO_END = "no end-of-archive marker: the archive may be cut short"


@dataclass(frozen=True)
class Fault:
    """Something in a source that yields no image, and the reason."""

    archive: str
    member: str
    offset: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """The piece of a source that one task reads."""

    path: str
    """File (or folder) inside the source's file system."""
    archive: str
    """Its name in reports."""
    layout: Literal["tar", "folder", "samples"]
    start: int = 0
    stop: int = 0
    wnid: str = ""
    """Class of all its images; empty if labels or member paths give it."""
    split: str = ""
    """"train", "val" or "small"; empty if member paths give it or the split is to be drawn."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Classes by member name, if a separate list (the devkit) gives them."""
    classes: tuple[str, ...] = ()
    """Class names by class number, for WebDataset shards."""
    label: str = "cls"
    """Where the samples of a WebDataset shard keep their labels."""
    has_val: bool = False
    """Whether member paths place some of its images in the val split."""
    has_end: bool = True
    """Whether the range should end with an end-of-archive marker."""

    @property
    def bytes(self) -> int:
        """Bytes to read; an estimate for folders."""
        return self.stop - self.start if self.stop else PART_BYTES // 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recognised source."""

    name: str
    kind: Kind
    fs: pafs.FileSystem
    bytes: int
    parts: tuple[Part, ...]
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class RawSource:
    """A source before its parts are known."""

    location: str
    fs: pafs.FileSystem
    path: str
    info: pafs.FileInfo
    is_gzip: bool = False

    @property
    def name(self) -> str:
        """Base name, used in reports."""
        return self.path.rstrip("/").rpartition("/")[2]


def find(location: str) -> RawSource:
    """Look up a source; raises FileNotFoundError if nothing exists at `location`."""
    system, path = store.locate(location)
    info = system.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(
            f"no source at {location}; give an archive, a folder of classes or a folder of shards"
        )
    if info.type == pafs.FileType.Directory:
        return RawSource(location, system, path, info)
    if not info.size:
        raise ValueError(f"source {location} is an empty file; was its download cut short?")
    with system.open_input_file(path) as file:
        magic = store.read_range(file, path, 0, min(2, info.size))
    return RawSource(location, system, path, info, magic == b"\x1f\x8b")


def split_of(name: str) -> str:
    """Split in the name of a shard, "" if there is none."""
    match = SPLIT_NAME.search(name.lower())
    return match.group(1) if match else ""


def kind_of_tar(read: tar.Read, stop: int, where: str, fallback: Kind = "auto") -> Kind:
    """Kind of a tar by its first members.

    If they do not show it, `fallback` is returned; ValueError if that is "auto".
    """
    seen: list[str] = []
    for member in tar.walk(read, 0, stop, where, ignore_damage):
        base = member.name.rpartition("/")[2]
        if member.kind != "file" or base.startswith("."):
            continue
        if base.endswith("ILSVRC2012_validation_ground_truth.txt") or base == "meta.mat":
            return "devkit"
        if base.endswith((".tar", ".tar.gz")):
            return "class-tars"
        if VAL_NAME.fullmatch(base):
            return "imagenet-val"
        if base.endswith(".cls"):
            return "webdataset"
        seen.append(member.name)
        if len(seen) == 8:
            break
    if any(name.endswith(".json") for name in seen):
        return "webdataset"
    if any(IMAGE_NAME.search(name) for name in seen):
        return "flat-tar"
    if fallback != "auto":
        return fallback
    raise ValueError(
        f"{where} is not recognised: its first members are {seen[:3]}; known are a tar of class "
        "tars, a tar of class folders, ILSVRC2012_img_val.tar, the ILSVRC2012 devkit and "
        "WebDataset shards; --source-kind overrides"
    )


def ignore_damage(offset: int, reason: str) -> None:
    """Ignore a damaged place in a first look; the task that reads the part reports it."""


def members(
    read: tar.Read, start: int, stop: int, archive: str, has_end: bool = True
) -> Iterator[tar.Member | Fault]:
    """Members in bytes [start, stop) of a tar, with a Fault for each damaged place.

    With `has_end`, a missing end-of-archive marker is a Fault as well.
    """
    faults: list[Fault] = []

    def damage(offset: int, reason: str) -> None:
        faults.append(Fault(archive, "", offset, reason))

    last = start
    for member in tar.walk(read, start, stop, archive, damage):
        yield from faults
        faults.clear()
        last = member.stop
        yield member
    if has_end and not ends(read, last, stop):
        damage(stop, NO_END)
    yield from faults


def ends(read: tar.Read, last: int, stop: int) -> bool:
    """Whether an end-of-archive marker follows the last member, which ends at byte `last`.

    The last bytes of the file do not show this: they may be the marker of an inner tar.
    """
    marker = read(last, min(len(tar.END), max(stop - last, 0)))
    return len(marker) > 0 and not any(marker)


def inner_class(member: tar.Member) -> str:
    """Class that an inner tar is named after, "" if the member is not a class tar."""
    base = member.name.rpartition("/")[2]
    stem = base.removesuffix(".tar")
    is_tar = member.kind == "file" and stem != base and CLASS_NAME.fullmatch(stem)
    return stem if is_tar else ""


def class_tars(raw: RawSource, outer: Iterable[tar.Member | Fault]) -> Iterator[Part | Fault]:
    """Parts of a tar of one tar per class: the byte ranges of the inner tars."""
    for member in outer:
        if isinstance(member, Fault):
            yield member
        elif wnid := inner_class(member):
            name = f"{raw.name}/{member.name}"
            start, stop = member.offset, member.offset + member.size
            yield Part(path=raw.path, archive=name, layout="tar", start=start, stop=stop, wnid=wnid)
        elif member.kind != "folder":
            reason = NOT_CLASS_TAR if member.kind == "file" else f"a {member.kind}, not a class tar"
            yield Fault(raw.name, member.name, member.offset, reason)


def flat_tar(
    raw: RawSource, reader: store.RangeReader, labels: Mapping[str, str]
) -> Iterator[Part]:
    """Parts of a tar of images: runs of members, cut between two members."""
    start, names = 0, []
    for member in tar.walk(reader, 0, reader.size, raw.name, ignore_damage):
        if member.start - start >= PART_BYTES:
            yield _run(raw, start, member.start, names, labels, last=False)
            start, names = member.start, []
        names.append(member.name)
    yield _run(raw, start, reader.size, names, labels, last=True)


def _run(
    raw: RawSource, start: int, stop: int, names: list[str], labels: Mapping[str, str], last: bool
) -> Part:
    base_names = (name.rpartition("/")[2] for name in names)
    return Part(
        path=raw.path,
        archive=raw.name,
        layout="tar",
        start=start,
        stop=stop,
        split="val" if labels else "",
        labels={name: labels[name] for name in base_names if name in labels},
        has_val=any(class_of_path(name)[1] == "val" for name in names),
        has_end=last,
    )


def class_of_path(name: str) -> tuple[str, str]:
    """Class and split in a member name such as "a/train/n01440764/1.JPEG", each "" if absent."""
    folders = name.split("/")[:-1]
    wnid = folders[-1] if folders else ""
    split = SPLITS.get(folders[-2], "") if len(folders) > 1 else ""
    return (wnid if CLASS_NAME.fullmatch(wnid) else ""), split
