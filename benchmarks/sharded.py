"""A checkpoint of a sharded model against gathering all of its state on every worker.

    python benchmarks/sharded.py [--model S/16] [--classes 21843] [--workers 4] [--rounds 3]

In turns, in the same processes, on the CPU: every worker gathers and copies the whole state, as a
checkpoint without shards needs it; then `State.capture`, for which training waits, and the writing
of its files, for which it does not. Bytes are exact; times are medians, and ratios of them.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.checkpoint.agreement import Agreement
from pipeline.checkpoint.sharded import mapped
from pipeline.settings.config import TrainConfig
from pipeline.train.state import State
from vit.config import OptimConfig, ViTConfig


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="S/16")
    parser.add_argument("--classes", type=int, default=21843)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder, given), nprocs=given.workers)
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    medians = {name: statistics.median(times) for name, times in found[0]["seconds"].items()}
    report = {
        "benchmark": "sharded",
        **vars(given),
        "gathered_bytes": [each["gathered"] for each in found],
        "captured_bytes": [each["captured"] for each in found],
        "written_bytes": [each["written"] for each in found],
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "capture_over_gathering": round(medians["capture"] / medians["gather"], 3),
        "capture_over_capture_and_write": round(
            medians["capture"] / (medians["capture"] + medians["write"]), 3
        ),
        "torch": torch.__version__,
    }
    print(json.dumps(report))  # noqa: T201


def work(rank: int, folder: str, given: argparse.Namespace) -> None:
    """One worker: a step with constant gradients, then the rounds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=given.workers
    )
    config = TrainConfig(
        model=ViTConfig.named(given.model, num_classes=given.classes),
        optim=OptimConfig(ema=0.999),
        parallel="fsdp",
        precision="fp32",
        compile=False,
    )
    state = State(config, torch.device("cpu"), None, given.workers)
    for parameter in state.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    state.update(torch.zeros(()), state.norm())
    agreement, target = Agreement(), Path(folder) / "checkpoint"
    seconds = {"gather": [], "capture": [], "write": []}
    for _ in range(given.rounds):
        gathered, elapsed = timed(lambda: gather(state))
        seconds["gather"].append(elapsed)
        snapshot, elapsed = timed(state.capture)
        seconds["capture"].append(elapsed)
        captured = sum(tensor.nbytes for tensor in state._copies.values())
        target.mkdir(exist_ok=True)
        agreement.results(None)
        paths, elapsed = timed(lambda taken=snapshot: taken.write(target))
        seconds["write"].append(elapsed)
        written = {path.name: path.stat().st_size for path in paths}
        dist.barrier()
        if rank == 0:
            shutil.rmtree(target)
        dist.barrier()
    found = {"seconds": seconds, "gathered": gathered, "captured": captured, "written": written}
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def gather(state: State) -> int:
    """Copy the whole state to the memory of this worker; its bytes."""
    copies = []

    def copy(_: str, tensor: Tensor) -> None:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        copies.append(whole.detach().to("cpu", copy=True))

    tree = {"optimizer": state.optimizer.state_dict(), "ema": state.ema.state_dict()}
    mapped({"model": state.model.state_dict(), **tree}, copy)
    return sum(tensor.nbytes for tensor in copies)


def timed(action: Callable) -> tuple:
    """The result of an action on all workers, and the time until the last one has finished."""
    dist.barrier()
    start = time.perf_counter()
    result = action()
    dist.barrier()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
