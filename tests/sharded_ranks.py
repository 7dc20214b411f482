"""What the processes of tests/test_pipeline_checkpoint_sharded.py do, world after world.

Each phase has a process group of its own, and leaves what it found in results/PHASE-RANK.pt.
"""

import importlib.util
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from pipeline.checkpoint.agreement import Agreement
from pipeline.checkpoint.local import Checkpoint
from pipeline.checkpoint.sharded import mapped
from pipeline.data.order import RankShare
from pipeline.settings.config import TrainConfig
from pipeline.train.batches import Batch
from pipeline.train.state import State, make_mesh
from pipeline.train.step import backward
from vit.config import OptimConfig, ViTConfig
from vit.optim import set_learning_rate

BATCH, STEPS = 12, 2
CPU = torch.device("cpu")


def config(parallel, optimizer="adamw"):
    return TrainConfig(
        model=ViTConfig(
            image_size=16, patch_size=8, width=64, depth=2, mlp_width=128, heads=2, num_classes=10
        ),
        optim=OptimConfig(name=optimizer, lr=1e-3, ema=0.9, clip_norm=1.0),
        parallel=parallel,
        precision="fp32",
        compile=False,
        micro_batch=BATCH,
        global_batch=BATCH,
    )


def make(parallel, checkpoint=None, local_world_size=1, optimizer="adamw"):
    if checkpoint:
        empty = {"samples": 0, "metrics": {}, "classes": (), "fingerprint": "", "config": {}}
        empty |= {"files": {}, "digest": ""}
        checkpoint = Checkpoint(path=checkpoint, step=STEPS, **empty)
    return State(config(parallel, optimizer), CPU, checkpoint, local_world_size)


def train(state):
    """A few steps over the same global batches in any world; the losses."""
    losses = []
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = RankShare.of(rank, world, BATCH)
    rows = slice(mine.low, mine.high)
    for _ in range(STEPS):
        draw = torch.Generator().manual_seed(state.step)
        images = torch.randint(0, 256, (BATCH, 16, 16, 3), dtype=torch.uint8, generator=draw)
        labels = torch.randint(10, (BATCH, 1), generator=draw)
        set_learning_rate(state.optimizer, 1e-2)
        batch = Batch(images=images[rows], labels=labels[rows], keys=np.empty(0), faults=[])
        total = backward(state, batch, mine, world)
        dist.all_reduce(total)
        state.update(total[0], state.norm())
        losses.append(total.item() / world)
    return losses


def whole(_, tensor):
    """The independent reference: PyTorch's gathering of a sharded tensor."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


def values(state):
    """Everything that a checkpoint has to restore, as whole tensors."""
    parts = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict()["state"],
        "ema": state.ema.state_dict(),
        "num_bad": state.num_bad,
        "interval": asdict(state.interval),
    }
    return mapped(parts, whole)


def save(state, folder):
    """Write a checkpoint on all ranks; the snapshot and the names of this rank's files."""
    folder.mkdir(exist_ok=True)
    with state.averaged():
        snapshot = state.capture()
    paths = Agreement().results(lambda: snapshot.write(folder))[dist.get_rank()]
    return snapshot, sorted(path.name for path in paths)


def gathered(action):
    """Run an action; the number of gathered tensors, and how many of them were alive at most."""
    results, most = [], 0
    original = DTensor.full_tensor

    def full_tensor(self, **options):
        nonlocal most
        result = original(self, **options)
        results.append(weakref.ref(result))
        most = max(most, sum(each() is not None for each in results))
        return result

    DTensor.full_tensor = full_tensor
    try:
        return action(), len(results), most
    finally:
        DTensor.full_tensor = original


def frozen(state):
    """Whether a snapshot keeps its values while training goes on."""
    snapshot = state.capture()
    taken = {f"model.{name}": tensor for name, tensor in snapshot.weights.items()}
    taken |= {shard.name: shard.tensor for shard in snapshot.shards}
    mapped(snapshot.state, lambda name, tensor: taken.update({name: tensor}))
    inner = {
        f"{name}.{part}": getattr(tensor, part)
        for name, tensor in taken.items()
        for part in (("codes", "scale") if hasattr(tensor, "codes") else ("data",))
    }
    before = {name: tensor.clone() for name, tensor in inner.items()}
    train(state)
    return len(before) > 0 and all(torch.equal(inner[name], before[name]) for name in before)


