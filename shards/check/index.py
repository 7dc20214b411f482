"""Index shards that others wrote, where they lie: timm's, img2dataset's, webdataset's.

    DIR/*.tar -> DIR/index/*.parquet + DIR/manifest.json

Nothing of what lies there is changed or renamed. Warnings say what training would suffer from:
shards that are not shuffled, classes that nobody names.
"""

import functools
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pyarrow import fs as pafs

from shards.build import archive
from shards.build.pack import Run, serial
from shards.dataset import classes, format, store, tar
from shards.dataset.format import Manifest, Shard

INDEX_FOLDER = "index/"
KEY_WNID = re.compile(r"(?:.*/)?([a-z]\d{8})_")
LABEL_FIELDS = ("label", "cls", "class", "classes", "class_id")
CLUSTERED = (
    0.05  # more neighbours of one class than by chance, beyond which shards are not shuffled
)


@dataclass(frozen=True)
class Indexed:
    """What was indexed."""

    splits: Mapping[str, int]
    """Images by split."""
    shards: int
    classes: int
    label: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """A short text."""
        images = ", ".join(f"{split}: {count:,} images" for split, count in self.splits.items())
        head = (
            f"{images} in {self.shards:,} shards; {self.classes:,} classes, labels in {self.label}"
        )
        return "\n".join([head, *(f"warning: {warning}" for warning in self.warnings)])


@dataclass
class _Seen:
    """One indexed shard."""

    shard: Shard
    wnids: dict[int, str] = field(default_factory=dict)
    """Class number to the WordNet id in keys; "" where keys disagree or have none."""
    counts: dict[int, int] = field(default_factory=dict)
    alike: int = 0
    """Neighbours that share a class."""


def index(
    location: str, class_names: str | None = None, label: str | None = None, run: Run = serial
) -> Indexed:
    """Write the indexes and the manifest of the shards at location."""
    system, root = store.locate(location)
    names = [i.base_name for i in store.listing(system, root) if i.base_name.endswith(".tar")]
    if not names:
        raise FileNotFoundError(f"no shards (*.tar) at {location}")
    store.make_folder(system, f"{root}/{INDEX_FOLDER}")
    rule = label or _label_rule(system, f"{root}/{names[0]}")
    seen = {s.shard.name: s for s in run(functools.partial(_index, system, root, rule), names)}
    warnings: list[str] = []
    wnids = _classes(class_names, [seen[name] for name in names], warnings)
    _shuffled([seen[name] for name in names], warnings)
    splits = {
        split: tuple(seen[name].shard for name in files)
        for split, files in _splits(system, root, names).items()
    }
    manifest = Manifest(
        classes=wnids, splits=splits, label=rule, index_folder=INDEX_FOLDER,
        settings={"indexed": True},
    )  # fmt: skip
    if not store.exists(system, f"{root}/{format.TIMM_INFO}"):
        format.write_info(system, root, manifest)
    format.write_manifest(system, root, manifest)
    images = {split: sum(s.samples for s in shards) for split, shards in splits.items()}
    return Indexed(images, len(names), len(wnids), rule, tuple(warnings))


def _label_rule(system: pafs.FileSystem, path: str) -> str:
    """Where the first sample of a shard keeps its label."""
    with store.RangeReader(system, path) as reader:
        first = None
        for member in tar.walk(reader, 0, reader.size, path):
            key, extension = format.split_name(member.name)
            first = first or key
            if key != first:
                break
            if extension == "cls":
                return "cls"
            if extension == "json":
                try:
                    fields = json.loads(reader(member.offset, member.size))
                except ValueError:
                    fields = {}
                for name in LABEL_FIELDS:
                    if isinstance(fields, dict) and isinstance(fields.get(name), int | list):
                        return f"json:{name}"
    raise ValueError(
        f"{path}: the first sample has no .cls and no class number in .json under "
        f"{', '.join(LABEL_FIELDS)}; give --label json:FIELD"
    )


def _index(system: pafs.FileSystem, root: str, rule: str, name: str) -> _Seen:
    """Write the index of one shard."""
    with store.RangeReader(system, f"{root}/{name}") as reader:
        spans = _spans(reader, name)
        seen = _Seen(Shard(name, len(spans), reader.size, reader.sha256()))
        rows, before = [], set()
        for key, members in spans.items():
            where = f"{name}: byte {members[0].start}"
            parts = {
                format.split_name(m.name)[1]: memoryview(reader(m.offset, m.size)) for m in members
            }
            record = format.record(key, parts, where, rule)
            rows.append(_row(record, members, where))
            _note(seen, record)
            seen.alike += bool(before & set(record.classes))
            before = set(record.classes)
    path = f"{root}/{INDEX_FOLDER}{seen.shard.index_name}"
    with store.written(system, path) as file:
        pq.write_table(pa.Table.from_pylist(rows, format.INDEX), file, compression="zstd")
    return seen


