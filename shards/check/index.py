"""Index shards made by other tools (timm, img2dataset, webdataset) in place.

    DIR/*.tar -> DIR/index/*.parquet + DIR/manifest.json

Existing files are neither changed nor renamed. Warnings report what would harm training: shards
that are not shuffled, and classes without WordNet ids.
"""

import contextlib
import functools
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pyarrow import fs as pafs

from shards.build import archive
from shards.build.progress import Run, serial
from shards.dataset import classes, format, store, tar
from shards.dataset.format import Manifest, Shard

INDEX_FOLDER = "index/"
KEY_WNID = re.compile(r"(?:.*/)?([a-z]\d{8})_")
LABEL_FIELDS = ("label", "cls", "class", "classes", "class_id")
# shards with this share of same-class neighbours above the expected one count as not shuffled
CLUSTERED = 0.05

Files = list[tuple[str, tar.Member]]
"""The files of a sample, each with its extension."""


@dataclass(frozen=True)
class Indexed:
    """Result of indexing."""

    splits: Mapping[str, int]
    """Images by split."""
    shards: int
    classes: int
    label: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """The counts, and one line per warning."""
        images = ", ".join(f"{split}: {count:,} images" for split, count in self.splits.items())
        labels = f"{self.classes:,} classes, labels in {self.label}"
        lines = [f"{images} in {self.shards:,} shards; {labels}"]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


@dataclass
class _Summary:
    """One indexed shard."""

    shard: Shard
    wnids: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """WordNet ids in the keys of each class number; "" for a key without one."""
    counts: Counter[int] = field(default_factory=Counter)
    """Images by class number."""
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
    summaries = list(run(functools.partial(_index, system, root, rule), names))
    summaries.sort(key=lambda summary: summary.shard.name)
    counts, key_wnids = Counter[int](), defaultdict(set)
    for summary in summaries:
        counts.update(summary.counts)
        for number, wnids in summary.wnids.items():
            key_wnids[number] |= wnids
    wnids, warnings = _classes(class_names, key_wnids, max(counts) + 1)
    warnings += _order_warnings(summaries, counts)
    splits = _splits(system, root, [summary.shard for summary in summaries])
    manifest = Manifest(
        classes=wnids, splits=splits, label=rule, index_folder=INDEX_FOLDER,
        settings={"indexed": True},
    )  # fmt: skip
    if not store.exists(system, f"{root}/{format.TIMM_INFO}"):
        format.write_info(system, root, manifest)
    format.write_manifest(system, root, manifest)
    images = {split: sum(shard.samples for shard in shards) for split, shards in splits.items()}
    return Indexed(images, len(names), len(wnids), rule, tuple(warnings))


def _label_rule(system: pafs.FileSystem, path: str) -> str:
    """Where the first sample of a shard stores its label."""
    with store.RangeReader(system, path) as reader:
        _, files = next(format.grouped(tar.walk(reader, 0, reader.size, path)), ("", []))
        for extension, member in files:
            if extension == "cls":
                return "cls"
            if extension == "json":
                with contextlib.suppress(ValueError, AttributeError):  # not a JSON object
                    fields = json.loads(reader(member.offset, member.size))
                    for name in LABEL_FIELDS:
                        if isinstance(fields.get(name), int | list):
                            return f"json:{name}"
    raise ValueError(
        f"{path}: the first sample has no .cls and no class number in .json under "
        f"{', '.join(LABEL_FIELDS)}; give --label json:FIELD"
    )


def _index(system: pafs.FileSystem, root: str, rule: str, name: str) -> _Summary:
    """Write the index of one shard."""
    with store.RangeReader(system, f"{root}/{name}") as reader:
        samples = _samples(reader, name)
        summary = _Summary(Shard(name, len(samples), reader.size, reader.sha256()))
        rows, previous = [], ()
        for key, files in samples.items():
            where = f"{name}: byte {files[0][1].start}"
            parts = {e: memoryview(reader(m.offset, m.size)) for e, m in files}
            sample = format.record(key, parts, where, rule)
            rows.append(_row(sample, files, where))
            match = KEY_WNID.match(key)
            summary.wnids[sample.classes[0]].add(match[1] if match else "")
            summary.counts.update(sample.classes)
            summary.alike += not set(sample.classes).isdisjoint(previous)
            previous = sample.classes
    path = f"{root}/{INDEX_FOLDER}{summary.shard.index_name}"
    with store.written(system, path) as file:
        pq.write_table(pa.Table.from_pylist(rows, format.INDEX), file, compression="zstd")
    return summary


