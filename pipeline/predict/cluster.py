"""Classification on a Ray cluster: an actor for each GPU, or for each node if there is no GPU.

    files -> chunks -> the actor that is free next: its threads and its GPU -> guesses

Only names of files and classes cross the network; an actor reads its images itself. An actor that
is lost leaves its chunks to the others. One that waits for a busy node, or for one that the
autoscaler has to start, joins when it has started; it is not used where it does not see the images.
"""

import logging
import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from pipeline.cluster.autoscaler import NodeType, Resources, node_types, possible_nodes
from pipeline.evaluation.config import EvaluateConfig
from pipeline.predict.classifier import BATCH, Classifier, Guesses
from pipeline.predict.files import ImageFile, walk
from pipeline.predict.threads import batches, ordered
from shards.build.ray_map import alive, listed, on_every_node, this_node
from vit.model import ViT

log = logging.getLogger(__name__)

# chunks that an actor has at the same time: one is decoded while the other is computed
CHUNKS = 2
# actors that are lost with one chunk before it is taken to be the cause
ATTEMPTS = 4
# seconds between two looks whether actors that have not started are still wanted
LOOK_S = 1.0


class Worker:
    """The actor: classifies chunks with the threads of its share of a node, and with its GPU."""

    def __init__(
        self, settings: EvaluateConfig, weights: Mapping[str, Tensor], top: int, threads: int
    ) -> None:
        """Make the model."""
        torch.set_num_threads(1)
        model = ViT(settings.model)
        model.load_state_dict(weights)
        self._classifier = Classifier(model, settings, top)
        self._pool = ThreadPoolExecutor(threads)

    def ready(self, places: Sequence[str]) -> list[str]:
        """Return when the model is made: what is not seen here, in sentences."""
        return unseen(places, this_node())

    def classify(self, files: Sequence[ImageFile]) -> Guesses:
        """Classify a chunk."""
        parts = self._pool.map(self._classifier, batches(files, self._classifier.batch))
        return Guesses.joined(list(parts))


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one actor gets of a node."""

    node: str | None
    """Ray's id of the node; None for one that is still to come."""
    threads: int
    gpus: int
    """One, or none on a cluster without GPUs."""

    @property
    def chunk(self) -> int:
        """Files that give a batch to each thread."""
        return self.threads * BATCH["cuda" if self.gpus else "cpu"]


def shares(nodes: Mapping[str, Resources], types: Sequence[NodeType], total: int) -> list[Share]:
    """A share for each GPU of the nodes, or for each node if no node can have a GPU.

    `nodes` are the resources of those that are alive, by id, and `types` those that an autoscaler
    can start: its shares follow, as far as the cluster can grow and `total` images fill chunks.
    """
    possible = [*nodes.values(), *(one.resources for one in types if one.most)]
    takes_gpu = any(node.get("GPU") for node in possible)
    found = [each for node, has in nodes.items() for each in of_node(node, has, takes_gpu)]
    coming = [each for one in types for each in of_node(None, one.resources, takes_gpu) * one.most]
    if not found and not coming:
        raise ValueError("no node of the cluster has GPUs and CPUs: its workers need both")
    chunks = math.ceil(total / max(share.chunk for share in found + coming))
    # of the nodes that can be started, as many are alive as there are shares of nodes
    return found + coming[len(found) : max(len(found), chunks)]


