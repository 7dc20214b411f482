"""Agreement, accuracy, size and speed of quantised models and their originals, on random weights.

    python benchmarks/quant.py [--models S/32 S/16] [--schemes int8-static int8-weight] [--batch 8]

Agreement and accuracy mean nothing with random weights; tests/test_vit_quant.py measures them on a
trained model. Both models are compiled and timed in turns on the same batch, and the fastest round
of each counts. Times are CPU times on a CPU, and wall times on a GPU.
"""

import argparse
import logging
import platform
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch._inductor.config as inductor
from torch import Tensor

from vit.config import ViTConfig
from vit.model import ViT
from vit.quant import SCHEMES, QuantisedViT, quantise, refusal, stored_bytes

log = logging.getLogger("quant")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a quantised model differs from its original."""

    scheme: str
    agreement: float
    """Share of images on which both models predict the same class."""
    accuracy: tuple[float, float]
    """Share of correctly classified images: original, quantised."""
    size_bytes: tuple[int, int]
    """Bytes of the weights: original, quantised."""
    image_s: tuple[float, float]
    """Seconds per image: original, quantised; CPU time on a CPU."""

    @property
    def speedup(self) -> float:
        """Time of the original divided by the time of the quantised model."""
        return self.image_s[0] / self.image_s[1]

    def __str__(self) -> str:
        """A small table."""
        accuracy = [f"{share:.4f}" for share in self.accuracy]
        sizes = [f"{size / 1e6:.2f} MB" for size in self.size_bytes]
        times = [f"{seconds * 1e3:.3f} ms" for seconds in self.image_s]
        shrinkage = self.size_bytes[1] / self.size_bytes[0]
        rows = [
            ("", "original", self.scheme, ""),
            ("accuracy", *accuracy, f"agreement {self.agreement:.4f}"),
            ("size", *sizes, f"{shrinkage:.2f} of the original"),
            ("time per image", *times, f"{self.speedup:.2f} times as fast"),
        ]
        return "\n".join(f"{a:<15}{b:>14}{c:>14}  {d}".rstrip() for a, b, c, d in rows)


def compare(
    original: ViT,
    quantised: QuantisedViT,
    images: Tensor,
    labels: Tensor,
    *,
    batch: int = 64,
    rounds: int = 5,
) -> Comparison:
    """Run both models on all images (n, 3, S, S) with labels (n,), then time the first batch.

    The original is compiled with frozen weights, too. On a GPU it computes in bfloat16, as the
    quantised model does outside its matrix products.
    """
    original = original.eval()
    device = next(original.parameters()).device
    model = original
    if device.type == "cuda":
        model = deepcopy(original).to(torch.bfloat16)
        images = images.to(torch.bfloat16)
    calls = (frozen_call(torch.compile(model)), quantised)
    predictions = [predict(call, images, batch) for call in calls]
    first = images[:batch].to(device)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, times in zip(calls, seconds, strict=True):
            start_s = clock(device)
            call(first)
            times.append((clock(device) - start_s) / len(first))
    original_bytes = sum(stored_bytes(tensor) for tensor in original.state_dict().values())
    return Comparison(
        scheme=quantised.scheme,
        agreement=(predictions[0] == predictions[1]).float().mean().item(),
        accuracy=tuple((each == labels.cpu()).float().mean().item() for each in predictions),
        size_bytes=(original_bytes, quantised.size_bytes),
        image_s=(min(seconds[0]), min(seconds[1])),
    )


def frozen_call(compiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Call a compiled model as `QuantisedViT` does: without gradients, with frozen weights."""

    def call(images: Tensor) -> Tensor:
        with torch.no_grad(), inductor.patch(freezing=True):
            return compiled(images)

    return call


def predict(model: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    """The most likely class of each image, in batches: (n, 3, S, S) -> (n,) on the CPU."""
    return torch.cat([model(part).argmax(1).cpu() for part in images.split(batch)])


def clock(device: torch.device) -> float:
    """Seconds: wall time after the GPU has finished its work, or CPU time of this process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["S/32", "S/16"], help="sizes")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), help=", ".join(SCHEMES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="images per call")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest counts")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def main() -> None:
    """Compare each model under each scheme, and log why a scheme is left out."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    options = parse()
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    log.info("torch %s, %s, %d thread(s)", torch.__version__, device, options.threads)
    for scheme in options.schemes:
        reason = refusal(scheme, options.device)
        if reason:
            log.info("left out: %s", reason)
            continue
        for name in options.models:
            torch.manual_seed(0)
            config = ViTConfig.named(name, num_classes=1000)
            model = ViT(config).to(options.device)
            torch.nn.init.normal_(model.head.weight, std=0.02)
            size = config.image_size
            images = torch.randn(2 * options.batch, 3, size, size, device=options.device)
            labels = torch.zeros(len(images), dtype=torch.int64)
            quantised = quantise(model, scheme, calibration=images.split(options.batch))
            report = compare(
                model, quantised, images, labels, batch=options.batch, rounds=options.rounds
            )
            log.info("%s, batch %d\n%s", name, options.batch, report)
            torch.compiler.reset()


if __name__ == "__main__":
    main()