def bytes_of(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def fsdp_writes(root, rank):
    state = make("fsdp")
    state.num_bad = 3
    state.interval.add(0.1, 2.5)
    train(state)
    before = values(state)
    (snapshot, names), count, alive = gathered(lambda: save(state, root / "fsdp"))
    memory = {name: tensor.data_ptr() for name, tensor in state._copies.items()}
    state.capture()
    reused = memory == {name: tensor.data_ptr() for name, tensor in state._copies.items()}
    return {
        "values": before,
        "names": names,
        "gathered": count,
        "alive": alive,
        "weights": len(snapshot.weights),
        "shard_bytes": bytes_of(shard.tensor for shard in snapshot.shards),
        "held_bytes": bytes_of(state._copies.values()),
        "reused": reused,
        "losses": train(state),
        "after": values(state),
        "again": fsdp_reads(root, rank),
    }


def failure_is_shared(root, rank):
    """Rank 1 cannot write; both write in threads, while the main threads reduce."""
    state, agreement = make("fsdp"), Agreement()
    started = threading.Event()
    keeps = frozen(state)

    def write(snapshot):
        started.wait()
        agreement.results(lambda: snapshot.write(root if rank == 0 else root / "missing"))

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(write, state.capture())
        started.set()
        losses = train(state)
        error = future.exception()
    assert agreement.results(dist.get_rank) == [0, 1]  # it can be used again
    return {"error": f"{type(error).__name__}: {error}", "losses": losses, "frozen": keeps}


def fsdp_reads(root, rank):
    state = make("fsdp", root / "fsdp")
    return {"values": values(state), "losses": train(state), "after": values(state)}


def unequal_nodes(root, rank):
    try:
        make_mesh("hsdp", CPU, 2 if rank < 2 else 1)
    except ValueError as error:
        return {"error": str(error)}


def ddp_reads(root, rank):
    state = make("ddp", root / "fsdp")
    found = {"values": values(state)}
    _, found["names"] = save(state, root / "ddp")
    found |= {"losses": train(state), "after": values(state)}
    return found | {"frozen": frozen(state)}


def hsdp_reads_and_writes(root, rank):
    state = make("hsdp", root / "fsdp", local_world_size=2)
    found = {"values": values(state), "of_ddp": values(make("hsdp", root / "ddp", 2))}
    (snapshot, found["names"]), found["gathered"], _ = gathered(lambda: save(state, root / "hsdp"))
    found["shard_bytes"] = bytes_of(shard.tensor for shard in snapshot.shards)
    return found | {"losses": train(state), "after": values(state)}


def fsdp_reads_hsdp(root, rank):
    return {"values": values(make("fsdp", root / "hsdp"))}


def moments(state):
    """The 8-bit moments of this rank, as the bytes they are made of."""
    found = {}
    for number, tensors in enumerate(state.optimizer.state.values()):
        for key, tensor in tensors.items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if hasattr(local, "codes"):
                found |= {
                    f"{number}.{key}.codes": local.codes.clone(),
                    f"{number}.{key}.scale": local.scale.clone(),
                }
    return found


@torch.compiler.set_stance("force_eager")
def bytes_are_kept(root, rank):
    state = make("fsdp", optimizer="adamw8bit")
    train(state)
    save(state, root / "8bit")
    written, losses = moments(state), train(state)
    again = make("fsdp", root / "8bit", optimizer="adamw8bit")
    return {"written": written, "read": moments(again), "losses": [losses, train(again)]}


@torch.compiler.set_stance("force_eager")
def bytes_are_converted(root, rank):
    state = make("ddp", root / "8bit", optimizer="adamw8bit")
    save(state, root / "8bit-ddp")
    again = make("ddp", root / "8bit-ddp", optimizer="adamw8bit")
    first, second = moments(state), moments(again)
    same = all(torch.equal(second[name], tensor) for name, tensor in first.items())
    return {"losses": train(state), "moments": len(first), "same": same, "frozen": frozen(state)}


PHASES = [  # in this order, each with its number of ranks
    (2, fsdp_writes),
    (2, failure_is_shared),
    (3, fsdp_reads),
    (3, unequal_nodes),
    (1, ddp_reads),
    (4, hsdp_reads_and_writes),
    (3, fsdp_reads_hsdp),
]
if importlib.util.find_spec("torchao"):
    PHASES += [(2, bytes_are_kept), (1, bytes_are_converted)]


def main(rank: int, root: str) -> None:
    """Take part in all phases."""
    torch.set_num_threads(1)
    for number, (world, phase) in enumerate(PHASES):
        if rank >= world:
            continue
        dist.init_process_group(
            "gloo", init_method=f"file://{root}/meet-{number}", rank=rank, world_size=world
        )
        found = phase(Path(root), rank)
        torch.save(found, Path(root) / "results" / f"{phase.__name__}-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
