"""Run tasks on a Ray cluster: the one module of shards that imports Ray.

build(sources, out, config, run=ray_map)
on_every_node(function, argument) -> [function(argument, "h1 (10.0.0.1)"), ...]
"""

import itertools
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from support import code

TASKS_PER_CPU = 2
RETRIES = 3
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

    The number of submitted tasks is bounded. A task is retried if its worker dies or its storage
    fails; if its workers keep dying, `careful` is called instead, if given. If it keeps failing,
    its error is raised here and the other tasks are cancelled.
    """
    task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[OSError])(_call)
    functions = {False: ray.put(function), True: ray.put(careful)}
    remaining = iter(items)
    running: dict[ray.ObjectRef, tuple[Any, bool]] = {}
    try:
        while True:
            # looked up again and again: an autoscaler brings nodes for the tasks that wait
            window = max(2, TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
            for item in itertools.islice(remaining, max(0, window - len(running))):
                running[task.remote(functions[False], item)] = item, False
            if not running:
                return
            (done,), _ = ray.wait(list(running), num_returns=1)
            item, is_careful = running.pop(done)
            try:
                result = ray.get(done)
            except (WorkerCrashedError, OutOfMemoryError):
                if careful is None or is_careful:
                    raise
                running[task.remote(functions[True], item)] = item, True
            else:
                yield result
    finally:
        for reference in running:
            ray.cancel(reference)


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
