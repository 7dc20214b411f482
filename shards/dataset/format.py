"""Format of a shard set on disk: tars of samples, one index per tar, and a manifest.

    DIR/manifest.json                splits, shards with their counts and hashes, classes, settings
    DIR/_info.json                   the splits in timm's format
    DIR/train-00000.tar              KEY.cls, KEY.jpg (and KEY.json if it has several classes)
    DIR/train-00000.parquet          one row per sample: byte ranges, size, classes, hashes (INDEX)

DIR is a folder or an s3:// or gs:// prefix. Any WebDataset reader can read the tars.
"""

import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.dataset import sample, store

MANIFEST = "manifest.json"
TIMM_INFO = "_info.json"
SUBFOLDERS = ("train", "val", "validation")
"""Folders of other tools' sets with the shards of a split."""
INFO_NAME = "shards"  # in those that are written here
VERSION = 1
INDEXED = {"indexed": True}
"""Settings of a manifest that `index` wrote."""

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
    def is_indexed(self) -> bool:
        """Whether other tools wrote the shards, which `index` has described."""
        return self.settings == INDEXED

    @property
    def shards(self) -> list[Shard]:
        """The shards of all splits."""
        return [shard for shards in self.splits.values() for shard in shards]

    def to_json(self) -> str:
        """The text of manifest.json; equal manifests give equal texts."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @property
    def sha256(self) -> str:
        """Hash of manifest.json."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST) -> "Manifest":
        """Parse manifest.json; raises ValueError if it is not a manifest."""
        try:
            fields = json.loads(text)
            if fields["version"] != VERSION:
                raise ValueError(f"version {fields['version']!r}, this code reads {VERSION}")
            manifest = cls(
                classes=tuple(fields["classes"]),
                splits={
                    name: tuple(Shard(**shard) for shard in shards)
                    for name, shards in fields["splits"].items()
                },
                label=fields["label"],
                index_folder=fields["index_folder"],
                settings=dict(fields["settings"]),
                source=tuple(fields["source"]),
            )
            if problem := next(manifest._problems(), ""):
                raise ValueError(problem)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{where} is not a manifest of a shard set ({type(error).__name__}: {error}); "
                "restore it from a copy, or build the set anew in another folder; for shards of "
                "other tools write a new one with `python -m shards index DIR`"
            ) from error
        return manifest

    def _problems(self) -> Iterator[str]:
        """What contradicts itself in a manifest that was changed or damaged."""
        names = Counter(shard.name for shard in self.shards)
        yield from (f"shard {name!r} is listed twice" for name, count in names.items() if count > 1)
        for shard in self.shards:
            texts, numbers = (shard.name, shard.sha256), (shard.samples, shard.bytes)
            if [*map(type, texts + numbers)] != [str, str, int, int] or min(numbers) < 0:
                yield f"shard {shard} must have a name, numbers of samples and bytes, and a hash"
        if {*map(type, (*self.classes, *self.splits, self.label, self.index_folder))} != {str}:
            yield "classes, splits, label and index_folder must be texts"
        if len(set(self.classes)) < len(self.classes):
            yield "a class is listed twice"
        sample.check_label(self.label)

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
        return json.dumps({"name": INFO_NAME, "splits": splits}, indent=1, sort_keys=True) + "\n"


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

    def read_index(self, shard: Shard, columns: Sequence[str] = INDEX.names) -> pa.Table:
        """The samples of a shard, in order (see INDEX)."""
        path = f"{self.root}/{self.manifest.index_folder}{shard.index_name}"
        try:
            table = pq.read_table(
                path, columns=columns, filesystem=self.fs, schema=INDEX,
                page_checksum_verification=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            command = "index" if self.manifest.is_indexed else "verify --repair"
            raise FileNotFoundError(
                f"{path}, the index of {shard.name}, is missing; create it with "
                f"`python -m shards {command} {self.location}`"
            ) from error
        required = {field.name for field in INDEX if not field.nullable} & {*table.column_names}
        if empty := sorted(name for name in required if table[name].null_count):
            raise ValueError(f"{path}, the index of {shard.name}, lacks values of {empty}")
        return table


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
    manifest = _parsed(text, root)
    return ShardSet(system, root, str(location), manifest, hashlib.sha256(text).hexdigest())


def open_manifest(system: pafs.FileSystem, root: str) -> Manifest:
    """The manifest in a folder; FileNotFoundError without one, ValueError if it is none."""
    return _parsed(store.read_bytes(system, f"{root}/{MANIFEST}"), root)


def _parsed(text: bytes, root: str) -> Manifest:
    return Manifest.from_json(text.decode("utf-8", "replace"), f"{root}/{MANIFEST}")


def tar_names(
    system: pafs.FileSystem, root: str, subfolders: Sequence[str] = SUBFOLDERS
) -> list[str]:
    """Names of the tars in a folder and in some of its subfolders, relative to it, sorted."""
    return sorted(
        prefix + info.base_name
        for prefix in ("", *(f"{name}/" for name in subfolders))
        for info in store.listing(system, f"{root}/{prefix}".rstrip("/"))
        if info.type == pafs.FileType.File
        and info.base_name.endswith(".tar")
        and not info.base_name.startswith(".")
    )


def write_info(system: pafs.FileSystem, root: str, manifest: Manifest) -> None:
    """Write _info.json for timm."""
    store.write_bytes(system, f"{root}/{TIMM_INFO}", manifest.timm_info().encode())


def write_manifest(system: pafs.FileSystem, root: str, manifest: Manifest) -> None:
    """Write manifest.json, which marks the set as complete."""
    store.write_bytes(system, f"{root}/{MANIFEST}", manifest.to_json().encode())
