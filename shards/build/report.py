"""What a build did: counts, and every file that yields no image with its reason.

DIR/report.json  DIR/quarantine.parquet  DIR/duplicates.parquet  DIR/excluded.parquet
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from shards.build import catalogue, published, source
from shards.build.archive import Source, located
from shards.build.class_stats import Tally
from shards.dataset import store
from shards.dataset.format import Shard

REPORT, QUARANTINE = "report.json", "quarantine.parquet"
SHOWN = 100
MANY_LABELS = 10  # more classes than an image of ImageNet-21k and its parent classes have


@dataclass(frozen=True)
class Quarantined:
    """A file of a source that yields no image."""

    archive: str
    member: str
    """Empty for a damaged place of the archive."""
    reason: str

    def __str__(self) -> str:
        """The file and its reason in one line."""
        return ": ".join(filter(None, (self.archive, self.member, self.reason)))


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Counts of a build; the full lists are Parquet files next to the shards."""

    sources: tuple[str, ...]
    """Description of each source."""
    classes: int
    images: Mapping[str, int]
    """Images by split; `shards` and `bytes` (of the shards) as well."""
    shards: Mapping[str, int]
    bytes: Mapping[str, int]
    files: int
    """Files in the sources."""
    quarantined_count: int
    quarantined: tuple[Quarantined, ...]
    """The first hundred; all are in quarantine.parquet."""
    reasons: Mapping[str, int]
    """Quarantined files by reason."""
    modes: Mapping[str, int]
    """Usable files by original format and colour mode."""
    duplicates: int
    """Copies merged into the first one, listed in duplicates.parquet."""
    multi_label: int
    """Images with more than one class."""
    crossing: int
    """Images of train left out because the sources' own val split has them."""
    excluded: int
    """Images left out because an excluded set has them, listed in excluded.parquet."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Images left out because of a setting, by setting."""
    warnings: tuple[str, ...] = ()
    """What is probably wrong with the sources or the set."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The report as a short text."""
        lines = [*self.sources]
        for split, images in self.images.items():
            size = f"{self.bytes[split] / 1e9:,.2f} GB"
            lines.append(f"{split}: {images:,} images in {self.shards[split]:,} shards, {size}")
        lines.append(
            f"{self.classes:,} classes, {self.multi_label:,} images with more than one; "
            f"{self.duplicates:,} copies merged, {self.excluded:,} images excluded"
        )
        lines += [f"left out, {reason}: {count:,}" for reason, count in self.left_out.items()]
        if self.crossing:
            lines.append(f"{self.crossing:,} images of train are also in val, and left train")
        lines.append(f"{self.quarantined_count:,} of {self.files:,} files give no image")
        lines += [f"  {count:,} x {reason}" for reason, count in list(self.reasons.items())[:20]]
        lines += [f"  {quarantined}" for quarantined in self.quarantined[:20]]
        if self.quarantined_count > 20:
            lines.append(f"  ... all of them in {QUARANTINE}")
        warnings = [f"WARNING: {warning}" for warning in self.warnings]
        return "\n".join([*warnings, *lines, *self.notes])


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Content of report.json: all that is needed to make a part of the set again."""

    build: str
    """Identity of the sources and settings."""
    units: str
    """Identity of the units."""
    plan: str
    """Identity of the assignment."""
    locations: tuple[str, ...]
    """Where the sources were."""
    settings: Mapping[str, Any]
    """As in the manifest."""
    source: tuple[Mapping[str, Any], ...]
    """As in the manifest."""
    manifest: str
    """SHA-256 of manifest.json."""
    report: BuildReport


def write(system: pafs.FileSystem, root: str, saved: Saved) -> None:
    """Write report.json, which marks the build as complete."""
    store.write_bytes(system, f"{root}/{REPORT}", json.dumps(asdict(saved), indent=1).encode())


def read(system: pafs.FileSystem, root: str) -> Saved | None:
    """Read report.json; None if there is none, ValueError if it is damaged."""
    try:
        fields = store.read_json(system, f"{root}/{REPORT}")
        return None if fields is None else _saved(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{root}/{REPORT} is damaged, or of another version ({type(error).__name__}: {error}); "
            "restore it from a copy, or build the set anew in another folder"
        ) from error


def _saved(fields: dict[str, Any]) -> Saved:
    report: dict[str, Any] = fields["report"]
    report["quarantined"] = tuple(Quarantined(**entry) for entry in report["quarantined"])
    for name in ("sources", "warnings", "notes"):
        report[name] = tuple(report[name])
    for name in ("locations", "source"):
        fields[name] = tuple(fields[name])
    return Saved(**{**fields, "report": BuildReport(**report)})


@dataclass
class Totals:
    """Sums over the parts of the catalogue."""

    files: int = 0
    quarantined: list[Quarantined] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    """Faults of the sources; the first hundred."""
    reasons: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    wnids: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Classes by source."""
    images: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Files with a class, usable or not, by source and split."""
    usable: Counter[int] = field(default_factory=Counter)
    """Images by source."""
    codecs: Counter[str] = field(default_factory=Counter)
    """Units by the versions of the libraries that made them."""

    def add(self, table: pa.Table) -> pa.Table:
        """Add a part; returns its quarantined rows."""
        self.files += table.num_rows
        self.codecs[table.schema.metadata[catalogue.CODECS].decode()] += 1
        labelled = table.filter(pc.greater(pc.list_value_length(table["wnids"]), 0))
        for number in pc.unique(labelled["source"]).to_pylist():
            rows = labelled.filter(pc.equal(labelled["source"], number))
            self.wnids[number].update(pc.unique(pc.list_flatten(rows["wnids"])).to_pylist())
            splits = rows["split"].value_counts().to_pylist()
            self.images[number].update({row["values"]: row["counts"] for row in splits})
        usable = table.filter(pc.equal(table["problem"], ""))
        self.usable.update(usable["source"].to_pylist())
        modes = usable.group_by(["format", "mode"]).aggregate([([], "count_all")])
        for row in modes.to_pylist():
            self.modes[f"{row['format']} {row['mode']}"] += row["count_all"]
        faults = table.filter(pc.not_equal(table["problem"], ""))
        for row in faults.to_pylist():
            self.reasons[kind_of(row["problem"])] += 1
            if len(self.quarantined) < SHOWN:
                place = row["archive"], row["member"], row["problem"]
                self.quarantined.append(Quarantined(*place))
            if row["damage"] and len(self.damage) < SHOWN:
                place = row["archive"], row["member"], row["offset"]
                self.damage.append(located(*place, row["problem"]))
        return faults.select(catalogue.QUARANTINE.names).cast(catalogue.QUARANTINE)

    def faults(self, sources: Sequence[Source], tally: Tally) -> list[str]:
        """Why images or classes may be missing without a name."""
        silent = [
            f"{one.name} gives no image; it was read as {one.kind} (--source-kind)"
            for number, one in enumerate(sources)
            if one.kind != "devkit" and not self.usable[number]
        ]
        some = [f"no image in {published.listed(tally.empty)}"] if tally.empty else []
        return [*self.damage, *silent, *some]

    def warnings(self, sources: Sequence[Source], tally: Tally) -> Iterator[str]:
        """What the user should look at."""
        for number, one in enumerate(sources):
            counts = self.images[number], self.wnids[number]
            yield from published.differences(one.name, one.kind, *counts)
        if tally.missing:
            yield f"{tally.missing:,} of {len(tally.classes):,} classes have no image"
        labels, member = tally.most_labels
        if labels > MANY_LABELS:
            yield f"{member} is in {labels} classes: is it an image that stands for missing ones?"
        if tally.near:
            yield f"{tally.near:,} images of train look like one of val: near-duplicates.parquet"
        if len(self.codecs) > 1:
            yield (
                f"the images were made by {len(self.codecs)} versions of the libraries, so a shard "
                "cannot be made again by one of them: see codecs in the manifest"
            )


def totals(system: pafs.FileSystem, root: str, parts: Sequence[str]) -> Totals:
    """Sums over the catalogue parts at these paths; writes the quarantine list."""
    found = Totals()
    quarantine = f"{root}/{QUARANTINE}"
    with catalogue.parquet_writer(system, quarantine, catalogue.QUARANTINE) as writer:
        for path in parts:
            writer.write_table(found.add(catalogue.parquet_table(system, path, _COLUMNS)))
    return found


def collected(
    found: Totals,
    sources: Sequence[Source],
    tally: Tally,
    splits: Mapping[str, Sequence[Shard]],
    notes: tuple[str, ...],
) -> BuildReport:
    """The report."""
    left_out = {
        "in imagenet21k_small_classes (--small-classes takes them)": tally.small_split,
        "class not in the list of --classes": tally.other_class,
        "class with fewer images than --min-per-class": tally.rare_class,
    }
    return BuildReport(
        sources=tuple(source.described(s, found.wnids[n]) for n, s in enumerate(sources)),
        classes=len(tally.classes),
        images=tally.images,
        shards=tally.shards,
        bytes={split: sum(shard.bytes for shard in shards) for split, shards in splits.items()},
        files=found.files,
        quarantined_count=found.reasons.total(),
        quarantined=tuple(found.quarantined),
        reasons=dict(found.reasons.most_common()),
        modes=dict(found.modes.most_common()),
        duplicates=tally.merged,
        multi_label=tally.multi_label,
        crossing=tally.crossing,
        excluded=sum(tally.excluded.values()),
        left_out=tally.excluded | {reason: count for reason, count in left_out.items() if count},
        warnings=tuple(found.warnings(sources, tally)),
        notes=notes,
    )


_COLUMNS = [
    *catalogue.QUARANTINE.names,
    *("source", "wnids", "split", "format", "mode", "damage"),
]


def kind_of(reason: str) -> str:
    """A reason without the numbers and details that belong to one file only."""
    return re.sub(r"\d[\d,.x]*", "N", reason.split(":")[0].split(", first bytes")[0])
