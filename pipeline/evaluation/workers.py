"""The processes that predict: one for each GPU of a cluster, or as many as are asked for.

    units that are not on disk -> a share of them for each process, with a feed of its own -> disk

It does not import PyTorch: that takes a process as long as its feed takes to start, and both go on
at the same time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import ray

from pipeline.cluster.autoscaler import possible_nodes
from pipeline.data.feed import NodeFeed
from pipeline.data.stream import Block
from pipeline.evaluation.predictions import PredictionStore, whole_units
from pipeline.evaluation.share import EvalShare

if TYPE_CHECKING:
    from pipeline.evaluation.predict import Evaluator
    from vit.model import ViT


# a worker waits while the driver has not yet written this many of its units
@ray.remote(num_returns="streaming", _generator_backpressure_num_objects=2)
def predict_spans(
    model_refs: Sequence[ray.ObjectRef], spans: Sequence[tuple[int, int]], unit: int
) -> Iterator[Block]:
    """Ray task that predicts for some spans, unit by unit, on its GPU if it has one.

    `model_refs` are those of an Evaluator and of the weights of its model.
    """
    feed = NodeFeed.alone()  # it starts while the model is made
    from pipeline.evaluation.predict import model_of

    evaluator, weights = ray.get(list(model_refs))
    share = EvalShare.of_spans(spans, evaluator.settings.batch_images)
    model = model_of(evaluator.settings, weights)
    yield from whole_units(evaluator.predictions(model, feed, share), unit)


def task_cpus(nodes: Sequence[Mapping[str, float]], tasks: int) -> float:
    """CPUs of each task that predicts, so that half of every node's stay free to read and decode.

    A task on a node without free CPUs would wait forever for its crops. Each GPU takes a task;
    without GPUs all tasks may run on one node. `nodes` are the resources of each.
    """
    gpus = any(node.get("GPU") for node in nodes)
    hosts = [node for node in nodes if node.get("CPU") and (node.get("GPU") or not gpus)]
    if not hosts:
        raise ValueError("no node of the cluster has GPUs and CPUs: its tasks need both")
    return min([1, *(node["CPU"] / (2 * (node["GPU"] if gpus else tasks)) for node in hosts)])


def predict_all(
    evaluator: "Evaluator",
    model: "ViT",
    store: PredictionStore,
    progress: Callable[[int, int], None],
) -> None:
    """Put the predictions for all images into the store; those on disk are not recomputed.

    `progress` is called with the number of images done and their total.
    """
    # nodes with GPUs may still have to come: then the tasks that wait for them bring them
    nodes, gpus = possible_nodes(), int(ray.cluster_resources().get("GPU", 0))
    shares = store.shares(gpus or evaluator.settings.workers)
    done = store.images - sum(stop - start for share in shares for start, stop in share)
    if shares:
        takes_gpu = any(node.get("GPU") for node in nodes)
        cpus = task_cpus(nodes, len(shares))
        task = predict_spans.options(num_gpus=int(takes_gpu), num_cpus=cpus)
        # in a list, so that Ray does not open them, and import PyTorch, before the task has begun
        model_refs = [ray.put(evaluator), ray.put(model.state_dict())]
        running = [task.remote(model_refs, share, store.unit) for share in shares]
        while running:
            (ready,), _ = ray.wait(running, num_returns=1)
            try:
                block = ray.get(next(ready))
            except StopIteration:
                running.remove(ready)
                continue
            store.add(block)
            done += len(block["position"])
            progress(done, store.images)
