"""The fits of a linear probe to features on disk: on a GPU of the cluster, or in this process.

    PredictionStore -> its units, here -> Rows, in the memory of one node -> Fit after Fit

A fit on a GPU needs the features in the memory of one node, as float32: on the GPU as far as they
have room there (`logistic.has_room`), the others beside it. A fit without a GPU maps the files, and
needs no memory for them.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.autoscaler import possible_nodes
from pipeline.data.stream import Block
from pipeline.evaluation.logistic import Fit, Rows, search
from pipeline.evaluation.predictions import PredictionStore

# units that are read ahead of the one that is copied
AHEAD = 2


def fits_of(store: PredictionStore, held_out: np.ndarray, classes: int) -> Iterator[Fit]:
    """The fits of the search, on a GPU if the cluster has any; `held_out` is as in `Rows.of`.

    The files are on this node, and the GPU may be on another: it asks for unit after unit, so that
    Ray's stores hold a few at a time.
    """
    if not any(node.get("GPU") for node in possible_nodes()):
        units = map(store.readable, range(store.num_units))
        yield from search(Rows.of(units, held_out, classes, torch.device("cpu")))
        return
    task = search_in_task.options(num_gpus=1)
    for ref in task.remote(reader_of(store), store.num_units, held_out, classes):
        yield ray.get(ref)


def reader_of(store: PredictionStore) -> ActorHandle:
    """A UnitReader on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return UnitReader.options(scheduling_strategy=here).remote(store)


@ray.remote(num_cpus=0)
class UnitReader:
    """Actor that reads units where their files are."""

    def __init__(self, store: PredictionStore) -> None:
        self._store = store

    def block(self, unit: int) -> Block:
        """Features and labels of the images of a unit that could be read."""
        return self._store.readable(unit)


@ray.remote(num_returns="streaming")
def search_in_task(
    reader: ActorHandle, num_units: int, held_out: np.ndarray, classes: int
) -> Iterator[Fit]:
    """Ray task that searches in the units of a UnitReader, on its GPU if it has one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield from search(Rows.of(sent(reader, num_units), held_out.copy(), classes, device))


def sent(reader: ActorHandle, num_units: int) -> Iterator[Block]:
    """All units of a UnitReader, in order."""
    coming = deque()
    for unit in range(num_units + AHEAD):
        if unit < num_units:
            coming.append(reader.block.remote(unit))
        if unit >= AHEAD and coming:
            # copied, as arrays in Ray's store keep their room there and cannot be written to
            columns = ray.get(coming.popleft())
            yield {name: column.copy() for name, column in columns.items()}
            del columns
