"""How a run stands, by its events since its last start; lists, pages and comparisons share it.

finished     it has a result, whether or not the end of its record is written
running      a driver has the lease
stopped      it ended on purpose before its last step, or was rolled back
diverged     its loss was not finite
failed       an error ended it
interrupted  its driver was stopped, or is gone
"""

from collections.abc import Mapping, Sequence

RUNNING, FINISHED, STOPPED, UNREADABLE = "running", "finished", "stopped", "unreadable"
DIVERGED, FAILED, INTERRUPTED = "diverged", "failed", "interrupted"
ENDS = {"FINISHED": STOPPED, "FAILED": FAILED, "KILLED": INTERRUPTED}


def state(events: Sequence[Mapping], *, is_done: bool, has_driver: bool) -> str:
    """How a run stands."""
    if is_done:
        return FINISHED
    if has_driver:
        return RUNNING
    starts = [number for number, event in enumerate(events) if event["event"] == "start"]
    since = events[starts[-1] :] if starts else []
    status = next((event["status"] for event in since if event["event"] == "status"), "KILLED")
    outcomes = [event["tags"].get("outcome") for event in since if event["event"] == "tags"]
    return ended(status, *outcomes)


def ended(status: str, *outcomes: str | None) -> str:
    """How a run without a result stands that ended with a status of MLflow, and such outcomes."""
    return DIVERGED if DIVERGED in outcomes else ENDS[status]
