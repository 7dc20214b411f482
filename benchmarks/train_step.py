"""Speed of one training step without Ray: images/s, model FLOP utilisation and memory.

    python benchmarks/train_step.py [--models S/32 B/16] [--modes eager compiled] [--batch 256]
    torchrun --nproc-per-node 8 benchmarks/train_step.py ...     # with DDP

Times the step of a worker, `pipeline.train.step.take_step`: uint8 images on the device, labels of
21,843 classes and the random numbers of mixup -> normalise, mixup, model and loss, compiled as a
whole -> backward -> norm -> clip and optimizer step, guarded. It is done with our model and, where
timm imports, with timm's in its place. The variants take turns in rounds, and each keeps its
fastest round, so that a neighbour's load hits all of them alike. On a GPU bfloat16 autocast and
wall time; on a CPU float32, one thread and CPU time.

Utilisation is 3 x the forward pass's matrix FLOPs over the peak: the vendor's dense bfloat16 figure
of a known GPU (pipeline/settings/gpus.py), else the fastest large matrix product of this run. FLOPs
are those that each model computes: ours leaves out what the head does not read of the last block,
and is not credited for it.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed
from torch import nn

from pipeline.data.order import RankShare
from pipeline.settings.config import TrainConfig
from pipeline.settings.gpus import find_gpu
from pipeline.train import state as state_module
from pipeline.train.batches import Batch
from pipeline.train.state import State
from pipeline.train.step import take_step
from vit.config import MixConfig, OptimConfig, ViTConfig
from vit.config_json import timm_arguments
from vit.model import ViT
from vit.optim import set_learning_rate

log = logging.getLogger("train_step")


@dataclass(kw_only=True)
class Variant:
    """One timed training step, and what was measured of it."""

    name: str
    step: Callable[[], None]
    images: int
    flops: float
    times: list[float] = field(default_factory=list)
    memory_bytes: int = 0


def timm_model(config: ViTConfig) -> nn.Module:
    """Build timm's model of the same shape and class count."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**timm_arguments(config))
    model.drops = False  # the step asks for it
    return model


def random_batch(model: ViTConfig, count: int, device: torch.device) -> Batch:
    """A batch of random pixels and classes on the device."""
    side = model.image_size
    return Batch(
        images=torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device=device),
        labels=torch.randint(0, model.num_classes, (count, 1), device=device),
        keys=np.empty(0),
        faults=[],
    )


def make_variant(
    name: str,
    make: Callable[[ViTConfig], nn.Module],
    model: ViTConfig,
    mode: str,
    options: argparse.Namespace,
) -> Variant:
    """A worker's step on fixed random images, with the model that `make` makes."""
    device, world = torch.device(options.device), torch.distributed.get_world_size()
    count = options.batch
    config = TrainConfig(
        model=model,
        optim=OptimConfig(name=options.optimizer),
        mix=MixConfig(mixup=0.2),
        global_batch=count * world,
        micro_batch=count,
        workers=world,
        precision="bf16" if device.type == "cuda" else "fp32",
        residual=options.residual,
        compile=mode != "eager",
        cuda_graphs=mode == "graphs",
    )
    with mock.patch.object(state_module, "ViT", make):
        state = State(config, device, None, world)
    set_learning_rate(state.optimizer, 1e-4)
    batch = random_batch(model, count, device)
    share = RankShare.of(torch.distributed.get_rank(), world, config.global_batch)
    arguments = state, batch, share, world, (0.0, 0.0, 0.0), lambda phase: None
    flops = model.forward_flops if make is ViT else model.published_flops
    return Variant(
        name=name, step=lambda: take_step(*arguments), images=count, flops=3 * count * flops
    )


