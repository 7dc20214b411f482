"""Waits that end: what does not happen is a failure."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], limit_s: float = 180.0) -> None:
    """Wait until something is so; AssertionError if it is not in this time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"it was not so in {limit_s:.0f} s"
        time.sleep(0.01)
