"""The session of a command with Ray."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import ray

from shards.build import ray_map


@contextlib.contextmanager
def ray_session(*, extra_cpus: int, verbose: bool) -> Iterator[None]:
    """Use Ray if it is running; otherwise join RAY_ADDRESS with our code, or start it.

    SIGTERM ends the block like Ctrl-C, so that a run can write a checkpoint.

    Args:
        extra_cpus: CPUs that a local Ray counts in addition to those of the machine. The workers of
            a run reserve theirs, and all cores may still read and decode.
        verbose: Show the output of Ray, and start its dashboard.
    """
    if ray.is_initialized():
        yield
        return
    ray_map.start(os.cpu_count() + extra_cpus, verbose=verbose)
    if threading.current_thread() is threading.main_thread():
        # the handler that Ray has set would end the process at once
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        ray.shutdown()
