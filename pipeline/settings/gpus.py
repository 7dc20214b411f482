"""GPUs by their names: peak in bf16, bandwidth of the memory, and how fast they train a ViT.

A step is estimated as its matrix products at a share of the peak, and the traffic of activations at
the bandwidth of the memory; small passes take as long as the host needs to start their kernels. The
constants are chosen by hand after 14 published throughputs (S/16 compiled on an H100:
nvSubquadratic; g/14 on A100 and H100: NVIDIA NeMo; eleven without compilation on an RTX 3090:
timm). The estimates are 0.69 to 1.45 times these, and 0.92 to 1.01 times what four sizes reached on
an H200 (2026-11-27). For most sizes on most GPUs nothing was measured. Small models and fast GPUs
wait for memory: an H100 is estimated to reach 30 % of its peak with B/16.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from vit.config import ViTConfig

MATMUL_SHARE = 0.65
# bytes that a training step moves per token, channel and block, by whether it is compiled
TRAFFIC = {True: 330, False: 610}
# the host starts the kernels of a block, forward and backward: S/32 with DDP, compiled, on the host
# of an H200 (2026-11-27); without compilation it takes longer, which was not measured
LAUNCH_S = 0.002
SMALLEST_WIDTH = 192  # of the models whose throughput is published
# words in the names of parts of a GPU and of slower chips: MIG, laptops, Max-Q
OTHER_CHIPS = {"mig", "laptop", "max"}


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """Words of the device's name, joined by hyphens."""
    bf16_flops: float | None
    """Dense FLOP/s in bf16 with float32 sums; None if it has no arithmetic in bf16."""
    bandwidth: float
    """Bytes/s of its memory."""

    @cached_property
    def words(self) -> frozenset[str]:
        """What a device's name must contain."""
        return words(self.name)

    def images_per_s(
        self, model: ViTConfig, *, compiled: bool, pass_images: int | None = None
    ) -> float:
        """Estimated training throughput of a model in bf16; the GPU must have a peak in bf16.

        `pass_images` is the number of images of a pass whose kernels the host starts one by one;
        None: so many, or started as CUDA graphs, that the host does not count.
        """
        elements = model.num_tokens * model.width * model.depth
        flops = (4 if model.checkpoint_blocks else 3) * model.forward_flops
        products_s = flops / (MATMUL_SHARE * self.bf16_flops)
        rate = 1 / (products_s + TRAFFIC[compiled] * elements / self.bandwidth)
        return min(rate, pass_images / (LAUNCH_S * model.depth)) if pass_images else rate


# name, dense bf16 TFLOP/s, GB/s: from NVIDIA's data sheets, whose figures with sparsity are halved
ROWS = (
    ("B300", 2250, 8000),
    ("GB300", 2500, 8000),
    ("B200", 2250, 8000),
    ("GB200", 2500, 8000),
    ("H200", 989, 4800),
    ("H200-NVL", 836, 4800),
    ("GH200", 989, 4000),
    ("H100", 989, 3350),
    ("H100-NVL", 835, 3900),
    ("H100-PCIe", 756, 2000),
    ("H800", 989, 3350),
    ("H800-PCIe", 756, 2000),
    ("H20", 148, 4000),
    ("A100", 312, 1555),
    ("A100-80GB", 312, 1935),
    ("A800", 312, 1935),
    ("A40", 150, 696),
    ("A30", 165, 933),
    ("A10", 125, 600),
    ("A10G", 70, 600),
    ("L40S", 362, 864),
    ("L40", 181, 864),
    ("L20", 119.5, 864),
    ("L4", 121, 300),
    ("V100", None, 900),
    ("V100S", None, 1134),
    ("T4", None, 320),
    ("RTX-PRO-6000", 504, 1792),
    ("RTX-6000-Ada", 364, 960),
    ("RTX-A6000", 155, 768),
    ("RTX-A5500", 136, 768),
    ("RTX-A5000", 111, 768),
    ("RTX-A4500", 95, 640),
    ("RTX-A4000", 77, 448),
    ("RTX-A2000", 32, 288),
    ("RTX-A1000", 27, 192),
    ("RTX-5090", 209.5, 1792),
    ("RTX-4090", 165, 1008),
    ("RTX-4090-D", 147, 1008),
    ("RTX-3090", 71, 936),
    ("RTX-3090-Ti", 80, 1008),
)
GPUS = {name: Gpu(name, peak and peak * 1e12, rate * 1e9) for name, peak, rate in ROWS}


def find_gpu(device: str) -> Gpu | None:
    """The GPU that a device name of CUDA means, such as "NVIDIA A100-SXM4-80GB"; None if unknown.

    The row with the most words in the name wins: a PCIe card is not its SXM module.
    """
    named = words(device)
    if named & OTHER_CHIPS:
        return None
    known = (gpu for gpu in GPUS.values() if gpu.words <= named)
    return max(known, key=lambda gpu: len(gpu.words), default=None)


def words(name: str) -> frozenset[str]:
    """The words of a name, in lower case."""
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))
