"""Sources as they are distributed, recognised and cut into parts that can be read alone.

    recognise(["fall11_whole.tar"], ...) -> [Source(kind="class-tars", parts=(Part, ...))]

A part is the byte range of one inner tar, a run of members of a flat tar, a folder of one class, or
one WebDataset shard. To take another kind, yield its parts from a function here.
"""

import re
from collections.abc import Mapping
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
"""Folder names that say which split their classes belong to."""
WNID = re.compile(r"[a-z]\d{8}")
SPLIT_NAME = re.compile(r"(?:^|[-_/])(train|val)(?:id|idation)?(?:[-_.0-9/]|$)")
IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp)$", re.IGNORECASE)


@dataclass(frozen=True)
class Fault:
    """Something in a source that gives no image, and why."""

    archive: str
    member: str
    offset: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a source that one task reads."""

    path: str
    """File (or folder) inside the source's file system."""
    archive: str
    """The name that reports use for it."""
    layout: Literal["tar", "folder", "samples"]
    start: int = 0
    stop: int = 0
    wnid: str = ""
    """Class of all its images; empty where labels or paths say it."""
    split: str = ""
    """"train", "val" or "small"; empty where paths say it or the split is to be drawn."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Classes by member name, where a list apart says them."""
    classes: tuple[str, ...] = ()
    """Class names by number, of WebDataset shards."""
    label: str = "cls"
    """Where WebDataset shards keep their labels."""
    has_val: bool = False
    """Whether paths in it say that it holds images of the val split."""
    has_end: bool = True
    """Whether the range should end with an end-of-archive marker."""

    @property
    def bytes(self) -> int:
        """Bytes to read; a guess for folders."""
        return self.stop - self.start if self.stop else PART_BYTES // 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recognised source."""

    location: str
    kind: Kind
    fs: pafs.FileSystem
    path: str
    bytes: int
    modified_ns: int
    parts: tuple[Part, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def name(self) -> str:
        """Base name, which reports use."""
        return self.path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class RawSource:
    """A source before its parts are known: what it is and where."""

    location: str
    fs: pafs.FileSystem
    path: str
    info: pafs.FileInfo
    is_gzip: bool = False

    @property
    def name(self) -> str:
        """Base name, which reports use."""
        return self.path.rstrip("/").rpartition("/")[2]


def find(location: str) -> RawSource:
    """Look at a source; FileNotFoundError where there is none."""
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
    """Split that the name of a shard says, "" where it says none."""
    match = SPLIT_NAME.search(name.lower())
    return match.group(1) if match else ""


def kind_of_tar(read: tar.Read, stop: int, where: str, given: Kind = "auto") -> Kind:
    """What a tar holds, by its first members; `given` where they do not say."""
    seen: list[str] = []
    for member in tar.walk(read, 0, stop, where, damage=lambda *_: None):
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
    if given != "auto":
        return given
    raise ValueError(
        f"{where} is not recognised: its first members are {seen[:3]}; known are a tar of class "
        "tars, a tar of class folders, ILSVRC2012_img_val.tar, the ILSVRC2012 devkit and "
        "WebDataset shards; --source-kind overrides"
    )


def class_tars(found: RawSource, reader: store.RangeReader) -> tuple[list[Part], list[Fault]]:
    """Parts of a tar of one tar per class: the inner tars where they lie."""
    parts, faults, last = [], [], 0

    def damage(offset: int, reason: str) -> None:
        faults.append(Fault(found.name, "", offset, reason))

    for member in tar.walk(reader, 0, reader.size, found.name, damage):
        wnid, last = inner_class(member), member.stop
        if wnid:
            parts.append(
                Part(
                    path=found.path,
                    archive=f"{found.name}/{member.name}",
                    layout="tar",
                    start=member.offset,
                    stop=member.offset + member.size,
                    wnid=wnid,
                )
            )
        elif member.kind != "folder":
            faults.append(Fault(found.name, member.name, member.offset, not_class_tar(member)))
    if not ends(reader, last, reader.size):
        damage(reader.size, NO_END)
    return parts, faults


NO_END = "no end-of-archive marker: the archive may be cut short"


def ends(read: tar.Read, last: int, stop: int) -> bool:
    """Whether an end-of-archive marker stands after the last member, which ends at byte last.

    The last bytes alone do not tell: an inner tar ends with a marker of its own.
    """
    marker = read(last, min(len(tar.END), max(stop - last, 0)))
    return len(marker) > 0 and not any(marker)


def inner_class(member: tar.Member) -> str:
    """Class that an inner tar is named after, "" where it is none."""
    base = member.name.rpartition("/")[2]
    stem = base.removesuffix(".tar")
    is_tar = member.kind == "file" and stem != base and CLASS_NAME.fullmatch(stem)
    return stem if is_tar else ""


def not_class_tar(member: tar.Member) -> str:
    """Why a member of a tar of class tars is left out."""
    if member.kind != "file":
        return f"a {member.kind}, not a class tar"
    return "not a class tar (CLASS.tar)"


def flat_tar(
    found: RawSource, reader: store.RangeReader, labels: Mapping[str, str]
) -> tuple[list[Part], list[Fault]]:
    """Parts of a tar of images: runs of members, cut where they begin."""
    parts: list[Part] = []
    start, names = 0, []
    split = "val" if labels else ""
    # Damage is reported by the task that reads the part.
    for member in tar.walk(reader, 0, reader.size, found.name, lambda *_: None):
        if member.start - start >= PART_BYTES:
            parts.append(_run(found, start, member.start, names, labels, split))
            start, names = member.start, []
        names.append(member.name)
    parts.append(_run(found, start, reader.size, names, labels, split, has_end=True))
    return parts, []


def _run(
    found: RawSource,
    start: int,
    stop: int,
    names: list[str],
    labels: Mapping[str, str],
    split: str,
    has_end: bool = False,
) -> Part:
    bases = (name.rpartition("/")[2] for name in names)
    own = {base: labels[base] for base in bases if base in labels}
    return Part(
        path=found.path,
        archive=found.name,
        layout="tar",
        start=start,
        stop=stop,
        split=split,
        labels=own,
        has_val=any(class_of_path(name)[1] == "val" for name in names),
        has_end=has_end,
    )


def class_of_path(name: str) -> tuple[str, str]:
    """Class and split that the folders of a member name say: "a/train/n01440764/1.JPEG"."""
    folders = name.split("/")[:-1]
    wnid = folders[-1] if folders else ""
    split = SPLITS.get(folders[-2], "") if len(folders) > 1 else ""
    return (wnid if CLASS_NAME.fullmatch(wnid) else ""), split
