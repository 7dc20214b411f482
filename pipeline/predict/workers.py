"""Who classifies: the threads of this process, or a Ray cluster.

    files -> batches -> a classifier in each thread -> guesses, in the order of the files

One process is enough for a GPU and all cores of a machine, and starts without Ray. Where a cluster
runs, and on a machine with several GPUs, `pipeline/predict/cluster.py` does the same.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence

import torch

from pipeline.evaluation.model import EvalModel
from pipeline.predict.classifier import Classifier, Guesses
from pipeline.predict.files import ImageFile, walk
from pipeline.predict.threads import batches, ordered

Classified = Iterator[tuple[list[ImageFile], Guesses]]
"""Batches of files, each with its guesses."""


@contextlib.contextmanager
def classified(
    eval_model: EvalModel, top: int, locations: Sequence[str], total: int, *, verbose: bool
) -> Iterator[Classified]:
    """Classify the images at the locations, `total` in number, in their order.

    It ends with the block. ValueError if a node of the cluster does not see a location.
    """
    settings, model = eval_model.evaluation(), eval_model.load(eval_model.model)
    if "RAY_ADDRESS" not in os.environ and torch.cuda.device_count() < 2:
        answers = by_threads(Classifier(model, settings, top), locations, total)
        with contextlib.closing(answers):
            yield answers
        return
    from pipeline.cluster.session import ray_session  # Ray takes seconds to import
    from pipeline.predict import cluster

    with ray_session(extra_cpus=0, verbose=verbose):
        cluster.check_seen(locations)
        answers = cluster.by_workers(model, settings, top, locations, total)
        with contextlib.closing(answers):
            yield answers


def by_threads(classifier: Classifier, locations: Sequence[str], total: int) -> Classified:
    """Classify with all cores of this machine."""
    cores = os.cpu_count()
    size = min(classifier.batch, math.ceil(total / cores))
    threads = min(cores, math.ceil(total / size))
    torch.set_num_threads(max(1, cores // threads))
    return ordered(classifier, batches(walk(locations), size), threads)
