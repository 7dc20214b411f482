"""Training state of a run: weights, optimizer and, optionally, an average of the weights.

State(config, device)   the model, replicated (DDP) or sharded (FSDP2) over the workers
forward, backward, clip, update: one step
capture -> full tensors on the CPU -> a checkpoint -> restore, with DDP or FSDP2
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

    def __init__(
        self, config: TrainConfig, device: torch.device, checkpoint: Checkpoint | None
    ) -> None:
        """Restore a checkpoint, or initialise from the seed; the same on every worker."""
        self.config = config
        self.step = checkpoint.step if checkpoint else 0
        self.num_bad = 0
        torch.manual_seed(config.seed)
        self.model = ViT(config.model)
        if checkpoint:
            load_weights(self.model, checkpoint.path)
        elif config.init_from:
            how = {"positions": config.init_positions, "head": config.init_head}
            load_weights(self.model, weights_of(config.init_from), **how)
        self.module = self._distributed(device)
        self.forward = torch.compile(self.module) if config.compile else self.module
        self.optimizer = make_optimizer(self.model, config.optim)
        self.ema = Ema(self.model, config.optim.ema) if config.optim.ema else None
        if checkpoint:
            self._restore(checkpoint.state())

    def _distributed(self, device: torch.device) -> nn.Module:
        """The model on the device, wrapped in DDP or FSDP2."""
        if self.config.parallel == "ddp":
            return DistributedDataParallel(
                self.model.to(device),
                gradient_as_bucket_view=True,
                # a static graph rules out the graph breaks of a compiled model at the buckets, and
                # passes without gradient reduction
                static_graph=not self.config.compile and not accumulates(self.config),
            )
        half = torch.bfloat16 if self.config.precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        world_size = torch.distributed.get_world_size()
        mesh = torch.distributed.init_device_mesh(device.type, (world_size,))
        for module in (*self.model.blocks, self.model):
            fully_shard(module, mesh=mesh, mp_policy=policy)
        return self.model

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Context of a forward and backward pass: only the last one of a step reduces gradients."""
        if isinstance(self.module, DistributedDataParallel):
            return nullcontext() if last else self.module.no_sync()
        self.module.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self) -> Tensor:
        """Clip the gradients, and return their norm before that, over all workers: a scalar."""
        limit = self.config.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self) -> None:
        """Apply the gradients and reset them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model)
        self.step += 1

    def skip(self) -> None:
        """Take a step without an update."""
        self.step += 1

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the model has the averaged weights, for evaluations and checkpoints."""
        return self.ema.swapped_into(self.model) if self.ema else nullcontext()

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, and the other state of a checkpoint, as copies on the CPU; within `averaged`.

        All workers must call it, because sharded tensors are gathered.
        """
        state = {"optimizer": self.optimizer.state_dict(), "num_bad": self.num_bad}
        if self.ema:  # within `averaged` it holds the weights before averaging
            state["ema"] = self.ema.state_dict()
        return mapped(self.model.state_dict(), full), mapped(state, full)

    def _restore(self, state: dict[str, Any]) -> None:
        self.num_bad, optimizer = state["num_bad"], state["optimizer"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, tensors in optimizer["state"].items():
            for name, tensor in tensors.items():
                tensors[name] = sharded_like(tensor, parameters[number])
        self.optimizer.load_state_dict(optimizer)
        if self.ema:
            weights = state["ema"]["weights"]
            for name, current in self.ema.weights.items():
                weights[name] = sharded_like(weights[name], current)
            self.ema.load_state_dict(state["ema"])
            self.ema.swap(self.model)  # the model of a checkpoint has the averaged weights


def accumulates(config: TrainConfig) -> bool:
    """Whether any worker needs more than one pass for its share of a global batch."""
    pairs = -(-config.global_batch // 2)
    return 2 * -(-pairs // torch.distributed.get_world_size()) > config.micro_batch


def mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    """A copy of nested dictionaries and lists with a function applied to their tensors."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: mapped(item, function) for name, item in tree.items()}
    if isinstance(tree, list):
        return [mapped(item, function) for item in tree]
    return tree


def full(tensor: Tensor) -> Tensor:
    """A copy on the CPU; a sharded tensor is gathered, for which all workers must call this."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().cpu()
    return tensor.detach().to("cpu", copy=True)


def sharded_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor sharded like `other`, if that is sharded and has the same shape."""
    if isinstance(other, DTensor) and tensor.shape == other.shape:
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor
