"""Tasks spread over a Ray cluster: the one file of shards that imports Ray.

build(sources, out, config, run=ray_map)
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

TASKS_PER_CPU = 2
RETRIES = 3


def start(workers: int | None) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray here with this many workers."""
    if ray.is_initialized():
        return
    local = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    ray.init(**({} if "RAY_ADDRESS" in os.environ else local), log_to_driver=False)


def ray_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Apply function to items in Ray tasks and yield the results as they come.

    A bounded number is under way at a time. A task whose worker dies, or whose storage fails, is
    tried again; what fails for good is raised here, and the others are cancelled.
    """
    task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[OSError])(_call)
    shared = ray.put(function)
    waiting = iter(items)
    window = max(2, TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
    running: list[ray.ObjectRef] = []
    try:
        while True:
            while len(running) < window:
                try:
                    running.append(task.remote(shared, next(waiting)))
                except StopIteration:
                    break
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            yield ray.get(done[0])
    finally:
        for reference in running:
            ray.cancel(reference)


def _call(function: Callable[[Any], Any], item: Any) -> Any:  # noqa: ANN401
    return function(item)
