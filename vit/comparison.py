"""A quantised model beside its original: agreement, accuracy, size and speed.

    (original, quantised, images (n, 3, S, S), labels (n,)) -> compare -> Comparison

Both are timed compiled, in turns on the same batches; the fastest round of each counts.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch._inductor.config as inductor
from torch import Tensor

from vit.model import ViT
from vit.quant import QuantisedViT, stored_bytes


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What quantising changed."""

    scheme: str
    agreement: float
    """Share of images on which both give the same class."""
    accuracy: tuple[float, float]
    """Share of images classified right: original, quantised."""
    size_bytes: tuple[int, int]
    """Bytes of the weights: original, quantised."""
    image_s: tuple[float, float]
    """Seconds per image: original, quantised; CPU time on a CPU."""

    @property
    def speedup(self) -> float:
        """How many times as fast as the original."""
        return self.image_s[0] / self.image_s[1]

    def __str__(self) -> str:
        """A small table."""
        rows = [
            ("", "original", self.scheme, ""),
            ("accuracy", *(f"{a:.4f}" for a in self.accuracy), f"agreement {self.agreement:.4f}"),
            (
                *("size", *(f"{b / 1e6:.2f} MB" for b in self.size_bytes)),
                f"{self.size_bytes[1] / self.size_bytes[0]:.2f} of the original",
            ),
            (
                *("time per image", *(f"{s * 1e3:.3f} ms" for s in self.image_s)),
                f"{self.speedup:.2f} times as fast",
            ),
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
    """Run both over all images, then time both on the first batch.

    The original is compiled with frozen weights too; on a GPU it computes in bfloat16, as the
    quantised model does outside its products.
    """
    original = original.eval()
    device = next(original.parameters()).device
    if device.type == "cuda":
        fast = torch.compile(deepcopy(original).to(torch.bfloat16))
        images = images.to(torch.bfloat16)
    else:
        fast = torch.compile(original)
    reference = classes(original_call(fast), images, batch)
    found = classes(quantised, images, batch)
    first = images[:batch].to(device)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds):
        for which, model in enumerate((original_call(fast), quantised)):
            started = clock(device)
            model(first)
            seconds[which].append((clock(device) - started) / len(first))
    return Comparison(
        scheme=quantised.scheme,
        agreement=(reference == found).float().mean().item(),
        accuracy=tuple((c == labels.cpu()).float().mean().item() for c in (reference, found)),
        size_bytes=(
            sum(stored_bytes(tensor) for tensor in original.state_dict().values()),
            quantised.size_bytes,
        ),
        image_s=(min(seconds[0]), min(seconds[1])),
    )


def original_call(fast: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A compiled model as the quantised one is called: without gradients, weights frozen."""

    def call(images: Tensor) -> Tensor:
        with torch.no_grad(), inductor.patch(freezing=True):
            return fast(images)

    return call


def classes(model: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    """The most likely class of each image, in batches: (n, 3, S, S) -> (n,) on the CPU."""
    return torch.cat([model(part).argmax(1).cpu() for part in images.split(batch)])


def clock(device: torch.device) -> float:
    """Seconds: of wall time with the GPU idle, of this process's CPU time otherwise."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
