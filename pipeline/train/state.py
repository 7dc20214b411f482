"""Training state of a run: weights, optimizer and, optionally, an average of the weights.

State(config, device, ...)   the model, replicated (DDP) or sharded (FSDP2) over the workers;
                             HSDP shards within a node and replicates over the nodes
forward, backward, norm, update: one step
capture -> Snapshot: this worker's part of a checkpoint, on the CPU -> files -> restore, with any
of the three and any number of workers
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from pipeline.checkpoint.local import Checkpoint
from pipeline.checkpoint.sharded import Shard, Snapshot, mapped, own_block
from pipeline.checkpoint.stored import StoredTensor, read_state
from pipeline.data.order import largest_share
from pipeline.settings.config import TrainConfig
from pipeline.train.initial import head_of
from pipeline.train.interval import Interval
from pipeline.train.objective import Objective
from pipeline.train.passes import pass_limit
from vit.loss import make_loss
from vit.model import Block, ViT
from vit.optim import Ema, apply_gradients, make_optimizer
from vit.sharded import is_sharded
from vit.weights import load_weights


class State:
    """The model and its optimizer on one worker."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        checkpoint: Checkpoint | None,
        local_world_size: int,
        weights: Path | None = None,
        rows: Sequence[int] | None = None,
        parents: Sequence[int] | None = None,
    ) -> None:
        """Restore a checkpoint, or initialise from the seed; the same on every worker.

        Args:
            config: Settings of the run.
            device: Device of this worker.
            checkpoint: Checkpoint to restore, written by any number of workers.
            local_world_size: Number of workers on this node; ValueError if hsdp is set and the
                nodes have different numbers.
            weights: File or folder of the initial weights, if there is no checkpoint.
            rows: With init_head map, the row of their head for each class, -1 without one.
            parents: Parent of each class, for losses that use the tree; see `vit.loss.make_loss`.
        """
        self.config, self._device = config, device
        self.step = checkpoint.step if checkpoint else 0
        self.num_bad, self.interval = 0, Interval()
        torch.manual_seed(config.seed)
        self.model = ViT(config.model)
        if checkpoint:
            load_weights(self.model, checkpoint.path)
        elif weights:
            how = {"positions": config.init_positions, "head": head_of(config), "rows": rows}
            load_weights(self.model, weights, **how)
        loss_of = make_loss(config.loss, parents=parents, device=device)
        types = config.precision, config.residual
        classes = config.model.num_classes
        objective = Objective(self.model, config.images, loss_of, classes, *types)
        self.mesh = make_mesh(config.parallel, device, local_world_size)
        shards = self.mesh.size(self.mesh.ndim - 1) if self.mesh else 1
        self.pass_limit = pass_limit(config, device, shards)
        """Most images of a forward and backward pass."""
        self._share = largest_share(config.global_batch, torch.distributed.get_world_size())
        self._accumulates = self._share > self.pass_limit
        self.module = self._distributed(objective, device)
        self.forward = self._compiled() if config.compile else self.module
        """The `Objective` of this worker's images."""
        self.optimizer = make_optimizer(self.model, config.optim)
        self.ema = Ema(self.model, config.optim.ema) if config.optim.ema else None
        if checkpoint:
            self._restore(read_state(checkpoint.path))
        self._copies: dict[str, Tensor] = {}

    def _distributed(self, objective: Objective, device: torch.device) -> nn.Module:
        """The objective on the device: as it is, in DDP, or with its model sharded by FSDP2."""
        if self.mesh is None and torch.distributed.get_world_size() == 1:
            return objective.to(device)  # DDP would start a kernel or two a parameter
        if self.mesh is None:
            module = DistributedDataParallel(
                objective.to(device),
                gradient_as_bucket_view=True,
                # a static graph rules out the graph breaks of a compiled model at the buckets, and
                # passes without gradient reduction
                static_graph=not self.config.compile and not self._accumulates,
            )
            module.broadcast_buffers = False  # they are constants; the argument depends on PyTorch
            return module
        # it takes a second, which neither the driver nor a replicated model needs
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # matrices are gathered in the type that autocast would give them; norms and LayerScale, and
        # what is outside of the blocks, in their own
        shard = partial(fully_shard, mesh=self.mesh)
        full = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        half = replace(full, param_dtype=torch.bfloat16)
        for block in self.model.blocks:
            if self.config.precision == "bf16":
                shard(float32_parts(block), mp_policy=full)
                shard(block, mp_policy=half)
            else:
                shard(block, mp_policy=full)
        shard(self.model, mp_policy=full)
        return objective.to(device)  # the rest of it

    def _compiled(self) -> Callable[..., Tensor]:
        """The module, compiled for each size of a pass."""
        mode = "reduce-overhead" if self.config.cuda_graphs else None
        if self.config.cuda_graphs and self._accumulates:
            raise ValueError(
                f"cuda_graphs is set, but a worker's {self._share} images need passes of at most"
                f" {self.pass_limit}, and a graph keeps no gradients between two passes; use more"
                " workers, a larger micro_batch that fits, or no cuda_graphs"
            )
        # the blocks of a sharded model are versions of one function, for each size of a pass and
        # width of labels; beyond the limit PyTorch would not compile them
        versions = 4 * (self.config.model.depth + 4)
        torch._dynamo.config.recompile_limit = max(versions, torch._dynamo.config.recompile_limit)
        return torch.compile(self.module, dynamic=False, mode=mode)

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Context of a forward and backward pass: only the last one of a step reduces gradients."""
        if self.mesh is not None:
            self.model.set_requires_gradient_sync(last)
        elif isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        return nullcontext()

    def norm(self) -> Tensor:
        """Norm of the gradients over all workers: a scalar on the device."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if is_sharded(norm) else norm

    def update(self, loss: Tensor, norm: Tensor) -> None:
        """Clip the gradients, apply them and reset them; nothing waits for the device.

        Weights, moments and average stay as they are if the loss or the norm is not finite; both
        must be the same on all workers.
        """
        skip = torch.isfinite(loss + norm).logical_not().float().view(())
        apply_gradients(self.optimizer, norm, self.config.optim.clip_norm, skip)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, skip)
        self.step += 1

    def skip(self) -> None:
        """Take a step without an update."""
        self.step += 1

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the model has the averaged weights, for evaluations and checkpoints."""
        return self.ema.swapped_into(self.model) if self.ema else nullcontext()

    def capture(self) -> Snapshot:
        """This worker's part of a checkpoint, as copies on the CPU; call it within `averaged`.

        All workers must call it: they send their shards of the model's weights to rank 0, one
        tensor at a time. The copies are overwritten by the next call: write the snapshot first.
        """
        rank = torch.distributed.get_rank()
        state = {"optimizer": self.optimizer.state_dict(), "num_bad": self.num_bad}
        state["interval"] = asdict(self.interval)
        if self.ema:  # within `averaged` it holds the weights before averaging
            state["ema"] = self.ema.state_dict()
        weights = self._gathered(self.model.state_dict(), rank)
        shards, part = [], None
        if self.mesh is None:
            state = mapped(state, self._copy) if rank == 0 else {}
        else:
            part = (rank, self.mesh.shape[-1]) if first_replica(self.mesh) else None
            state = mapped(state, partial(self._described, shards, rank))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # copies to pinned memory are asynchronous
        return Snapshot(weights=weights, state=state if rank == 0 else {}, shards=shards, part=part)

    def _gathered(self, weights: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
        """Copies of whole tensors on rank 0; empty on others, which only send their shards."""
        if self.mesh is not None and not first_replica(self.mesh):
            return {}  # rank 0 gathers within its replica
        copies = {}
        for name, tensor in weights.items():
            if is_sharded(tensor):
                tensor = tensor.full_tensor()
            if rank == 0:
                copies[name] = self._copy(f"model.{name}", tensor)
        return copies

    def _described(
        self, shards: list[Shard], rank: int, name: str, tensor: Tensor
    ) -> dict[str, Any]:
        """What state.json says of a tensor; appends to the shards what this worker writes of it."""
        block, offsets = own_block(tensor)
        writes = first_replica(self.mesh) if is_sharded(tensor) else rank == 0
        if writes and block.numel():
            shards.append(Shard(name=name, tensor=self._copy(name, block), offsets=offsets))
        dtype = str(tensor.dtype).removeprefix("torch.")
        return {"tensor": name, "shape": list(tensor.shape), "dtype": dtype}

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """Copy to the CPU, into the memory of the previous copy of this name; pinned for a GPU."""
        tensor = tensor.detach()
        if hasattr(tensor, "__tensor_flatten__"):  # 8-bit moments are made of several tensors
            names, context = tensor.__tensor_flatten__()
            inner = {
                inside: self._copy(f"{name}.{inside}", getattr(tensor, inside)) for inside in names
            }
            return type(tensor).__tensor_unflatten__(inner, context)
        copy = self._copies.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._copies[name] = copy
        return copy.copy_(tensor, non_blocking=True)

    def _restore(self, state: dict[str, Any]) -> None:
        """Read this worker's part of a checkpoint's state."""
        self.num_bad, optimizer = state["num_bad"], state["optimizer"]
        self.interval = Interval(**state.get("interval", {}))  # older versions saved none
        groups = self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        moments = {int(number): values for number, values in optimizer["state"].items()}
        for number, values in moments.items():
            values.update({k: self._read(k, v, parameters[number]) for k, v in values.items()})
        for group, saved in zip(groups, optimizer["param_groups"], strict=True):
            saved.update({k: self._read(k, v, group[k]) for k, v in saved.items()})
        self.optimizer.load_state_dict({**optimizer, "state": moments})
        if self.ema:
            for name, average in self.ema.weights.items():
                state["ema"]["weights"][name].read(average)
            self.ema.updates = state["ema"]["updates"]
            self.ema.swap(self.model)  # the model of a checkpoint has the averaged weights

    def _read(self, key: str, value: Any, other: Tensor) -> Any:  # noqa: ANN401
        """A value of the optimizer's state; if it is a stored tensor, sharded like `other`."""
        if not isinstance(value, StoredTensor):
            return value
        if self.config.optim.name == "adamw8bit" and value.shape == other.shape != ():
            # 8-bit or not, depending on the size of the shard
            buffer = self.optimizer._new_buffer(other, key == "exp_avg")
            value.read(buffer)
            return buffer
        return value.like(other)


