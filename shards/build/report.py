"""What a build did: counts, and every file that yields no image with its reason.

DIR/report.json  DIR/quarantine.parquet  DIR/duplicates.parquet  DIR/excluded.parquet
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from shards.build import catalogue, source
from shards.build.archive import Source
from shards.build.class_stats import Tally
from shards.dataset import store
from shards.dataset.format import Shard

REPORT, QUARANTINE = "report.json", "quarantine.parquet"
SHOWN = 100


@dataclass(frozen=True)
class Quarantined:
    """A file of a source that yields no image."""

    archive: str
    member: str
    reason: str


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
    """Copies in another split than the image that is kept, which is in val if either is."""
    excluded: int
    """Images left out because an excluded set has them, listed in excluded.parquet."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Images left out because of a setting, by setting."""
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
            lines.append(f"{self.crossing:,} copies were in another split; val keeps the image")
        lines.append(f"{self.quarantined_count:,} of {self.files:,} files give no image")
        lines += [f"  {count:,} x {reason}" for reason, count in list(self.reasons.items())[:20]]
        lines += [f"  {q.archive}: {q.member}: {q.reason}" for q in self.quarantined[:20]]
        if self.quarantined_count > 20:
            lines.append(f"  ... all of them in {QUARANTINE}")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class Saved:
    """Content of report.json: the identity of the build, its sources, and the report."""

    build: str
    locations: tuple[str, ...]
    report: BuildReport


def write(system: pafs.FileSystem, root: str, saved: Saved) -> None:
    """Write report.json, which marks the build as complete."""
    store.write_bytes(system, f"{root}/{REPORT}", json.dumps(asdict(saved), indent=1).encode())


def read(system: pafs.FileSystem, root: str) -> Saved | None:
    """Read report.json; None if there is none."""
    fields = store.read_json(system, f"{root}/{REPORT}")
    if fields is None:
        return None
    report: dict[str, Any] = fields["report"]
    report["quarantined"] = tuple(Quarantined(**entry) for entry in report["quarantined"])
    for name in ("sources", "notes"):
        report[name] = tuple(report[name])
    return Saved(fields["build"], tuple(fields["locations"]), BuildReport(**report))


def collected(
    system: pafs.FileSystem,
    root: str,
    sources: Sequence[Source],
    parts: Sequence[str],
    tally: Tally,
    splits: Mapping[str, Sequence[Shard]],
    notes: tuple[str, ...],
) -> BuildReport:
    """Write the quarantine list and return the report, from the catalogue parts at these paths."""
    totals = _Totals()
    quarantine = f"{root}/{QUARANTINE}"
    with catalogue.parquet_writer(system, quarantine, catalogue.QUARANTINE) as writer:
        for path in parts:
            table = pq.read_table(path, columns=_COLUMNS, filesystem=system)
            writer.write_table(totals.add(table))
    left_out = {
        "in imagenet21k_small_classes (--small-classes takes them)": tally.small_split,
        "class not in the list of --classes": tally.other_class,
        "class with fewer images than --min-per-class": tally.rare_class,
    }
    return BuildReport(
        sources=tuple(source.described(s, totals.wnids[n]) for n, s in enumerate(sources)),
        classes=len(tally.classes),
        images=tally.images,
        shards=tally.shards,
        bytes={split: sum(shard.bytes for shard in shards) for split, shards in splits.items()},
        files=totals.files,
        quarantined_count=totals.reasons.total(),
        quarantined=tuple(totals.quarantined),
        reasons=dict(totals.reasons.most_common()),
        modes=dict(totals.modes.most_common()),
        duplicates=tally.merged,
        multi_label=tally.multi_label,
        crossing=tally.crossing,
        excluded=tally.excluded,
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=notes,
    )


_COLUMNS = [*catalogue.QUARANTINE.names, "source", "wnids", "format", "mode"]


class _Totals:
    """Sums over the parts of the catalogue."""

    def __init__(self) -> None:
        self.files = 0
        self.quarantined: list[Quarantined] = []
        self.reasons: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.wnids: defaultdict[int, set[str]] = defaultdict(set)

    def add(self, table: pa.Table) -> pa.Table:
        """Add a part; returns its quarantined rows."""
        self.files += table.num_rows
        for number in pc.unique(table["source"]).to_pylist():
            wnids = table.filter(pc.equal(table["source"], number))["wnids"]
            self.wnids[number].update(pc.unique(pc.list_flatten(wnids)).to_pylist())
        usable = table.filter(pc.equal(table["problem"], "")).group_by(["format", "mode"])
        for row in usable.aggregate([([], "count_all")]).to_pylist():
            self.modes[f"{row['format']} {row['mode']}"] += row["count_all"]
        faults = table.filter(pc.not_equal(table["problem"], ""))
        rows = faults.to_pylist()
        self.reasons.update(kind_of(row["problem"]) for row in rows)
        for row in rows[: SHOWN - len(self.quarantined)]:
            self.quarantined.append(Quarantined(row["archive"], row["member"], row["problem"]))
        return faults.select(catalogue.QUARANTINE.names).cast(catalogue.QUARANTINE)


def kind_of(reason: str) -> str:
    """A reason without the numbers and details that belong to one file only."""
    return re.sub(r"\d[\d,.x]*", "N", reason.split(":")[0].split(", first bytes")[0])
