"""Trials at the same time and their workers, from what a cluster has or can get; no cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_runs import plan_in

from tune import slots
from tune.slots import Cluster, Slots


def shape(cpus=430, gpus=32, trials=32, batch=4096, **how):
    found = Slots.of(cpus=cpus, gpus=gpus, trials=trials, batch=batch, **how)
    return found.trials, found.workers, found.device


def test_each_rung_uses_all_gpus_with_many_trials_or_with_wide_ones():
    assert shape(trials=32) == shape(trials=100) == (32, 1, "gpu")
    assert shape(trials=8) == (8, 4, "gpu")
    # 10 workers each could not share a batch of 4,096
    assert shape(trials=3) == (3, 8, "gpu")
    # a core for each worker, and one for the data
    assert shape(cpus=9, gpus=8) == (8, 1, "gpu")
    assert shape(cpus=8, gpus=8) == (7, 1, "gpu")


def test_gpus_that_are_still_to_come_are_used():
    # those that an autoscaler can bring are counted, although the head has none
    assert shape(device="auto", gpus=8, trials=8) == (8, 1, "gpu")
    # for those that nothing has announced one trial waits, as a run does
    assert shape(device="gpu", gpus=0, cpus=4) == (1, 1, "gpu")
    # whose number is known to the one who gives both, such as on Kubernetes
    assert shape(device="gpu", gpus=0, cpus=0, workers=4, concurrent=8) == (8, 4, "gpu")


def test_without_gpus_half_of_the_cores_compute():
    how = {"gpus": 0, "batch": 128}
    two = Slots.of(cpus=4, trials=32, **how)
    assert two == Slots(trials=2, workers=1, worker_cpus=1, device="cpu")
    # more trials are no faster
    assert Slots.of(cpus=64, trials=32, **how).trials == 8
    assert Slots.of(cpus=64, trials=2, **how).worker_cpus == 16
    assert shape(device="cpu") == (8, 1, "cpu")


@given(
    cpus=st.integers(2, 500),
    gpus=st.integers(0, 64),
    trials=st.integers(2, 40),
    batch=st.sampled_from([96, 128, 1024, 4096]),
    workers=st.none() | st.integers(1, 4),
    concurrent=st.none() | st.integers(1, 40),
)
def test_what_runs_at_the_same_time_always_fits(cpus, gpus, trials, batch, workers, concurrent):
    how = {"trials": trials, "batch": batch, "workers": workers, "concurrent": concurrent}
    try:
        found = Slots.of(cpus=cpus, gpus=gpus, **how)
    except ValueError:
        assert workers or concurrent
        return
    assert 1 <= found.trials <= min(trials, concurrent or trials)
    units = min(gpus, cpus - 1) if gpus else cpus // 2
    assert found.trials * found.workers * (1 if gpus else found.worker_cpus) <= units
    assert workers or batch % found.workers == 0


def test_more_than_the_cluster_has_is_refused_in_words():
    with pytest.raises(ValueError, match=r"3 trials of 1 workers .* 3 pairs of CPUs.*4 CPUs"):
        shape(cpus=4, gpus=0, concurrent=3)
    with pytest.raises(ValueError, match="4 workers .*2 GPUs and 430 CPUs: lower --workers or"):
        shape(gpus=2, workers=4)
    # a rung with fewer trials than that runs them all
    assert shape(trials=3, workers=4, concurrent=16) == (3, 4, "gpu")


def test_nodes_that_are_lost_for_a_while_neither_end_the_search_nor_move_it_to_cpus(
    tmp_path, monkeypatch
):
    here = {"CPU": 40, "GPU": 8}
    monkeypatch.setattr(slots, "possible_nodes", list)
    monkeypatch.setattr(slots, "node_types", list)
    monkeypatch.setattr(slots, "possible_resources", lambda _: here)
    monkeypatch.setattr(slots, "LOOK_S", 0.0)
    cluster = Cluster(plan_in(tmp_path, workers=2))
    assert cluster.slots(0).trials == 4
    here["GPU"] = 1
    assert cluster.slots(0) is None
    here["GPU"] = 16
    assert (cluster.slots(0).trials, cluster.slots(0).device) == (8, "gpu")
    here["GPU"] = 0
    assert cluster.slots(0).device == "gpu"
    with pytest.raises(ValueError, match="lower --workers"):
        Cluster(plan_in(tmp_path, workers=64)).slots(0)