def float32_parts(block: Block) -> list[nn.Module]:
    """The parts of a block with weights that autocast leaves in float32."""
    attention = block.attn
    parts = (block.norm1, attention.q_norm, attention.k_norm, block.ls1, block.norm2, block.ls2)
    return [part for part in parts if part is not None and any(True for _ in part.parameters())]


def make_mesh(parallel: str, device: torch.device, local_world_size: int) -> DeviceMesh | None:
    """The workers by axis: sharded (fsdp), or replicated and sharded (hsdp); None for ddp.

    Raises ValueError on all workers if hsdp is set and the nodes have different numbers of them.
    """
    world_size = torch.distributed.get_world_size()
    if parallel == "ddp":
        return None
    if parallel == "fsdp":
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    torch.distributed.all_gather(sizes, torch.full_like(sizes[0], local_world_size))
    counts = sorted({int(size) for size in sizes})
    if counts != [local_world_size] or world_size % local_world_size:
        raise ValueError(
            f"parallel is hsdp, but the nodes have {' or '.join(map(str, counts))} of the"
            f" {world_size} workers; it needs the same number on each node: set workers to a"
            " multiple of the nodes, or parallel to fsdp"
        )
    shape = (world_size // local_world_size, local_world_size)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def first_replica(mesh: DeviceMesh) -> bool:
    """Whether this worker's shards are those that checkpoints are made of."""
    return mesh.ndim == 1 or mesh.get_local_rank("replicate") == 0
