"""GPUs are recognised by the names of CUDA; their throughputs are near the published ones."""

import published_recipes as published
import pytest

from pipeline.settings.gpus import GPUS, find_gpu
from pipeline.train import meter
from vit.config import ViTConfig

NAMES = {
    "NVIDIA H100 80GB HBM3": ("H100", 989),
    "NVIDIA H100 PCIe": ("H100-PCIe", 756),
    "NVIDIA H100 NVL": ("H100-NVL", 835),
    "NVIDIA H200": ("H200", 989),
    "NVIDIA GH200 480GB": ("GH200", 989),
    "NVIDIA H800": ("H800", 989),
    "NVIDIA H800 PCIe": ("H800-PCIe", 756),
    "NVIDIA H20": ("H20", 148),
    "NVIDIA B200": ("B200", 2250),
    "NVIDIA B300 SXM6 AC": ("B300", 2250),
    "NVIDIA A100-SXM4-40GB": ("A100", 312),
    "NVIDIA A100-SXM4-80GB": ("A100-80GB", 312),
    "NVIDIA A100 80GB PCIe": ("A100-80GB", 312),
    "NVIDIA A800-SXM4-80GB": ("A800", 312),
    "NVIDIA A10": ("A10", 125),
    "NVIDIA A10G": ("A10G", 70),
    "NVIDIA A40": ("A40", 150),
    "NVIDIA L4": ("L4", 121),
    "NVIDIA L40": ("L40", 181),
    "NVIDIA L40S": ("L40S", 362),
    "Tesla V100-SXM2-16GB": ("V100", None),
    "Tesla V100S-PCIE-32GB": ("V100S", None),
    "Tesla T4": ("T4", None),
    "NVIDIA RTX A1000": ("RTX-A1000", 27),
    "NVIDIA RTX A6000": ("RTX-A6000", 155),
    "NVIDIA RTX 6000 Ada Generation": ("RTX-6000-Ada", 364),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": ("RTX-PRO-6000", 504),
    "NVIDIA GeForce RTX 3090": ("RTX-3090", 71),
    "NVIDIA GeForce RTX 4090": ("RTX-4090", 165),
    "NVIDIA GeForce RTX 4090 D": ("RTX-4090-D", 147),
}
UNKNOWN = [
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
    "Quadro RTX 6000",
    "NVIDIA GeForce GTX 1080",
    "AMD Instinct MI300X",
]


@pytest.mark.parametrize("device", NAMES)
def test_gpu_is_known_by_its_name(device):
    name, teraflops = NAMES[device]
    gpu = find_gpu(device)
    assert gpu.name == name
    assert gpu.bf16_flops == (teraflops and teraflops * 1e12)


@pytest.mark.parametrize("device", UNKNOWN)
def test_parts_of_gpus_and_other_chips_are_unknown(device):
    assert find_gpu(device) is None


@pytest.mark.parametrize("name", GPUS)
def test_name_in_the_table_finds_its_own_row(name):
    assert find_gpu(f"NVIDIA {name}") is GPUS[name]


@pytest.mark.parametrize("row", published.THROUGHPUTS, ids=str)
def test_estimated_throughput_is_near_the_published_one(row):
    gpu, size, pixels, compiled, images_per_s = row
    model = ViTConfig.named(size, image_size=pixels, num_classes=1000)
    assert 0.69 < GPUS[gpu].images_per_s(model, compiled=compiled) / images_per_s < 1.45


# size, images of a pass, images/s on one H200: compiled, 21,843 classes, mixup, AdamW, DDP, torch
# 2.11, 2026-11-27
MEASURED = [("B/16", 256, 3737), ("L/16", 128, 1212), ("S/16", 256, 10429), ("S/32", 512, 21264)]


@pytest.mark.parametrize(("size", "images", "images_per_s"), MEASURED)
def test_estimated_throughput_is_near_that_of_an_h200(size, images, images_per_s):
    model = ViTConfig.named(size, num_classes=21_843)
    found = GPUS["H200"].images_per_s(model, compiled=True, pass_images=images)
    assert 0.92 < found / images_per_s < 1.01


def test_the_host_limits_small_passes_and_not_large_ones():
    model, gpu = ViTConfig.named("S/32", num_classes=1000), GPUS["H100"]
    rates = [gpu.images_per_s(model, compiled=True, pass_images=n) for n in (128, 256, 4096, None)]
    assert rates[1] == pytest.approx(2 * rates[0]) and rates[2] == rates[3] > 2 * rates[1]


def test_small_models_reach_less_of_the_peak_than_large_ones():
    def mfu(size, gpu):
        model = ViTConfig.named(size, num_classes=1000)
        rate = GPUS[gpu].images_per_s(model, compiled=True)
        return 3 * model.forward_flops * rate / GPUS[gpu].bf16_flops

    assert 0.12 < mfu("Ti/16", "H100") < mfu("S/16", "H100") < mfu("B/16", "H100") < 0.4
    assert mfu("B/16", "H100") < mfu("B/16", "H20") and mfu("B/16", "H100") < mfu("B/16", "A100")


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H100 PCIe", "fp32", None),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA Graphics Device", "bf16", None),
    ],
)
def test_meter_counts_with_the_same_peak(monkeypatch, device, precision, peak):
    monkeypatch.setattr(meter.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(meter.torch.cuda, "get_device_name", lambda: device)
    assert meter.peak_flops(precision) == peak
