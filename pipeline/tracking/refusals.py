"""What MLflow refuses: it is set aside in a file and named once, and nothing else waits for it.

a point, parameter, tag or event that is refused -> refused.jsonl in the folder of the run
a run that takes nothing, such as a deleted one  -> RunRefused: its record waits on disk
"""

import logging
from pathlib import Path

from pipeline.tracking.journal import REFUSED
from support.files import append_line, read_lines
from support.redact import redact, redacted

log = logging.getLogger(__name__)

METRIC = "metric"
# what tells one line of the file from another: the reason may be put in other words
IDENTITY = ("server", "what", "name", "step", "time", "value")


class Refused(Exception):
    """The server rejects this, now and later; or it cannot be made."""


class RunRefused(Exception):
    """The server takes nothing of this run until somebody acts; the message says who and how."""


class Refusals:
    """What one server has refused of one run's record."""

    def __init__(self, run_dir: Path, server: str) -> None:
        """Continue the file in the folder of a run; `server` is named in each line."""
        self._path, self._server = run_dir / REFUSED, server
        lines = [line for line, _ in read_lines(self._path)]
        self._known = {identity(line) for line in lines}
        self._warned: set[tuple[str, str]] = set()
        self.metrics = {
            line["name"] for line in lines if line["server"] == server and line["what"] == METRIC
        }
        """Names of metrics of which the server lacks points."""

    def add(
        self,
        what: str,
        name: str,
        reason: object,
        *,
        step: int | None = None,
        time: float | None = None,
        value: object = None,
    ) -> None:
        """Set something aside once, with the server's reason; warns once for each name.

        `what` is "metric", "param", "tag" or the kind of an event; `time` in seconds.
        """
        about = {"server": self._server, "what": what, "name": name}
        about |= {"step": step, "time": time, "value": value}
        line = redacted({**about, "reason": brief(reason)})
        if identity(line) in self._known:
            return
        append_line(self._path, line)
        self._known.add(identity(line))
        if what == METRIC:
            self.metrics.add(name)
        if (what, name) not in self._warned:
            self._warned.add((what, name))
            log.warning(
                "MLflow does not take %s %s (%s); all that it refuses is in %s",
                *(what, name, line["reason"], self._path),
            )


def identity(line: dict) -> tuple:
    """What tells a line from another; the values of JSON."""
    return tuple(repr(line[name]) for name in IDENTITY)


def brief(error: object) -> str:
    """The first line of an error, without secrets."""
    return (redact(str(error)).splitlines() or [type(error).__name__])[0][:300]
