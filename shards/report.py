"""What a build did: counts, and every file that gives no image with its reason."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


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
    bytes: Mapping[str, int]
    """Bytes of the shards by split."""
    files: int
    """Files that the sources hold."""
    quarantined_count: int
    quarantined: tuple[Quarantined, ...]
    """The first hundred; all are in quarantine.parquet."""
    reasons: Mapping[str, int]
    """Quarantined files by reason."""
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

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BuildReport":
        """Read report.json."""
        fields = json.loads(text)
        fields["quarantined"] = tuple(Quarantined(**entry) for entry in fields["quarantined"])
        for name in ("sources", "notes"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

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
            f"{self.duplicates:,} duplicates merged, {self.excluded:,} excluded"
        )
        lines += [f"left out, {reason}: {count:,}" for reason, count in self.left_out.items()]
        if self.crossing:
            lines.append(f"{self.crossing:,} images lay in more than one split; kept in val")
        lines.append(f"{self.quarantined_count:,} of {self.files:,} files give no image")
        lines += [f"  {count:,} x {reason}" for reason, count in list(self.reasons.items())[:20]]
        lines += [f"  {q.archive} {q.member}: {q.reason}" for q in self.quarantined[:20]]
        return "\n".join([*lines, *self.notes])
