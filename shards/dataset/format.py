"""Format of a shard set on disk: tars of samples, one index per tar, and a manifest.

    DIR/manifest.json                splits, shards with their counts and hashes, classes, settings
    DIR/_info.json                   the splits in timm's format
    DIR/train-00000.tar              KEY.cls, KEY.jpg (and KEY.json if it has several classes)
    DIR/train-00000.parquet          one row per sample: byte ranges, size, classes, hashes (INDEX)

DIR is a folder or an s3:// or gs:// prefix. Any WebDataset reader can read the tars.
"""

import hashlib
import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.dataset import store, tar

MANIFEST = "manifest.json"
TIMM_INFO = "_info.json"
VERSION = 1
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

INDEX = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        # Samples are contiguous: bytes [start of i, stop of j) hold exactly the samples i..j.
        pa.field("start", pa.int64(), nullable=False),
        pa.field("stop", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # of the image bytes, like size
        pa.field("size", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("classes", pa.list_(pa.int32()), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        # Perceptual hash, null if it was not computed.
        pa.field("phash", pa.uint64()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One tar: its name within the set, and its expected counts and hash."""

    name: str
    samples: int
    bytes: int
    sha256: str

    @property
    def index_name(self) -> str:
        """Name of the Parquet file that indexes the tar."""
        return posixpath.splitext(self.name)[0] + ".parquet"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a shard set, and the settings and sources that it was built from."""

    classes: tuple[str, ...]
    """WordNet ids by class number."""
    splits: Mapping[str, tuple[Shard, ...]]
    label: str = "cls"
    """Where labels are stored: "cls", or "json:FIELD" in sets made by other tools."""
    index_folder: str = ""
    """Folder of the indexes, ending in a slash; empty if they are in the folder of the tars."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: tuple[Mapping[str, Any], ...] = ()

    @property
    def shards(self) -> list[Shard]:
        """The shards of all splits."""
        return [shard for shards in self.splits.values() for shard in shards]

    def to_json(self) -> str:
        """The text of manifest.json; equal manifests give equal texts."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST) -> "Manifest":
        """Parse manifest.json; raises ValueError if it is not a manifest."""
        try:
            fields = json.loads(text)
            if fields["version"] != VERSION:
                raise ValueError(f"version {fields['version']!r}, this code reads {VERSION}")
            return cls(
                classes=tuple(fields["classes"]),
                splits={
                    name: tuple(Shard(**shard) for shard in shards)
                    for name, shards in fields["splits"].items()
                },
                label=fields["label"],
                index_folder=fields["index_folder"],
                settings=fields["settings"],
                source=tuple(fields["source"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{where} is not a manifest of a shard set ({type(error).__name__}: {error}); "
                "write a new one with `python -m shards index DIR`"
            ) from error

    def timm_info(self) -> str:
        """The text of _info.json, from which timm's reader takes its splits."""
        splits = {
            split: {
                "name": split,
                "filenames": [shard.name for shard in shards],
                "shard_lengths": [shard.samples for shard in shards],
                "num_samples": sum(shard.samples for shard in shards),
                "alt_label": None,
            }
            for split, shards in self.splits.items()
        }
        return json.dumps({"name": "shards", "splits": splits}, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class ShardSet:
    """An opened shard set; small and picklable."""

    fs: pafs.FileSystem
    root: str
    location: str
    manifest: Manifest
    fingerprint: str
    """SHA-256 of manifest.json; sets with the same fingerprint have identical shards."""

    def path(self, shard: Shard) -> str:
        """Path of the tar inside fs."""
        return f"{self.root}/{shard.name}"

    def read_index(self, shard: Shard) -> pa.Table:
        """The samples of a shard, in order (see INDEX)."""
        path = f"{self.root}/{self.manifest.index_folder}{shard.index_name}"
        try:
            return pq.read_table(path, filesystem=self.fs, schema=INDEX)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}, the index of {shard.name}, is missing; create it with "
                f"`python -m shards index {self.location}`"
            ) from error


def open_set(location: str | Path) -> ShardSet:
    """Open the shard set at a folder or URI; raises FileNotFoundError if there is none."""
    system, root = store.locate(location)
    try:
        text = store.read_bytes(system, f"{root}/{MANIFEST}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"no shard set at {location}: it has no {MANIFEST}; build one with "
            f"`python -m shards build SOURCE... --out {location}`, or index existing shards "
            f"with `python -m shards index {location}`"
        ) from error
    manifest = Manifest.from_json(text.decode("utf-8", "replace"), f"{root}/{MANIFEST}")
    return ShardSet(system, root, str(location), manifest, hashlib.sha256(text).hexdigest())


def write_info(system: pafs.FileSystem, root: str, manifest: Manifest) -> None:
    """Write _info.json for timm."""
    store.write_bytes(system, f"{root}/{TIMM_INFO}", manifest.timm_info().encode())


def write_manifest(system: pafs.FileSystem, root: str, manifest: Manifest) -> None:
    """Write manifest.json, which marks the set as complete."""
    store.write_bytes(system, f"{root}/{MANIFEST}", manifest.to_json().encode())


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: key, view of the image bytes, and class numbers."""

    key: str
    image: memoryview
    extension: str
    classes: tuple[int, ...]


def sample_members(key: str, image: bytes, classes: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a sample's members, in the order of writing."""
    yield f"{key}.cls", str(classes[0]).encode()
    yield f"{key}.jpg", image
    if len(classes) > 1:  # other readers use only .cls, which holds one class
        yield f"{key}.json", json.dumps({"classes": list(classes)}).encode()


def grouped(members: Iterable[tar.Member]) -> Iterator[tuple[str, list[tuple[str, tar.Member]]]]:
    """Runs of consecutive files with the same key: the key, and each file with its extension."""
    files = ((*split_name(member.name), member) for member in members if member.kind == "file")
    for key, run in itertools.groupby(files, key=lambda file: file[0]):
        yield key, [(extension, member) for _, extension, member in run]


def parse_samples(data: bytes | memoryview, where: str, label: str = "cls") -> Iterator[Sample]:
    """Samples in a byte range that starts and ends between samples; raises ValueError otherwise."""
    view = memoryview(data)
    members = tar.walk(lambda offset, size: view[offset : offset + size], 0, len(view), where)
    for key, files in grouped(members):
        parts: dict[str, memoryview] = {}
        for extension, member in files:
            if extension in parts:
                raise ValueError(
                    f"{where}: byte {member.start}: a second {member.name!r} in one sample"
                )
            parts[extension] = view[member.offset : member.offset + member.size]
        yield record(key, parts, f"{where}: byte {files[0][1].start}", label)


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension of a member: WebDataset splits at the base name's first dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def record(key: str, parts: Mapping[str, memoryview], where: str, label: str) -> Sample:
    """A sample from the contents of its members by extension."""
    for extension in IMAGE_EXTENSIONS:
        if extension in parts:
            return Sample(key, parts[extension], extension, labels(key, parts, where, label))
    raise ValueError(
        f"{where}: sample {key!r} has no image, only {sorted(parts)}; image extensions: "
        f"{', '.join(IMAGE_EXTENSIONS)}"
    )


def labels(
    key: str, parts: Mapping[str, memoryview], where: str, label: str = "cls"
) -> tuple[int, ...]:
    """Class numbers of a sample under the manifest's label rule."""
    kind, _, name = label.partition(":")
    try:
        if kind == "cls":
            extra = bytes(parts["json"]) if "json" in parts else b""
            # Only our json has "classes"; the search avoids parsing that of other tools.
            numbers = json.loads(extra).get("classes") if b'"classes"' in extra else None
            if numbers is None:
                numbers = [bytes(parts["cls"])]
        else:
            value = json.loads(bytes(parts["json"]))[name]
            numbers = value if isinstance(value, list) else [value]
        classes = tuple(int(number) for number in numbers)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where}: sample {key!r} has no label as {label!r} among {sorted(parts)} "
            f"({type(error).__name__}: {error})"
        ) from error
    if not classes or min(classes) < 0:
        raise ValueError(f"{where}: sample {key!r} has labels {classes}; labels count from 0")
    return classes
