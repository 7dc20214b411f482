"""What a build did: counts, and every file that gives no image with its reason.

DIR/report.json  DIR/quarantine.parquet  DIR/duplicates.parquet  DIR/excluded.parquet
"""

import json
import re
from collections import Counter
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
    """A file of a source that gives no image."""

    archive: str
    member: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Counts of a build; the lists in full are Parquet files beside the shards."""

    sources: tuple[str, ...]
    """What each source was recognised as."""
    classes: int
    images: Mapping[str, int]
    """Images by split."""
    shards: Mapping[str, int]
    """Shards by split."""
    bytes: Mapping[str, int]
    """Bytes of the shards by split."""
    files: int
    """Files that the sources hold."""
    quarantined_count: int
    quarantined: tuple[Quarantined, ...]
    """The first hundred; all are in quarantine.parquet."""
    reasons: Mapping[str, int]
    """Quarantined files by reason."""
    modes: Mapping[str, int]
    """Usable files by format and colour mode as they came."""
    duplicates: int
    """Copies merged into the first one; listed in duplicates.parquet."""
    multi_label: int
    """Images with more than one class."""
    crossing: int
    """Images that the sources have in more than one split; they went to val where one is val."""
    excluded: int
    """Images left out because they lie in an excluded set; listed in excluded.parquet."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Images left out by a setting, and by which."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The report as a short text."""
        lines = [*self.sources]
        for split, images in self.images.items():
            lines.append(
                f"{split}: {images:,} images in {self.shards[split]:,} shards, "
                f"{self.bytes[split] / 1e9:,.2f} GB"
            )
        lines.append(
            f"{self.classes:,} classes, {self.multi_label:,} images with more than one; "
            f"{self.duplicates:,} copies merged, {self.excluded:,} images excluded"
        )
        lines += [f"left out, {reason}: {count:,}" for reason, count in self.left_out.items()]
        if self.crossing:
            lines.append(f"{self.crossing:,} copies lay in another split; val keeps the image")
        lines.append(f"{self.quarantined_count:,} of {self.files:,} files give no image")
        lines += [f"  {count:,} x {reason}" for reason, count in list(self.reasons.items())[:20]]
        lines += [f"  {q.archive}: {q.member}: {q.reason}" for q in self.quarantined[:20]]
        if self.quarantined_count > 20:
            lines.append(f"  ... all of them in {QUARANTINE}")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class Saved:
    """report.json: the report, which build it is of, and where the sources lay."""

    build: str
    locations: tuple[str, ...]
    report: BuildReport


def write(
    system: pafs.FileSystem, root: str, build: str, locations: Sequence[str], made: BuildReport
) -> None:
    """Write report.json; from then on the build is complete."""
    text = json.dumps({"build": build, "locations": locations, "report": asdict(made)}, indent=1)
    store.write_bytes(system, f"{root}/{REPORT}", text.encode())


def read(system: pafs.FileSystem, root: str) -> Saved | None:
    """Read report.json, None where there is none."""
    if not store.exists(system, f"{root}/{REPORT}"):
        return None
    fields = json.loads(store.read_bytes(system, f"{root}/{REPORT}"))
    made: dict[str, Any] = fields["report"]
    made["quarantined"] = tuple(Quarantined(**entry) for entry in made["quarantined"])
    for name in ("sources", "notes"):
        made[name] = tuple(made[name])
    return Saved(fields["build"], tuple(fields["locations"]), BuildReport(**made))


def collected(
    system: pafs.FileSystem,
    root: str,
    found: Sequence[Source],
    parts: Sequence[str],
    tally: Tally,
    splits: Mapping[str, Sequence[Shard]],
) -> BuildReport:
    """Write the quarantine list, and say what was done."""
    seen = _Seen()
    with (
        store.written(system, f"{root}/{QUARANTINE}") as file,
        pq.ParquetWriter(file, catalogue.QUARANTINE) as bad,
    ):
        for path in parts:
            bad.write_table(seen.add(pq.read_table(path, columns=_READ, filesystem=system)))
    return BuildReport(
        sources=tuple(source.described(s, seen.wnids.get(n, set())) for n, s in enumerate(found)),
        classes=len(tally.classes),
        images=tally.images,
        shards=tally.shards,
        bytes={split: sum(shard.bytes for shard in shards) for split, shards in splits.items()},
        files=seen.files,
        quarantined_count=seen.reasons.total(),
        quarantined=tuple(seen.first),
        reasons=dict(seen.reasons.most_common()),
        modes=dict(seen.modes.most_common()),
        duplicates=tally.merged,
        multi_label=tally.multi_label,
        crossing=tally.crossing,
        excluded=tally.excluded,
        left_out=_left_out(tally),
    )


_READ = [*catalogue.QUARANTINE.names, "source", "wnids", "format", "mode"]


class _Seen:
    """What the parts of the catalogue add up to."""

    def __init__(self) -> None:
        self.files = 0
        self.first: list[Quarantined] = []
        self.reasons: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.wnids: dict[int, set[str]] = {}

    def add(self, table: pa.Table) -> pa.Table:
        """Take a part; gives its quarantined rows."""
        self.files += table.num_rows
        for number in pc.unique(table["source"]).to_pylist():
            own = table.filter(pc.equal(table["source"], number))["wnids"]
            found = pc.unique(pc.list_flatten(own)).to_pylist()
            self.wnids.setdefault(number, set()).update(found)
        good = table.filter(pc.equal(table["problem"], "")).group_by(["format", "mode"])
        for row in good.aggregate([([], "count_all")]).to_pylist():
            self.modes[f"{row['format']} {row['mode']}"] += row["count_all"]
        faults = table.filter(pc.not_equal(table["problem"], ""))
        rows = faults.to_pylist()
        self.reasons.update(kind_of(row["problem"]) for row in rows)
        for row in rows[: SHOWN - len(self.first)]:
            self.first.append(Quarantined(row["archive"], row["member"], row["problem"]))
        return faults.select(catalogue.QUARANTINE.names).cast(catalogue.QUARANTINE)


def kind_of(reason: str) -> str:
    """A reason without what belongs to one file only."""
    return re.sub(r"\d[\d,.x]*", "N", reason.split(":")[0].split(", first bytes")[0])


def _left_out(tally: Tally) -> dict[str, int]:
    counts = {
        "in imagenet21k_small_classes (--small-classes takes them)": tally.small_split,
        "class not in the list of --classes": tally.other_class,
        "class with fewer images than --min-per-class": tally.rare_class,
    }
    return {reason: count for reason, count in counts.items() if count}
