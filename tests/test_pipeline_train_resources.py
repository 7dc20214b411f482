"""What each worker reserves, so that reading never waits for training."""

import pytest

from pipeline.settings.presets import find_preset
from pipeline.train.resources import worker_resources

DEMO = find_preset("demo")


@pytest.mark.parametrize(
    ("cluster", "settings", "each"),
    [
        ({"CPU": 4}, {}, {"CPU": 1}),
        ({"CPU": 4}, {"workers": 4}, {"CPU": 0.5}),
        ({"CPU": 32}, {}, {"CPU": 8}),
        ({"CPU": 32, "GPU": 4}, {}, {"GPU": 1, "CPU": 1}),
        ({"CPU": 32, "GPU": 4}, {"worker_cpus": 3}, {"GPU": 1, "CPU": 3}),
        ({"CPU": 32, "GPU": 4}, {"device": "cpu"}, {"CPU": 8}),
        ({"CPU": 2}, {"device": "gpu"}, {"GPU": 1, "CPU": 1}),
    ],
)
def test_half_of_the_cores_read_where_there_are_no_gpus(cluster, settings, each):
    assert worker_resources(DEMO.replace(settings), cluster) == each


@pytest.mark.parametrize(
    ("cluster", "settings", "message"),
    [
        ({"CPU": 32, "GPU": 1}, {}, r"workers \(2\) need a GPU each and the cluster has 1"),
        ({"CPU": 2, "GPU": 2}, {}, "leave none of the cluster's 2"),
        ({"CPU": 8}, {"worker_cpus": 4}, "leave none of the cluster's 8"),
    ],
)
def test_a_cluster_that_could_never_start_is_refused(cluster, settings, message):
    with pytest.raises(ValueError, match=message):
        worker_resources(DEMO.replace(settings), cluster)
