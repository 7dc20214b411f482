"""Console output of the commands: log lines, stages, progress and tables."""

import logging
import os
import sys
import time
from collections.abc import Collection, Sequence
from typing import TextIO

from tqdm import tqdm

from support.redact import RedactingFormatter

log = logging.getLogger(__name__)

PACKAGES = ("pipeline", "shards", "support", "tune", "vit")
UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


class ConsoleHandler(logging.StreamHandler):
    """Writes log lines above the progress bars of a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        tqdm.write(self.format(record), file=self.stream)


def open_console(*, verbose: bool, stream: TextIO | None = None) -> None:
    """Log the project's messages, if verbose also the libraries', to stream (default: stdout)."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # before Ray is imported
    handler = ConsoleHandler(stream or sys.stdout)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.ERROR)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)


def log_stage(number: int, total: int, text: str) -> None:
    """Log the start of a stage of a run."""
    log.info("[%d/%d] %s", number, total, text)


class Progress:
    """Progress of a long operation: a bar on a terminal, otherwise a line every few seconds.

    The clock starts at the first call, so that the start of Ray does not distort the ETA.
    """

    def __init__(self, label: str, unit: str = "images", every_s: float = 5.0) -> None:
        self._label, self._unit, self._every_s = label, unit, every_s
        self._bar: tqdm | None = None
        self._first: tuple[float, int] | None = None
        self._last_s = float("-inf")

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units are done; `note` is shown with the progress."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if sys.stdout.isatty():
            self._draw(done, total, note)
        elif done == total or now - self._last_s >= self._every_s:
            self._last_s = now
            log.info("%s", self.line(done, total, note, now))

    def line(self, done: int, total: int, note: str, now: float) -> str:
        """Format the progress line; `now` is a time of the monotonic clock."""
        start_s, start = self._first or (now, done)
        seconds = (now - start_s) / (done - start) * (total - done) if done > start else None
        eta = "-" if seconds is None else duration(seconds)
        share = done / total if total else 1.0
        note = f"  {note}" if note else ""
        return f"{self._label:<9}  {done:,}/{total:,} {self._unit}  {share:6.1%}{note}  eta {eta}"

    def _draw(self, done: int, total: int, note: str) -> None:
        if self._bar is None:
            options = {"unit": f" {self._unit}", "leave": False, "dynamic_ncols": True}
            options["file"] = sys.stdout  # errors may be redirected
            self._bar = tqdm(desc=self._label, total=total, initial=done, **options)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """Format a duration in its two largest units: 42s, 3m05s, 7h12m, 12d04h."""
    seconds = round(seconds)
    for size, unit, part, part_unit in UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // part:02d}{part_unit}"
    return f"{seconds}s"


def table(rows: Sequence[Sequence[str]], words: Collection[int] = (0,)) -> str:
    """Align the columns of rows: those of words to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if number in words else ">" for number in range(len(widths))]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return "\n".join(form.format(*row).rstrip() for row in rows)