def _spans(reader: store.RangeReader, name: str) -> dict[str, list[tar.Member]]:
    """Members by key; ValueError where those of a key do not follow each other."""
    spans: dict[str, list[tar.Member]] = {}
    last = ""
    for member in tar.walk(reader, 0, reader.size, name):
        key = format.split_name(member.name)[0]
        if member.kind != "file":
            continue
        if key in spans and key != last:
            raise ValueError(
                f"{name}: the members of {key} are not contiguous: readers would take it for two "
                "samples; write the set anew with `python -m shards build`"
            )
        spans.setdefault(key, []).append(member)
        last = key
    return spans


def _row(record: format.Sample, members: list[tar.Member], where: str) -> dict[str, object]:
    image = next(m for m in members if format.split_name(m.name)[1] == record.extension)
    try:
        width, height = Image.open(io.BytesIO(record.image)).size
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(
            f"{where}: {image.name} is no image ({error}); write the set anew with "
            "`python -m shards build`, which leaves it out"
        ) from error
    return {
        "key": record.key,
        "start": members[0].start,
        "stop": members[-1].stop,
        "offset": image.offset,
        "size": image.size,
        "width": width,
        "height": height,
        "classes": list(record.classes),
        "sha256": hashlib.sha256(record.image).hexdigest(),
    }


def _note(seen: _Seen, record: format.Sample) -> None:
    match = KEY_WNID.match(record.key)
    wnid = match.group(1) if match else ""
    number = record.classes[0]
    if seen.wnids.setdefault(number, wnid) != wnid:
        seen.wnids[number] = ""
    for one in record.classes:
        seen.counts[one] = seen.counts.get(one, 0) + 1


def _classes(given: str | None, seen: list[_Seen], warnings: list[str]) -> tuple[str, ...]:
    """The class list: as given, else as keys say."""
    most = max(number for one in seen for number in one.counts)
    if given is not None:
        names = classes.class_list(given)
        if most >= len(names):
            raise ValueError(f"label {most} occurs, but {given} has {len(names)} classes")
        return names
    wnids: dict[int, set[str]] = {}
    for one in seen:
        for number, wnid in one.wnids.items():
            wnids.setdefault(number, set()).add(wnid)
    names = []
    for number in range(most + 1):
        own = wnids.get(number, set())
        names.append(own.pop() if len(own) == 1 and "" not in own else f"class-{number:05d}")
    unknown = sum(name.startswith("class-") for name in names)
    if unknown or len(set(names)) < len(names):
        names = [f"class-{number:05d}" for number in range(most + 1)] if unknown else names
        warnings.append(
            f"nobody names {unknown or 'some'} of {most + 1} classes; give --classes (a file, or "
            f"one of {', '.join(classes.BUILT_IN)}) if they are WordNet ids"
        )
    return tuple(names)


def _shuffled(seen: list[_Seen], warnings: list[str]) -> None:
    counts: dict[int, int] = {}
    for one in seen:
        for number, count in one.counts.items():
            counts[number] = counts.get(number, 0) + count
    samples = sum(one.shard.samples for one in seen)
    chance = sum((count / samples) ** 2 for count in counts.values())
    alike = sum(one.alike for one in seen) / max(samples - len(seen), 1)
    ray_map = 4 * (chance * (1 - chance) / max(samples, 1)) ** 0.5
    if len(counts) > 1 and alike > chance + ray_map + CLUSTERED:
        warnings.append(
            f"not shuffled: {alike:.0%} of neighbouring samples share a class, {chance:.1%} would "
            "by chance; write the set anew with `python -m shards build`"
        )


def _splits(system: pafs.FileSystem, root: str, names: list[str]) -> dict[str, list[str]]:
    """Shards by split: as timm's _info.json says, else as their names say, else all train."""
    splits: dict[str, list[str]] = {}
    told: dict[str, str] = {}
    if store.exists(system, f"{root}/{format.TIMM_INFO}"):
        try:
            info = json.loads(store.read_bytes(system, f"{root}/{format.TIMM_INFO}"))
            for split in info["splits"].values():
                for name in split["filenames"]:
                    told.setdefault(name, archive.split_of(split["name"]) or split["name"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{root}/{format.TIMM_INFO} is not timm's: {error}") from error
    for name in names:
        split = told.get(name) or archive.split_of(name) or "train"
        splits.setdefault(split, []).append(name)
    return splits