def clock(device: str) -> float:
    """Seconds: of work done on a GPU, of this process's CPU time on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def ready(name: str, *arguments: object) -> Variant:
    """Make a variant and run it twice: compiled, states allocated, its peak memory known."""
    started, on_gpu = time.perf_counter(), torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    variant = make_variant(name, *arguments)
    for _ in range(2):
        variant.step()
    if on_gpu:
        torch.cuda.synchronize()
        variant.memory_bytes = torch.cuda.max_memory_allocated() - before
    log.info("  %-22s ready after %.0f s", name, time.perf_counter() - started)
    return variant


def peak_flops(options: argparse.Namespace) -> tuple[float, str]:
    """FLOP/s to compare with, and where the figure is from."""
    if options.device == "cuda":
        gpu = find_gpu(torch.cuda.get_device_name())
        if gpu and gpu.bf16_flops:
            return gpu.bf16_flops, f"data sheet of {gpu.name}"
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    side = 8192 if options.device == "cuda" else 1024
    a = torch.randn(side, side, device=options.device, dtype=dtype)
    seconds = []
    for _ in range(6):
        started = clock(options.device)
        for _ in range(5):
            a @ a
        seconds.append((clock(options.device) - started) / 5)
    return 2 * side**3 / min(seconds), f"fastest {side} x {side} product of this run"


def run_model(name: str, options: argparse.Namespace, peak: float) -> list[dict]:
    """Time one size in all modes; one row per variant."""
    config = ViTConfig.named(name, num_classes=options.classes, image_size=options.image_size)
    makers: dict[str, Callable[[ViTConfig], nn.Module]] = {"vit": ViT}
    if not options.no_timm:
        makers["timm"] = timm_model
    rows = []
    for mode in options.modes:
        torch.manual_seed(0)
        variants = [
            ready(f"{name} {library} {mode}", make, config, mode, options)
            for library, make in makers.items()
        ]
        for _ in range(options.rounds):
            for variant in variants:
                started = clock(options.device)
                for _ in range(options.steps):
                    variant.step()
                variant.times.append((clock(options.device) - started) / options.steps)
        for library, variant in zip(makers, variants, strict=True):
            seconds = min(variant.times)
            row = {
                "model": name,
                "library": library,
                "mode": mode,
                "batch": options.batch,
                "workers": torch.distributed.get_world_size(),
                "images_per_s": variant.images / seconds,
                "step_s": seconds,
                "utilisation": variant.flops / seconds / peak,
                "memory_gib": variant.memory_bytes / 2**30 or None,
                "rounds_s": variant.times,
            }
            rows.append(row)
            report(row)
        del variants
        torch.compiler.reset()
    return rows


def report(row: dict) -> None:
    """One line of the table."""
    memory = f"{row['memory_gib']:6.2f} GiB" if row["memory_gib"] else "   -"
    line = "%-6s %-5s %-9s batch %4d  %9.2f img/s  %7.1f ms  MFU %5.3f  %s"
    shown = (row["model"], row["library"], row["mode"], row["batch"], row["images_per_s"])
    log.info(line, *shown, row["step_s"] * 1e3, row["utilisation"], memory)


def parse() -> argparse.Namespace:
    """Command line, with the device's defaults filled in."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = partial(parser.add_argument, metavar="X")
    add("--models", nargs="+", default=["S/32", "S/16", "B/16", "L/16"], help="sizes to time")
    add("--modes", nargs="+", default=["eager", "compiled"], help="eager, compiled, graphs")
    add("--residual", default="fp32", help="residual stream of our model: fp32 or bf16")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--batch", type=int, help="images per step; default 256 on a GPU, 8 on a CPU")
    add("--steps", type=int, help="steps per round; default 20 on a GPU, 1 on a CPU")
    add("--rounds", type=int, default=5, help="rounds; the fastest counts")
    add("--classes", type=int, default=21_843, help="classes of the head")
    add("--image-size", type=int, default=224, help="side of the images")
    add("--optimizer", default="adamw", help="adamw, adamw8bit, lamb or sgd")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--json", help="file for the rows as JSON")
    parser.add_argument("--no-timm", action="store_true", help="leave timm out")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    options.batch = options.batch or (256 if gpu else 8)
    options.steps = options.steps or (20 if gpu else 1)
    return options


@contextlib.contextmanager
def joined(backend: str) -> Iterator[None]:
    """The processes that torchrun has started, or this one alone; only the first one reports."""
    if "LOCAL_RANK" in os.environ:
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group(backend)
        logging.disable(logging.INFO if torch.distributed.get_rank() else logging.NOTSET)
        yield
    else:
        with tempfile.TemporaryDirectory() as folder:
            meet = f"file://{folder}/meet"
            torch.distributed.init_process_group(backend, init_method=meet, rank=0, world_size=1)
            yield
    torch.distributed.destroy_process_group()


def main() -> None:
    """Time what the command line asks for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = parse()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    if not options.no_timm:
        try:
            import timm
            import timm.models.vision_transformer  # noqa: F401

            log.info("timm %s", timm.__version__)
        except (ImportError, RuntimeError) as error:
            options.no_timm = True
            log.info("timm is left out, it does not import here: %s", error)
    with joined("nccl" if options.device == "cuda" else "gloo"):
        device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor()
        peak, source = peak_flops(options)
        log.info(
            "torch %s, %s, %d thread(s), peak %.4g TFLOP/s (%s)",
            *(torch.__version__, device or platform.machine(), options.threads),
            *(peak / 1e12, source),
        )
        rows = [row for name in options.models for row in run_model(name, options, peak)]
        is_first = torch.distributed.get_rank() == 0
    if options.json and is_first:
        results = {"device": device, "torch": torch.__version__, "rows": rows}
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