def of_node(node: str | None, resources: Resources, takes_gpu: bool) -> list[Share]:
    """The shares of a node; none if it lacks what they need."""
    cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
    count = gpus if takes_gpu else 1
    if not cpus or not count:
        return []
    return [Share(node=node, threads=max(1, cpus // count), gpus=int(takes_gpu))] * count


class Workers:
    """The actors of a cluster; threads call it, each with a chunk."""

    def __init__(self, actors: Sequence[ActorHandle], places: Sequence[str] = ()) -> None:
        """Use each actor as soon as it has started, where it sees the places with the images."""
        self._actors, self._lost = actors, set()
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        starts = {actor.ready.remote(places): number for number, actor in enumerate(actors)}
        self._thread = threading.Thread(target=self._start, args=(starts,), daemon=True)
        self._thread.start()

    def _start(self, starts: dict[ray.ObjectRef, int]) -> None:
        while starts and not self._closed:
            found, _ = ray.wait(list(starts), num_returns=1, timeout=LOOK_S)
            if not found:
                continue
            (ready,) = found
            number = starts.pop(ready)
            try:
                faults = ray.get(ready)
            except RayActorError as error:
                faults = [str(error)]
            if faults:
                self._lose(number, faults[0])
                continue
            for _ in range(CHUNKS):
                self._free.put(number)

    def _lose(self, number: int, fault: str) -> None:
        """Use an actor no more; without any, the threads that wait for one are told."""
        with self._lock:
            if number in self._lost or self._closed:
                return
            self._lost.add(number)
            left = len(self._actors) - len(self._lost)
            reason = fault.strip().partition("\n")[0]
            log.warning("a worker is lost, %d are left: %s", left, reason)
            if not left:
                self._free.put(None)

    def __call__(self, files: Sequence[ImageFile]) -> Guesses:
        """Classify a chunk; RuntimeError if no worker is left, or the chunk ends each of them."""
        for _ in range(ATTEMPTS):
            number = self._free.get()
            if number is None:
                self._free.put(None)  # for the next thread
                raise RuntimeError("all workers are lost; the same command starts anew")
            try:
                guesses = ray.get(self._actors[number].classify.remote(files))
            except RayActorError as error:
                self._lose(number, str(error))
                continue
            self._free.put(number)
            return guesses
        raise RuntimeError(
            f"{ATTEMPTS} workers were lost, one after the other, with the images from "
            f"{files[0].name} to {files[-1].name}; look at the memory of the nodes"
        )

    def close(self) -> None:
        """End the actors, and the threads that wait for one."""
        self._closed = True
        self._free.put(None)
        for actor in self._actors:
            ray.kill(actor)
        self._thread.join()


def by_workers(
    model: ViT, settings: EvaluateConfig, top: int, locations: Sequence[str], total: int
) -> Iterator[tuple[list[ImageFile], Guesses]]:
    """Classify images, `total` in number: chunks of them in their order, with their guesses."""
    possible_nodes()  # there is one now, or one can be started
    resources = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    found = shares(resources, node_types(), total)
    weights = ray.put(model.state_dict())
    actors = [actor(share, settings, weights, top) for share in found]
    workers = Workers(actors, local(locations))
    # every worker gets something
    size = min(max(share.chunk for share in found), math.ceil(total / len(found)))
    try:
        yield from ordered(workers, batches(walk(locations), size), CHUNKS * len(found))
    finally:
        workers.close()


def actor(share: Share, settings: EvaluateConfig, weights: ray.ObjectRef, top: int) -> ActorHandle:
    """Start the actor of a share.

    It reserves one CPU, so that it starts beside what else runs on its node.
    """
    place = NodeAffinitySchedulingStrategy(share.node, soft=True) if share.node else "DEFAULT"
    remote = ray.remote(Worker).options(
        num_cpus=1, num_gpus=share.gpus, max_concurrency=CHUNKS, scheduling_strategy=place
    )
    return remote.remote(settings, weights, top, share.threads)


def check_seen(locations: Sequence[str]) -> None:
    """ValueError if a node of several does not see a file or folder of the driver."""
    places = local(locations)
    if places and len(alive()) > 1:
        faults = [fault for found in on_every_node(unseen, places) for fault in found]
        if faults:
            raise ValueError(listed(faults))


def local(locations: Sequence[str]) -> list[str]:
    """The locations that are none of a store."""
    return [location for location in locations if "://" not in location]


def unseen(places: Sequence[str], node: str) -> list[str]:
    """What this process does not see, in sentences that name its node."""
    return [
        f"{place} is not seen by node {node}: give a folder that every node sees, or an s3:// URI"
        for place in places
        if not Path(place).exists()
    ]
