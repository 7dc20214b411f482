"""Run tasks on a Ray cluster: the one module of shards that imports Ray.

build(sources, out, config, run=ray_map)
on_every_node(function, argument) -> [function(argument, "h1 (10.0.0.1)"), ...]
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from support import code

TASKS_PER_CPU = 2
RETRIES = 3
END = object()
# seconds in which a node must have answered, with a cold disk and its first process of Python
ANSWER_S = 120.0
# Ray hands a submitted job its settings in this variable
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def start(workers: int | None, *, verbose: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine with this many CPUs.

    The processes of the cluster run this process's code, whatever is installed on their nodes.
    They get no environment variable from here: Ray shows those of a job to all who see its
    dashboard, so every node needs credentials for the object store of its own.

    Args:
        workers: CPUs of a Ray on this machine; None counts its cores.
        verbose: Show the output of Ray, and start its dashboard.
    """
    if ray.is_initialized():
        return
    output = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "include_dashboard": None if verbose else False,
    }
    if "RAY_ADDRESS" not in os.environ:
        ray.init(address="local", num_cpus=workers, **output)
    elif job_brings_code():
        ray.init(**output)
    else:
        # as the working directory, because only that has precedence over a folder of another
        # node that has the same path as the driver's
        with code.copied() as folder:
            ray.init(runtime_env={"working_dir": str(folder)}, **output)


def job_brings_code() -> bool:
    """Whether this process is a job that was submitted with its code, which Ray gives all nodes."""
    runtime_env = json.loads(os.environ.get(JOB, "{}")).get("runtime_env") or {}
    return not {"working_dir", "py_modules"}.isdisjoint(runtime_env)


def ray_map(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    careful: Callable[[Any], Any] | None = None,
) -> Iterator[Any]:
    """Apply function to items in Ray tasks and yield the results in the order of completion.

    The number of submitted tasks is bounded, and items are taken as they are needed. A task is
    tried again, RETRIES times, if its process is killed or its storage fails; if its process is
    still killed, `careful` is called instead, if given. An error that remains is raised here as it
    was raised there, and the other tasks are cancelled.
    """
    tasks = _Tasks(function, careful)
    remaining, is_open = iter(items), True
    try:
        while is_open or tasks.running:
            # looked up again and again: an autoscaler brings nodes for the tasks that wait
            window = max(2, TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
            has_room = is_open and len(tasks.running) < window
            # an item may take long to come: what is done meanwhile is not kept waiting
            yield from tasks.results(timeout_s=0 if has_room else None)
            if has_room:
                item = next(remaining, END)
                is_open = item is not END
                if is_open:
                    tasks.submit(item)
    finally:
        for reference in tasks.running:
            ray.cancel(reference)


class _Tasks:
    """The tasks of a map that are running."""

    def __init__(
        self, function: Callable[[Any], Any], careful: Callable[[Any], Any] | None
    ) -> None:
        # Ray's own retries would never end for a task that runs out of memory
        self._task = ray.remote(num_cpus=1, max_retries=0)(_call)
        self._function, self._careful = ray.put(function), careful and ray.put(careful)
        self.running: dict[ray.ObjectRef, tuple[Any, int]] = {}
        """Item and number of earlier attempts of each."""

    def submit(self, item: Any, attempts: int = 0) -> None:  # noqa: ANN401
        """Start the task of an item."""
        function = self._careful if attempts > RETRIES and self._careful else self._function
        self.running[self._task.remote(function, item)] = item, attempts

    def results(self, timeout_s: float | None) -> Iterator[Any]:
        """The results that are there in this time, without a limit at least one."""
        if not self.running:
            return
        references = list(self.running)
        count = 1 if timeout_s is None else len(references)
        for done in ray.wait(references, num_returns=count, timeout=timeout_s)[0]:
            item, attempts = self.running.pop(done)
            try:
                yield ray.get(done)
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
                if attempts > RETRIES:
                    raise RuntimeError(
                        f"the process of a task was killed {attempts + 1} times, last with: "
                        f"{str(error).splitlines()[0]}; look at the memory of the nodes"
                    ) from error
                self.submit(item, attempts + 1)
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
                    raise cause from None
                if attempts >= RETRIES:
                    raise cause from None
                self.submit(item, attempts + 1)


def on_every_node(
    function: Callable[[Any, str], Any], argument: object, timeout_s: float = ANSWER_S
) -> list[Any]:
    """Call function(argument, "NAME (ADDRESS)") on all nodes at once, with the name of the node.

    Nodes without CPUs for tasks are asked as well. Raises ValueError that names the nodes which
    could not call it or did not answer in time; a node that disappears meanwhile is left out.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(_call_with)
    calls = {}
    for node, name in alive().items():
        pinned = NodeAffinitySchedulingStrategy(node, soft=False)
        calls[node] = task.options(scheduling_strategy=pinned).remote(function, argument, name)
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout_s)
    results, faults, names = [], [], alive()
    for node, reference in calls.items():
        try:
            results.append(ray.get(reference, timeout=0))
        except RayError as error:
            ray.cancel(reference)
            if node in names:
                faults.append(f"node {names[node]} {_described(error, timeout_s)}")
    if faults:
        raise ValueError(listed(faults))
    return results


def alive() -> dict[str, str]:
    """The nodes that are alive: "NAME (ADDRESS)" by their ids."""
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["Alive"]
    }


def this_node() -> str:
    """The name of the node of this process, as in `alive`."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


def listed(faults: Iterable[str], most: int = 5) -> str:
    """Faults in one text; of many the first ones and their number."""
    faults = list(faults)
    rest = f"; and {len(faults) - most} more" if faults[most:] else ""
    return "; ".join(faults[:most]) + rest


def _described(error: RayError, timeout_s: float) -> str:
    """What is wrong with a node whose call raised this."""
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"has not answered in {timeout_s:.0f} s; look at its load and its logs, or remove it"
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"fails: {type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[-1]}"


def _call(function: Callable[[Any], Any], item: Any) -> Any:  # noqa: ANN401
    return function(item)


def _call_with(function: Callable[[Any, str], Any], argument: Any, node: str) -> Any:  # noqa: ANN401
    return function(argument, node)
