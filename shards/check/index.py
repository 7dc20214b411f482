"""Index shards made by other tools (timm, img2dataset, webdataset) in place.

    DIR/*.tar, DIR/{train,val,validation}/*.tar -> DIR/index/*.parquet + DIR/manifest.json

Existing files are neither changed nor renamed. Warnings report what would harm training: shards
that are not shuffled, images that cannot be read, and classes without WordNet ids.
"""

import contextlib
import functools
import itertools
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from shards.build import archive, report
from shards.build.progress import Listen, Run, serial, shown
from shards.check import shard_index
from shards.check.shard_index import Few, Summary
from shards.dataset import classes, format, sample, store, tar
from shards.dataset.format import Manifest, Shard
from shards.dataset.walker import grouped

# a set that is indexed again gets the folder that its manifest does not name, until the new
# manifest is written
INDEX_FOLDERS = ("index/", "index-2/")
LABEL_RULES = ("cls", *(f"json:{n}" for n in ("label", "cls", "class", "classes", "class_id")))
# shards with this share of same-class neighbours above the expected one count as not shuffled
CLUSTERED = 0.05
EMPTY = "its shards have no samples; download them again"
# enough for the first members of a shard, however large the blocks of a whole read are
FIRST_READ = 1 << 16
FIRST_SAMPLES = 10


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


def index(
    location: str,
    class_names: str | None = None,
    label: str | None = None,
    run: Run = serial,
    progress: Listen | None = None,
) -> Indexed:
    """Write the indexes and the manifest of the shards at location.

    Raises ValueError, and leaves an earlier index as it is, if a sample cannot be used or the set
    was built here.
    """
    system, root = store.locate(location)
    earlier = _earlier_folder(system, root, location)
    names = format.tar_names(system, root)
    if not names:
        raise FileNotFoundError(f"no shards (*.tar) at {location}")
    declared = _declared(system, root, replaced=bool(earlier))
    if label:
        sample.check_label(label)
    rule = _label_rule(system, root, names, (label,) if label else LABEL_RULES)
    folder = INDEX_FOLDERS[earlier == INDEX_FOLDERS[0]]
    for place in {posixpath.dirname(f"{folder}{name}") for name in names}:
        store.make_folder(system, f"{root}/{place}")
        store.sweep(system, f"{root}/{place}")
    task = functools.partial(shard_index.write, system, root, folder, rule)
    results = shown("index", run(task, names), lambda: len(names), progress, lambda r: r.shard)
    summaries = sorted(results, key=lambda summary: summary.shard.name)
    counts, key_wnids = Counter[int](), defaultdict(set)
    faults, unreadable, empty, absent = Few(), Few(), Few(), Few()
    for summary in summaries:
        faults.join(summary.faults)
        unreadable.join(summary.unreadable)
        counts.update(summary.counts)
        for number, wnids in summary.wnids.items():
            key_wnids[number] |= wnids
    samples = sum(summary.shard.samples for summary in summaries)
    _refuse_unusable(location, faults, unreadable, samples)
    empty.add(*(summary.shard.name for summary in summaries if not summary.shard.samples))
    absent.add(*sorted((declared or {}).keys() - set(names)))
    wnids, warnings = _classes(class_names, key_wnids, max(counts) + 1)
    warnings += _order_warnings(summaries, counts)
    warnings += _content_warnings(unreadable, empty, absent)
    splits = _splits([summary.shard for summary in summaries], declared or {})
    manifest = Manifest(
        classes=wnids, splits=splits, label=rule, index_folder=folder, settings=format.INDEXED
    )
    if declared is None:
        format.write_info(system, root, manifest)
    format.write_manifest(system, root, manifest)
    if earlier in INDEX_FOLDERS:
        with contextlib.suppress(FileNotFoundError):
            system.delete_dir(f"{root}/{earlier}".rstrip("/"))
    images = {split: sum(shard.samples for shard in shards) for split, shards in splits.items()}
    return Indexed(images, len(names), len(wnids), rule, tuple(warnings))


def _earlier_folder(system: pafs.FileSystem, root: str, location: str) -> str:
    """Index folder of the set if it was indexed before; ValueError if it was built."""
    is_built = store.exists(system, f"{root}/{report.REPORT}")
    manifest = None
    if not is_built and store.exists(system, f"{root}/{format.MANIFEST}"):
        with contextlib.suppress(ValueError):  # indexing again replaces a damaged manifest
            manifest = format.open_set(location).manifest
            is_built = not manifest.is_indexed
    if is_built:
        raise ValueError(
            f"{location} was built by `python -m shards build`, and its index is part of it; check "
            "it with `python -m shards verify`, which rebuilds faulty shards with --repair"
        )
    return manifest.index_folder if manifest else ""


