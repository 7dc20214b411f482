"""The batches of one worker: its share of every global batch, on its device, ahead of their use.

feed of the node (pipeline.data.feed) -> rows of this worker -> host buffer -> device
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
import torch.distributed
from torch import Tensor

from pipeline.checkpoint.agreement import gathered
from pipeline.data import feed as node_feed
from pipeline.data.budget import NodeBudget
from pipeline.data.feed import NodeFeed
from pipeline.data.order import RankShare
from pipeline.data.reader import SampleReader, View, without_unreadable
from pipeline.data.staging import Staged, Staging
from pipeline.data.stream import Block, Stream, ahead
from pipeline.data.tasks import StepRanges
from pipeline.settings.config import DataConfig
from pipeline.train.job import Job


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One worker's share of a global batch, on its device."""

    images: Tensor
    """(b, S, S, 3) uint8."""
    labels: Tensor
    """(b, M) int64, padded with -1; all -1 for an image that could not be read."""
    keys: np.ndarray
    """(b,) str."""
    faults: list[str]
    """Description of each image that could not be read."""


def open_feed(data: DataConfig) -> NodeFeed:
    """Join the feed of this worker's node, which its first worker starts; all workers call it."""
    context, world = ray.get_runtime_context(), torch.distributed.get_world_size()
    rank, node = torch.distributed.get_rank(), context.get_node_id()
    cpus = context.get_assigned_resources().get("CPU", 0.0)
    nodes = gathered((node, cpus))
    ranks = ranks_of(node, [other for other, _ in nodes])
    actor = None
    if rank == ranks[0]:
        budget = NodeBudget(
            node=node,
            reserved_cpus=sum(reserved for other, reserved in nodes if other == node),
            decode_on=data.decode_on,
            feeds=len({other for other, _ in nodes}),
        )
        actor = node_feed.start(budget, len(ranks))
    actor = gathered(actor)[ranks[0]]
    return NodeFeed(actor=actor, ranks=ranks, rank=rank, world_size=world)


def ranks_of(node: str, nodes: Sequence[str]) -> range:
    """Ranks of the workers of a node, given the node of each rank."""
    ranks = [rank for rank, other in enumerate(nodes) if other == node]
    if ranks[-1] - ranks[0] >= len(ranks):
        raise RuntimeError(
            f"the ranks of node {node} are {ranks}; a node's share of a batch is that of "
            f"neighbouring ranks, as Ray Train numbers them"
        )
    return range(ranks[0], ranks[-1] + 1)


def device_batches(job: Job, feed: NodeFeed, step: int, device: torch.device) -> Iterator[Batch]:
    """The worker's batches from `step` on; reading starts with the call."""
    config = job.config
    reader = SampleReader(
        dataset=job.train,
        view=View(images=config.images, size=config.model.image_size, seed=config.seed),
        verify=config.data.verify,
        skip=config.data.max_bad_samples > 0,
    )

    def ranges(share: RankShare) -> StepRanges:
        return StepRanges(share=share, first=step, last=job.total_steps)

    first, last, own = (
        RankShare.of(rank, feed.world_size, config.global_batch)
        for rank in (feed.ranks[0], feed.ranks[-1], feed.rank)
    )
    node = RankShare(global_batch=config.global_batch, low=first.low, high=last.high)
    stream = Stream(
        reader=reader,
        order=job.order,
        ranges=ranges(node),
        task_samples=config.data.task_samples,
        buffer_gib=config.data.buffer_gib,
    )
    staging = Staging(device)

    def staged(pieces: list[Block]) -> tuple[Staged, list[Block]]:
        images = [
            {
                "images": piece["images"][:, 0],
                "labels": without_unreadable(piece["labels"], piece["fault"]),
            }
            for piece in pieces
        ]
        texts = [{name: piece[name] for name in ("key", "fault")} for piece in pieces]
        return staging(images, ("images", "labels")), texts

    batches = map(staged, feed.batches(stream, ranges(own)))
    return map(on_device, ahead(batches, config.data.prefetch_batches))


def on_device(item: tuple[Staged, list[Block]]) -> Batch:
    """The batch of its columns on the device, and its texts."""
    staged, texts = item
    columns = staged.on_device()
    return Batch(
        images=columns["images"],
        labels=columns["labels"],
        keys=np.concatenate([text["key"] for text in texts]),
        faults=[str(fault) for text in texts for fault in text["fault"] if fault],
    )
