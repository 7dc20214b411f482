"""What a node reports of itself and of the GPUs of its workers, under MLflow's names."""

from types import SimpleNamespace

import pytest

from pipeline.train import system_metrics
from pipeline.train.system_metrics import gpu_sample, host_samples


def test_gpus_are_named_by_the_ranks_that_use_them(monkeypatch):
    class Nvml:
        """Two GPUs, by UUID."""

        nvmlDeviceGetHandleByUUID = staticmethod({"GPU-a": 1, "GPU-b": 2}.__getitem__)

        @staticmethod
        def nvmlDeviceGetMemoryInfo(handle):
            return SimpleNamespace(used=handle * 10e6, total=80e6)

        @staticmethod
        def nvmlDeviceGetUtilizationRates(handle):
            return SimpleNamespace(gpu=90 + handle)

        @staticmethod
        def nvmlDeviceGetPowerUsage(handle):
            return handle * 350_000

    monkeypatch.setattr(system_metrics, "pynvml", Nvml)
    assert gpu_sample({}) == {}
    assert gpu_sample({8: "GPU-b", 9: "GPU-a"}) == {
        "system/gpu_8_utilization_percentage": 92.0,
        "system/gpu_8_memory_usage_megabytes": 20.0,
        "system/gpu_8_memory_usage_percentage": 25.0,
        "system/gpu_8_power_usage_watts": 700.0,
        "system/gpu_9_utilization_percentage": 91.0,
        "system/gpu_9_memory_usage_megabytes": 10.0,
        "system/gpu_9_memory_usage_percentage": 12.5,
        "system/gpu_9_power_usage_watts": 350.0,
    }


@pytest.mark.parametrize(("node", "prefix"), [(0, "system/"), (3, "system/node_3/")])
def test_nodes_do_not_share_names(node, prefix):
    samples = host_samples(node)
    next(samples)
    values = next(samples)
    assert len(values) == 6 and all(name.startswith(prefix) for name in values)
    assert 0 < values[f"{prefix}system_memory_usage_percentage"] < 100
    assert all(value >= 0 for value in values.values())
