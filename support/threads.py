"""Threads that run beside a block of code.

with beside(target, "name"): ...     target(closing) ends soon after the event `closing` is set
"""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def beside(target: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Run `target` in a thread during the block; at its end set the target's event, and wait."""
    closing = threading.Event()
    thread = threading.Thread(target=target, args=(closing,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()
