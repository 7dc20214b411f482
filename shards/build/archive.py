"""How archives are cut into parts that can be read alone.

    class_tars(name, members) -> Part, Part, Fault, ...      flat_tar(...) -> Part, Part, ...

A part is the byte range of one inner tar, a run of members of a flat tar, the folder of one class,
a run of files of a folder, or one WebDataset shard. To support another kind of archive, add a
function here that yields its parts.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyarrow import fs as pafs

from shards.build.config import Kind
from shards.build.gzip_reader import BEGIN, GzipReader, Point
from shards.dataset import store, tar

PART_BYTES = 16 << 20
FOLDER_BYTES = 1 << 27  # of the images of one class, about as in ImageNet-1k
CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
SPLITS = {
    "train": "train",
    "val": "val",
    "validation": "val",
    "imagenet21k_train": "train",
    "imagenet21k_val": "val",
    "imagenet21k_small_classes": "small",
}
"""Names of folders of classes, and the split that each one holds."""
TEST = "test"
"""A folder of images without labels, beside `train` and `val`."""
NO_LABELS = (
    "give the devkit (ILSVRC2012_devkit_t12.tar.gz) or LOC_val_solution.csv of Kaggle as a source"
)
WNID = re.compile(r"[a-z]\d{8}")
SPLIT_NAME = re.compile(r"(?:^|[-_/])(train|val)(?:id|idation)?(?:[-_.0-9/]|$)")
IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp)$", re.IGNORECASE)
MOST_ZEROS = len(tar.END) + 20 * tar.BLOCK
"""At the end of a tar: the marker, and what fills the last record of 20 blocks."""


@dataclass(frozen=True)
class RawSource:
    """A source before it is recognised."""

    location: str
    fs: pafs.FileSystem
    path: str
    size: int
    """Bytes; 0 for a folder."""
    is_folder: bool
    magic: bytes = b""
    """The first bytes of a file."""
    labels_file: "RawSource | None" = None
    """The labels of its validation images, in a folder that was unpacked from Kaggle's zip."""

    @property
    def name(self) -> str:
        """Base name, used in reports."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def is_gzip(self) -> bool:
        """Whether it is compressed by gzip."""
        return self.magic.startswith(b"\x1f\x8b")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recognised source; its labels and classes are those that its parts need."""

    raw: RawSource
    kind: Kind
    has_val: bool = False
    """Whether some of its images are known to be in a val split."""
    labels: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Base name, used in reports."""
        return self.raw.name

    @property
    def fs(self) -> pafs.FileSystem:
        """The file system of its files."""
        return self.raw.fs

    @property
    def bytes(self) -> int:
        """Size of an archive, 0 for a folder."""
        return self.raw.size

    def open(
        self, points: Sequence[Point] = (), path: str = "", block: int | None = None
    ) -> store.RangeReader | GzipReader:
        """A reader of the content of the archive, or of a file of the folder."""
        if self.raw.is_gzip:
            return GzipReader(self.fs, self.raw.path, points or (BEGIN,))
        is_folder = self.raw.is_folder  # an archive may have moved since its path was noted
        return store.RangeReader(self.fs, path if is_folder else self.raw.path, block)


@dataclass(frozen=True)
class Fault:
    """Something in a source that yields no image, and the reason."""

    archive: str
    member: str
    offset: int
    reason: str
    damage: bool = False
    """Whether images may be missing without a name, so that the whole source is in doubt."""


def located(archive: str, member: str, offset: int, reason: str) -> str:
    """A fault in words: the archive, the member or the byte, and what is wrong there."""
    return f"{archive}: {member or f'byte {offset:,}'}: {reason}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """The piece of a source that is read in one go."""

    path: str = ""
    """File or folder inside the source's file system; empty for the archive that is the source."""
    archive: str
    """Its name in reports."""
    layout: Literal["tar", "folder", "samples"]
    start: int = 0
    """First byte of an archive, or with `stop` the first file of a folder."""
    stop: int = 0
    wnid: str = ""
    """Class of all its images; empty if labels or member paths give it."""
    split: str = ""
    """"train", "val" or "small"; empty if member paths give it or the split is to be drawn."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Classes of validation images by file name, if a separate list gives them."""
    classes: tuple[str, ...] = ()
    """Class names by class number, for WebDataset shards."""
    label: str = "cls"
    """Where the samples of a WebDataset shard keep their labels."""
    sha256: str = ""
    """Of a WebDataset shard, if a manifest has it."""
    has_end: bool = True
    """Whether the range should end with an end-of-archive marker."""

    @property
    def bytes(self) -> int:
        """Bytes to read; an estimate for folders."""
        return FOLDER_BYTES if self.layout == "folder" else self.stop - self.start


def split_of(name: str) -> str:
    """Split in the name of a shard, "" if there is none."""
    match = SPLIT_NAME.search(name.lower())
    return match.group(1) if match else ""