def _label_rule(
    system: pafs.FileSystem, root: str, names: Sequence[str], rules: Sequence[str]
) -> str:
    """The first of the rules by which one of the first samples of the set has a label."""
    for name in names:
        seen = []
        with store.RangeReader(system, f"{root}/{name}", FIRST_READ) as reader:
            walk = tar.walk(reader, 0, reader.size, name, archive.ignore_damage)
            samples = grouped(walk, reader, name, archive.ignore_damage)
            for files in itertools.islice(samples, FIRST_SAMPLES):
                for rule in rules:
                    with contextlib.suppress(ValueError):
                        sample.labels(files.key, files.parts, name, rule)
                        return rule
                seen.append(files.key)
        if seen:
            raise ValueError(
                f"{name}: no class number in any of {', '.join(rules)} of its first samples "
                f"({', '.join(seen[:3])}), where cls is the .cls file and json:FIELD a field of "
                "the .json file; give --label json:FIELD"
            )
    raise ValueError(f"{root} cannot be used: {EMPTY}")


def _refuse_unusable(location: str, faults: Few, unreadable: Few, samples: int) -> None:
    """Raise ValueError with everything that keeps the set from being used."""
    if faults.count:
        raise ValueError(
            f"{faults.count:,} faults in {location}, which is not indexed; download cut shards "
            "again, or rewrite the set with `python -m shards build`, which leaves out what cannot "
            f"be used:\n{faults.listed(chr(10))}"
        )
    if unreadable.count == samples:
        raise ValueError(f"none of the images of {location} can be read: {unreadable.listed()}")


def _content_warnings(unreadable: Few, empty: Few, absent: Few) -> Iterator[str]:
    """Warnings of images that cannot be read, of empty shards and of shards that are not there."""
    if unreadable.count:
        yield (
            f"{unreadable.count:,} images cannot be read, and each counts against "
            "data.max_bad_samples of a run; `python -m shards build` leaves them out: "
            f"{unreadable.listed()}"
        )
    if empty.count:
        yield f"{empty.count:,} shards are empty: {empty.listed()}"
    if absent.count:
        yield (
            f"{absent.count:,} shards of {format.TIMM_INFO} are not there and are left out; if the "
            f"download is not complete, complete it and index again: {absent.listed()}"
        )


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


def _order_warnings(summaries: Sequence[Summary], counts: Counter[int]) -> list[str]:
    """A warning if neighbours share a class more often than in shuffled shards."""
    samples = sum(summary.shard.samples for summary in summaries)
    expected = min(sum((count / samples) ** 2 for count in counts.values()), 1.0)
    alike = sum(summary.alike for summary in summaries) / max(samples - len(summaries), 1)
    margin = 4 * (expected * (1 - expected) / max(samples, 1)) ** 0.5  # four standard deviations
    if len(counts) < 2 or alike <= expected + margin + CLUSTERED:
        return []
    return [
        f"not shuffled: {alike:.0%} of neighbouring samples share a class, {expected:.1%} are "
        "expected; rewrite the set with `python -m shards build`"
    ]


def _declared(system: pafs.FileSystem, root: str, replaced: bool) -> dict[str, str] | None:
    """Split of each shard by timm's _info.json.

    None if there is no such file, or if it is one to be `replaced`, which `index` has written.
    """
    path, declared = f"{root}/{format.TIMM_INFO}", {}
    try:
        info = store.read_json(system, path)
        if info is None or (replaced and info.get("name") == format.INFO_NAME):
            return None
        for split in info["splits"].values():
            for name in split["filenames"]:
                declared.setdefault(name, archive.split_of(split["name"]) or split["name"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not in timm's format ({error}); correct it, or move it away: shards are "
            "then put into splits by their names"
        ) from error
    return declared


def _splits(shards: Sequence[Shard], declared: Mapping[str, str]) -> dict[str, tuple[Shard, ...]]:
    """Shards by split: from timm's _info.json, else from their names, else all train."""
    splits = defaultdict(list)
    for shard in shards:
        split = declared.get(shard.name) or archive.split_of(shard.name) or "train"
        splits[split].append(shard)
    return {split: tuple(members) for split, members in splits.items()}
