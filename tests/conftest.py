"""Shared by all tests: one Ray for each process of tests, and the digits as a small shard set."""

import os
import signal

# before Ray and PyTorch are imported anywhere: a private, quiet Ray with short pauses, and one
# thread for each of the processes that share the cores, or threads that leave them while they wait
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "RAY_AUTH_MODE": "disabled",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import pytest
import time_limits
from native_backends import backend  # noqa: F401 (a fixture)

# a shell lets jobs in its background ignore Ctrl-C, which tests send to the commands they start
signal.signal(signal.SIGINT, signal.default_int_handler)

# no test cuts the power, so nothing that this process writes has to wait for the disk
os.fsync = lambda descriptor: None

# modules that take minutes, the longest first: what comes last leaves the other process idle
LONG = (
    "test_pipeline_exact",
    "test_two_hosts",
    "test_launch_hosts",
    "test_pipeline_launch_jobs",
    "test_demo",
    "test_pipeline_killed",
    "test_wheel",
    "test_tune_resume",
    "test_tune_hosts",
    "test_pipeline_elastic",
    "test_autoscaling",
    "test_extending",
    "test_tune_search",
    "test_pipeline_evaluation",
)
# modules without Ray that share what takes long to make
DEAR = {
    "test_pipeline_checkpoint_sharded",
    "test_pipeline_train_objective",
    "test_pipeline_train_start",
}


def pytest_configure(config):
    """Let no test hang."""
    config.pluginmanager.register(time_limits)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep tests together that share Ray or what was made with it; begin with the longest."""
    for item in items:
        if shares(item):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
        if item.module.__name__ in LONG or item.get_closest_marker("slow"):
            time_limits.takes_long(item)
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.module.__name__, len(LONG)))


def shares(item):
    """Whether a test has an expensive fixture in common with others of its module."""
    if "ray_cluster" in item.fixturenames:
        return True
    found = item._fixtureinfo.name2fixturedefs.values()
    made = any(fixture.scope == "module" for fixtures in found for fixture in fixtures)
    return made and bool({"ray", "server"} & set(item.keywords) or item.module.__name__ in DEAR)


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray with four logical CPUs."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folder of the digits as a shard set: 15 train shards of 95 or 96 samples, 4 of val."""
    from pipeline.data.digits import write_archive
    from shards.build.config import BuildConfig
    from shards.build.pack import build

    folder = tmp_path_factory.mktemp("digits")
    write_archive(folder / "digits.tar")
    config = BuildConfig(val_per_class=36, shard_samples=100, val_shards=2)
    build([folder / "digits.tar"], folder / "shards", config)
    return folder / "shards"


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other are slow where the cores are shared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def alone(tmp_path):
    """A world of one process."""
    import step_ranks
    import torch.distributed

    step_ranks.join(0, 1, tmp_path / "meet")
    yield
    torch.distributed.destroy_process_group()