def _samples(reader: store.RangeReader, name: str) -> dict[str, Files]:
    """Files by key; raises ValueError if those of a key are not contiguous."""
    samples: dict[str, Files] = {}
    for key, files in format.grouped(tar.walk(reader, 0, reader.size, name)):
        if key in samples:
            raise ValueError(
                f"{name}: the members of {key} are not contiguous, so readers would see two "
                "samples; rewrite the set with `python -m shards build`"
            )
        samples[key] = files
    return samples


def _row(sample: format.Sample, files: Files, where: str) -> dict[str, object]:
    """Row of the index (see format.INDEX)."""
    image = next(member for extension, member in files if extension == sample.extension)
    try:
        width, height = Image.open(io.BytesIO(sample.image)).size
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(
            f"{where}: {image.name} is not an image ({error}); rewrite the set with "
            "`python -m shards build`, which leaves it out"
        ) from error
    return {
        "key": sample.key,
        "start": files[0][1].start,
        "stop": files[-1][1].stop,
        "offset": image.offset,
        "size": image.size,
        "width": width,
        "height": height,
        "classes": list(sample.classes),
        "sha256": hashlib.sha256(sample.image).hexdigest(),
    }


def _classes(
    class_names: str | None, key_wnids: Mapping[int, set[str]], count: int
) -> tuple[tuple[str, ...], list[str]]:
    """The class list, from class_names if given and otherwise from the keys; and warnings."""
    if class_names is not None:
        names = classes.class_list(class_names)
        if count > len(names):
            raise ValueError(
                f"label {count - 1} occurs, but {class_names} has {len(names)} classes"
            )
        return names, []
    unique = {n: min(ids) for n, ids in key_wnids.items() if len(ids) == 1 and "" not in ids}
    missing = count - len(unique)
    names = tuple(f"class-{n:05d}" if missing else unique[n] for n in range(count))
    if not missing and len(set(names)) == count:
        return names, []
    return names, [
        f"no unique WordNet id for {missing or 'some'} of {count} classes; give --classes (a file, "
        f"or one of {', '.join(classes.BUILT_IN)}) if the classes have WordNet ids"
    ]


def _order_warnings(summaries: Sequence[_Summary], counts: Counter[int]) -> list[str]:
    """A warning if neighbours share a class more often than in shuffled shards."""
    samples = sum(summary.shard.samples for summary in summaries)
    expected = sum((count / samples) ** 2 for count in counts.values())
    alike = sum(summary.alike for summary in summaries) / max(samples - len(summaries), 1)
    margin = 4 * (expected * (1 - expected) / max(samples, 1)) ** 0.5  # four standard deviations
    if len(counts) < 2 or alike <= expected + margin + CLUSTERED:
        return []
    return [
        f"not shuffled: {alike:.0%} of neighbouring samples share a class, {expected:.1%} are "
        "expected; rewrite the set with `python -m shards build`"
    ]


def _splits(
    system: pafs.FileSystem, root: str, shards: Sequence[Shard]
) -> dict[str, tuple[Shard, ...]]:
    """Shards by split: from timm's _info.json, else from their file names, else all train."""
    declared: dict[str, str] = {}
    if store.exists(system, f"{root}/{format.TIMM_INFO}"):
        try:
            info = json.loads(store.read_bytes(system, f"{root}/{format.TIMM_INFO}"))
            for split in info["splits"].values():
                for name in split["filenames"]:
                    declared.setdefault(name, archive.split_of(split["name"]) or split["name"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{root}/{format.TIMM_INFO} is not in timm's format: {error}"
            ) from error
    splits = defaultdict(list)
    for shard in shards:
        split = declared.get(shard.name) or archive.split_of(shard.name) or "train"
        splits[split].append(shard)
    return {split: tuple(members) for split, members in splits.items()}
