"""What a person sees of a run: the step at work, one aligned line an interval, a table."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence

from support.redact import RedactingFormatter

log = logging.getLogger(__name__)

Record = Mapping[str, str | int | float]


def open_console(*, verbose: bool) -> None:
    """Send the project's lines to standard output; those of the libraries too when verbose."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # before Ray is imported
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.ERROR)
    for package in ("pipeline", "shards", "tune", "vit"):
        logging.getLogger(package).setLevel(logging.INFO)


def log_stage(number: int, total: int, text: str) -> None:
    """Say which step of the line is at work."""
    log.info("[%d/%d] %s", number, total, text)


def record_line(record: Record, total: int) -> str | None:
    """One aligned line for a record, or None for a kind that has none."""
    step = record["step"]
    place = f"step {step:>{len(f'{total:,}')},}/{total:,}  {step / total:6.1%}"
    if record["kind"] == "train":
        return (
            f"{place}  loss {record['train/loss']:7.4f}  lr {record['lr']:.2e}  "
            f"{record['images_per_s']:7,.0f} img/s  wait {record['wait']:5.1%}  "
            f"mem {record['memory_gib']:5.1f} GiB  eta {duration(record['eta_s'])}"
        )
    if record["kind"] == "eval":
        return (
            f"{place}  val/loss {record['val/loss']:.4f}  top-1 {record['val/top1']:.4f}  "
            f"top-5 {record['val/top5']:.4f}"
        )
    return None


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 42s, 3m05s, 7h12m, 12d04h."""
    seconds = round(seconds)
    for size, unit, next_size, next_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // next_size:02d}{next_unit}"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