def ignore_damage(offset: int, reason: str) -> None:
    """Ignore a damaged place in a first look; the task that reads the part reports it."""


def members(
    read: tar.Read, start: int, stop: int, archive: str, has_end: bool = True
) -> Iterator[tar.Member | Fault]:
    """Members in bytes [start, stop) of a tar, with a Fault for each damaged place.

    With `has_end`, a missing end-of-archive marker is a Fault as well. Zeros are one up to
    MOST_ZEROS; more are what a download leaves for which the space was reserved.
    """
    faults: list[Fault] = []

    def damage(offset: int, reason: str) -> None:
        faults.append(Fault(archive, "", offset, reason, damage=True))

    last = start

    def zeros(place: int) -> None:
        damage(place, "zeros where members should be: the archive has a hole")

    for member in tar.walk(read, start, stop, archive, damage):
        if member.start - last > MOST_ZEROS and not faults:
            zeros(last)
        yield from faults
        faults.clear()
        last = member.stop
        yield member
    if has_end and not tar.ends(read, last, stop):
        damage(min(last, stop), tar.NO_END)
    elif has_end and bytes(read(last, min(MOST_ZEROS + 1, stop - last))) == bytes(MOST_ZEROS + 1):
        zeros(last)
    yield from faults


def class_tars(name: str, outer: Iterable[tar.Member | Fault]) -> Iterator[Part | Fault]:
    """Parts of a tar of one tar per class: the byte ranges of the inner tars."""
    for member in outer:
        if isinstance(member, Fault):
            yield member
            continue
        base = member.name.rpartition("/")[2]
        wnid = base.removesuffix(".tar")
        start, stop = member.offset, member.offset + member.size
        if member.kind == "file" and wnid != base and CLASS_NAME.fullmatch(wnid):
            inner = f"{name}/{member.name}"
            yield Part(archive=inner, layout="tar", start=start, stop=stop, wnid=wnid)
        elif member.kind != "folder":
            yield not_class_tar(name, member.name, start, member.kind)


def not_class_tar(name: str, member: str, offset: int, kind: str) -> Fault:
    """The fault of what is neither a class tar nor a folder."""
    stem, _, extensions = member.rpartition("/")[2].partition(".")
    if kind == "file" and (extensions == "tar.gz" or (WNID.fullmatch(stem) and extensions)):
        reason = (
            "a compressed class tar: gunzip them, and give a folder of the tars"
            if extensions == "tar.gz"
            else "not CLASS.tar: download it to its end, or move it away"
        )
        return Fault(name, member, offset, reason, damage=True)
    reason = "not a class tar (CLASS.tar)" if kind == "file" else f"a {kind}, not a class tar"
    return Fault(name, member, offset, reason)


def flat_tar(
    name: str, outer: Iterable[tar.Member | Fault], labels: Mapping[str, str]
) -> Iterator[Part | Fault]:
    """Parts of a tar of images: runs of members, cut between two files and at each fault."""
    start, stop, names, is_folder = 0, 0, [], False

    def run() -> Part:
        bases = (each.rpartition("/")[2] for each in names)
        known = {base: labels[base] for base in bases if base in labels}
        return Part(archive=name, layout="tar", start=start, stop=stop, labels=known, has_end=False)

    for member in outer:
        is_fault = isinstance(member, Fault)
        # not after a folder, so that an empty one is told from one with files
        is_long = stop - start >= PART_BYTES and not is_folder
        if names and (is_fault or is_long or member.start > stop):
            yield run()
            names = []
        if is_fault:
            yield member
            continue
        is_folder = member.kind == "folder"
        start = start if names else member.start
        names.append(member.name)
        stop = member.stop
    if names:
        yield run()


def is_val_image(name: str) -> bool:
    """Whether a member is a validation image of ILSVRC2012 outside a folder of its class."""
    return bool(VAL_NAME.fullmatch(name.rpartition("/")[2])) and not class_of_path(name)[0]


def is_kaggle(name: str) -> bool:
    """Whether a member is part of Kaggle's copy of ILSVRC2012, which begins with other files."""
    return "/CLS-LOC/" in f"/{name}"


def class_of_path(name: str) -> tuple[str, str]:
    """Class and split in a member name such as "a/train/n01440764/1.JPEG", each "" if absent."""
    *folders, base = name.split("/")
    if is_kaggle(name) and not {"Annotations", "ImageSets"}.isdisjoint(folders):
        return "", ""  # boxes of objects, and lists of names
    wnid = folders[-1] if folders else ""
    if wnid in SPLITS or wnid == TEST:
        return "", SPLITS.get(wnid, "")
    split = SPLITS.get(folders[-2], "") if len(folders) > 1 else ""
    is_class = (WNID if VAL_NAME.fullmatch(base) else CLASS_NAME).fullmatch(wnid)
    return (wnid if is_class else ""), split
