"""Small tensors between the host and a device, without a wait of the host for the device.

Only memory that is pinned is copied in the background; another copy waits for all earlier work.
"""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor of the host for use in the current stream."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Readback:
    """Numbers on their way to the host."""

    def __init__(self, numbers: Tensor) -> None:
        """Start to copy (n,) numbers, which may be computed later than this."""
        self._host = torch.empty_like(numbers, device="cpu", pin_memory=numbers.is_cuda)
        self._host.copy_(numbers, non_blocking=True)
        self._copied = None
        if numbers.is_cuda:
            self._copied = torch.cuda.Event(blocking=True)  # a core that spins decodes no images
            self._copied.record()

    def numbers(self) -> list[float]:
        """The numbers; waits until they have been computed."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.tolist()
