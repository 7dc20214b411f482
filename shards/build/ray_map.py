"""Run tasks on a Ray cluster: the one module of shards that imports Ray.

build(sources, out, config, run=ray_map)
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

TASKS_PER_CPU = 2
RETRIES = 3


def start(workers: int | None) -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine with this many workers."""
    if ray.is_initialized():
        return
    local = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    ray.init(
        **({} if "RAY_ADDRESS" in os.environ else local),
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def ray_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Apply function to items in Ray tasks and yield the results in the order of completion.

    The number of submitted tasks is bounded. A task is retried if its worker dies or its storage
    fails; if it keeps failing, its error is raised here and the other tasks are cancelled.
    """
    task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[OSError])(_call)
    shared = ray.put(function)
    remaining = iter(items)
    window = max(2, TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
    running: list[ray.ObjectRef] = []
    try:
        while True:
            for item in itertools.islice(remaining, window - len(running)):
                running.append(task.remote(shared, item))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            yield ray.get(done[0])
    finally:
        for reference in running:
            ray.cancel(reference)


def _call(function: Callable[[Any], Any], item: Any) -> Any:  # noqa: ANN401
    return function(item)
