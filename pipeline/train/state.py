"""What the steps of a run change: weights, optimizer and, if the run keeps one, their average.

State(config, device)   the model, replicated (DDP) or sharded (FSDP2) over the workers
forward, backward, clip, update: one step
capture -> full tensors on the CPU -> a checkpoint -> restore, under either way of parallelism
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.checkpoint.local import Checkpoint, weights_of
from pipeline.settings.config import TrainConfig
from vit.model import ViT
from vit.optim import Ema, make_optimizer
from vit.weights import load_weights


class State:
    """The model and its optimizer on one worker."""

    def __init__(self, config: TrainConfig, device: torch.device, found: Checkpoint | None) -> None:
        """From a checkpoint, or as the seed initialises it; every worker alike."""
        self.config = config
        self.step = found.step if found else 0
        self.num_bad = 0
        torch.manual_seed(config.seed)
        self.model = ViT(config.model)
        if found:
            load_weights(self.model, found.path)
        elif config.init_from:
            load_weights(
                self.model,
                weights_of(config.init_from),
                positions=config.init_positions,
                head=config.init_head,
            )
        self.module = self._parallel(device)
        self.forward = torch.compile(self.module) if config.compile else self.module
        self.optimizer = make_optimizer(self.model, config.optim)
        self.ema = Ema(self.model, config.optim.ema) if config.optim.ema else None
        if found:
            self._restore(found.state())

    def _parallel(self, device: torch.device) -> nn.Module:
        """The model on the device, wrapped for the workers to compute it together."""
        if self.config.parallel == "ddp":
            return DistributedDataParallel(
                self.model.to(device),
                gradient_as_bucket_view=True,
                # a compiled model is cut at the buckets, which a static graph rules out, and so
                # are passes without reduction
                static_graph=not self.config.compile and not accumulates(self.config),
            )
        half = torch.bfloat16 if self.config.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        mesh = torch.distributed.init_device_mesh(
            device.type, (torch.distributed.get_world_size(),)
        )
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        return fully_shard(self.model, mesh=mesh, mp_policy=policy)

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Context of a forward and backward pass: only the last one of a step reduces gradients."""
        if isinstance(self.module, DistributedDataParallel):
            return nullcontext() if last else self.module.no_sync()
        self.module.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self) -> Tensor:
        """Clip the gradients; their norm over all workers before that, a scalar."""
        limit = self.config.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self) -> None:
        """Apply the gradients and forget them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model)
        self.step += 1

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the model has the weights that are evaluated and kept."""
        return self.ema.swapped_into(self.model) if self.ema else nullcontext()

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, and what else a checkpoint holds, as copies on the CPU; within `averaged`.

        All workers call it: sharded tensors are gathered.
        """
        held = {"optimizer": self.optimizer.state_dict(), "num_bad": self.num_bad}
        if self.ema:  # within `averaged` it holds the weights that are trained
            held["ema"] = self.ema.state_dict()
        return mapped(self.model.state_dict(), whole), mapped(held, whole)

    def _restore(self, held: dict[str, Any]) -> None:
        self.num_bad = held["num_bad"]
        optimizer = held["optimizer"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, tensors in optimizer["state"].items():
            for name, tensor in tensors.items():
                tensors[name] = alike(tensor, parameters[number])
        self.optimizer.load_state_dict(optimizer)
        if self.ema:
            average = held["ema"]
            for name, own in self.ema.weights.items():
                average["weights"][name] = alike(average["weights"][name], own)
            self.ema.load_state_dict(average)
            self.ema.swap(self.model)  # a checkpoint's model is the average


def accumulates(config: TrainConfig) -> bool:
    """Whether any worker needs more than one pass for its share of a global batch."""
    pairs = -(-config.global_batch // 2)
    return 2 * -(-pairs // torch.distributed.get_world_size()) > config.micro_batch


def mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """The same dictionaries and lists with a function applied to their tensors."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: mapped(item, function) for name, item in tree.items()}
    if isinstance(tree, list):
        return [mapped(item, function) for item in tree]
    return tree


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU; of a sharded tensor all of it, for which all workers must call."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().cpu()
    return tensor.detach().to("cpu", copy=True)


def alike(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor in shards as `other` is, if that is sharded and has its shape."""
    if isinstance(other, DTensor) and tensor.shape == other.shape:
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor
