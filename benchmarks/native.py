"""Time of the native back ends over PyTorch's and ONNX Runtime's, in one process on the same cores.

    python -m benchmarks.native [--models S/32 B/16] [--batches 1 8 32] [--backend cpu]

Each model has random weights; time does not depend on them. All ways to compute the logits of a
batch take turns, and the median of each counts, over that of eager PyTorch in float32; images come
from the memory of the host, and logits go there. With `--backend cuda` PyTorch computes on the GPU
too, also in bfloat16, and logits are timed over PyTorch compiled in bfloat16 (eager with
`--no-compile`), training steps over eager PyTorch in float32. ONNX Runtime, on CPUs,
gets the graph that `python -m pipeline export --to onnx` writes, optimised by its own tools, and
for int8 its static quantisation (QDQ, per channel) of the same layers. At the end of each model, a
training step of 8 images: forward, loss, backward and AdamW, in PyTorch with moments in 8 bits if
the extra quant is there. On CPUs it needs the extras native and onnx.
"""

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vit.config import ImageConfig, OptimConfig, ViTConfig
from vit.loss import softmax_loss
from vit.model import ViT
from vit.native.build import build
from vit.native.model import NativeViT
from vit.native.quantise import FEWEST, quantise
from vit.optim import make_optimizer
from vit.weights import save_weights

log = logging.getLogger("native")

# the threads of a library look for work for some time after it ends, and keep others from the cores
PAUSE_S = 0.2
TRAIN_BATCH = 8
NUM_CLASSES = 1000
EAGER = "PyTorch eager"
HALF = " bfloat16"  # of names of networks

Network = Callable[[np.ndarray], np.ndarray]


def images(batch: int, size: int) -> np.ndarray:
    """Random normalised images (B, 3, S, S)."""
    return np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)


def torch_networks(model: ViT, compiles: bool, device: str) -> dict[str, Network]:
    """PyTorch in float32, on a GPU also in bfloat16; eager and compiled for each size of batch."""

    def called(network: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> Network:
        def call(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                images = torch.from_numpy(batch).to(device, dtype)
                return network(images).float().cpu().numpy()  # waits for the device

        return call

    networks = {}
    for dtype, name in ((torch.float32, ""), (torch.bfloat16, HALF)):
        if name and device == "cpu":
            continue
        network = deepcopy(model).to(device, dtype)
        networks[EAGER + name] = called(network, dtype)
        if compiles:
            compiled = torch.compile(network, dynamic=False)
            networks["PyTorch compiled" + name] = called(compiled, dtype)
    return networks


def native_networks(model: ViT, folder: Path, backend: str, threads: int) -> dict[str, Network]:
    """A native back end in float32 and in int8, and in the other precisions of GPUs."""
    plain, codes = folder / "float32", folder / "int8"
    plain.mkdir()
    save_weights(plain / "model.safetensors", model)
    settings = {f"images.{name}": value for name, value in ImageConfig().flat().items()}
    (plain / "config.json").write_text(json.dumps(settings))
    size = model.config.image_size
    noise = np.random.default_rng(0).integers(0, 256, (FEWEST, size, size, 3), np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    quantise(plain, [folder], codes, backend=backend, threads=threads)
    files = {"float32": plain, "int8": codes}
    if backend == "cuda":
        files |= {"tf32": plain, "bfloat16": plain}
        if torch.cuda.get_device_capability() >= (8, 9):
            files |= {"float8": codes}
    return {
        f"native {precision}": NativeViT.open(
            path, backend=backend, precision=precision, threads=threads
        )
        for precision, path in files.items()
    }


def train_networks(model: ViT, plain: Path, backend: str, threads: int) -> dict[str, Network]:
    """A training step of a batch, with random targets, in eager PyTorch and in native code.

    The first is PyTorch's with moments in float32, which the others are compared with.
    """
    device = device_of(backend)
    networks = {EAGER: torch_step(deepcopy(model), "adamw", device)}
    if find_spec("torchao"):
        networks["PyTorch adamw8bit"] = torch_step(deepcopy(model), "adamw8bit", device)
    for name in ("adamw", "adamw8bit"):
        native = NativeViT.open(plain, backend=backend, threads=threads)
        native.begin_training(optimizer=name)
        networks[f"native {name}"] = lambda batch, native=native: native.train_step(
            batch, targets(batch), OptimConfig().lr
        )
    return networks


def torch_step(model: ViT, optimizer_name: str, device: str) -> Network:
    """A training step in eager PyTorch."""
    model = model.to(device)
    optimizer = make_optimizer(model, OptimConfig(name=optimizer_name))

    def step(batch: np.ndarray) -> None:
        optimizer.zero_grad()
        given, wanted = (torch.from_numpy(each).to(device) for each in (batch, targets(batch)))
        loss = softmax_loss(model(given), wanted).mean()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    return step


def targets(batch: np.ndarray) -> np.ndarray:
    """A class for each image of a batch: (B, K)."""
    return np.eye(NUM_CLASSES, dtype=np.float32)[: len(batch)]


def device_of(backend: str) -> str:
    """Where PyTorch computes beside a back end."""
    return "cuda" if backend == "cuda" else "cpu"


def timed(networks: dict[str, Network], batch: np.ndarray, rounds: int) -> dict[str, float]:
    """Median seconds of each network, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        network(batch)  # sets itself up for the size of the batch
    for _ in range(rounds):
        for name, network in networks.items():
            time.sleep(PAUSE_S)
            start_s = time.perf_counter()
            network(batch)
            seconds[name].append(time.perf_counter() - start_s)
    return {name: statistics.median(each) for name, each in seconds.items()}


def lines(name: str, size: int, medians: dict[str, float]) -> Iterator[str]:
    """The lines of one size of batch: milliseconds an image, and time over PyTorch's."""
    base = next(n for n in ("PyTorch compiled" + HALF, EAGER + HALF, EAGER) if n in medians)
    for network, seconds in medians.items():
        figures = f"{seconds / size * 1e3:9.3f}{seconds / medians[base]:9.2f}"
        yield f"{name:<12}{size:>6}  {network:<24}{figures}"


def rows(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the table, as they are measured."""
    for name in options.models:
        torch.manual_seed(0)
        model = ViT(ViTConfig.named(name, num_classes=NUM_CLASSES)).eval()
        torch.nn.init.normal_(model.head.weight, std=0.02)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            device = device_of(options.backend)
            networks = torch_networks(model, options.compile, device)
            if device == "cpu":
                from benchmarks import onnx_runtime  # machines with GPUs need not have it

                calibration = [images(8, model.config.image_size)] * 2
                networks |= onnx_runtime.networks(model, place, options.threads, calibration)
            networks |= native_networks(model, place, options.backend, options.threads)
            for size in options.batches:
                batch = images(size, model.config.image_size)
                yield from lines(name, size, timed(networks, batch, options.rounds))
            networks = train_networks(
                model.train(), place / "float32", options.backend, options.threads
            )
            batch = images(TRAIN_BATCH, model.config.image_size)
            yield from lines(f"{name} train", TRAIN_BATCH, timed(networks, batch, options.rounds))
        torch.compiler.reset()


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["S/32", "B/16"], help="sizes")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--backend", default="cpu", help="a back end of vit.native")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="the median counts")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time compiled PyTorch too, which takes a minute for each model and batch",
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print the table."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    options = parse()
    torch.set_num_threads(options.threads)
    build(options.backend)
    on_gpu = device_of(options.backend) == "cuda"
    log.info(
        "%s, %d threads, torch %s",
        torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        options.threads,
        torch.__version__,
    )
    log.info("model        batch  network                   ms/image  of PyTorch")
    for row in rows(options):
        log.info(row)


if __name__ == "__main__":
    main()
