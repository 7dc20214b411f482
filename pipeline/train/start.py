"""What an attempt starts from: one checkpoint, named by rank 0 and loaded by all, or an error.

rank 0: newest complete checkpoint -> step and digest -> all ranks
first worker of each node: fetch it, check every byte;  then every worker: compare the digest
"""

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path

import torch.distributed

from pipeline.checkpoint.agreement import gathered
from pipeline.checkpoint.local import Checkpoint
from pipeline.train.job import Job


def agreed_checkpoint(job: Job, rank: int, local_rank: int) -> Checkpoint | None:
    """The checkpoint from which all workers start; None if the run has none.

    All workers must call it. Raises RuntimeError on all of them if one of them cannot load exactly
    the checkpoint that rank 0 has named.
    """
    named = [job.checkpoints.latest() if rank == 0 else None]
    torch.distributed.broadcast_object_list(named)
    if not named[0]:
        return None
    # a node may keep its copies elsewhere than that of rank 0
    path = job.checkpoints.folder / named[0].path.name
    checkpoint: Checkpoint = dataclasses.replace(named[0], path=path)

    def fetch() -> None:
        job.checkpoints.drop_copies(but=checkpoint)
        job.checkpoints.fetch(checkpoint)

    # in a folder that all nodes see, one of them reads every byte to check it
    fetches = local_rank == 0 if job.checkpoints.uri else rank == 0

    def compare() -> None:
        digest = Checkpoint.open(checkpoint.path).digest
        if digest != checkpoint.digest:
            raise RuntimeError(
                f"{checkpoint.path} has digest {digest[:12]}, rank 0 starts from "
                f"{checkpoint.digest[:12]}"
            )

    together(fetch if fetches else None, rank)
    together(compare, rank)
    return checkpoint


def initial_weights(job: Job, rank: int, local_rank: int) -> Path | None:
    """Where the initial weights are on this node; None if the run has none.

    All workers must call it. Raises RuntimeError on all of them if a node cannot get them.
    """
    if not (weights := job.weights):
        return None
    fetches = local_rank == 0 and weights.copy and weights.copy.home.uri
    together(weights.copy.fetch if fetches else None, rank)
    return weights.on_node


def together(action: Callable[[], None] | None, rank: int) -> None:
    """Run an action on this worker; RuntimeError on all workers if it fails on any.

    All workers must call it, each with its action or None.
    """
    problem = ""
    try:
        if action:
            action()
    except (OSError, ValueError, RuntimeError) as error:
        problem = f"rank {rank} on node {socket.gethostname()}: {error}"
    if found := [text for text in gathered(problem) if text]:
        more = f" (and {len(found) - 3} others)" if found[3:] else ""
        raise RuntimeError(f"{'; '.join(found[:3])}{more}")
