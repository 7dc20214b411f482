"""A run continues with fewer workers when a node goes, and with more when one comes.

A node that is lost without a warning is one of tests/test_launch_hosts.py.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from pipeline.data.dataset import Dataset
from pipeline.data.reader import SampleReader, View
from vit.config import ImageConfig

# the parts are shown by default: a killed worker in exact, other numbers of workers in the order
pytestmark = [pytest.mark.ray, pytest.mark.slow]

# far more than are needed: the run is stopped when it has two workers again
STEPS, BATCH = 100_000, 50

# its own process: Ray's cluster utility starts several nodes on this machine
SCRIPT = """
import json, sys, threading, time
from support.console import open_console
open_console(verbose=False)  # before Ray sets a console of its own
from pathlib import Path
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
import ray
from fake_metadata import FakeMetadata
from pipeline import run
from pipeline.train import attempts
from pipeline.settings.config import DataConfig, TrainConfig
from vit.config import ImageConfig, OptimConfig, ViTConfig

runs, digits, steps, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
groups, how = json.loads(sys.argv[5]), sys.argv[6]
attempts.RESIZE_S = 2.0
config = TrainConfig(
    name="elastic",
    runs_dir=str(runs),
    data=DataConfig(dir=digits, slice_samples=7, task_samples=400),
    model=ViTConfig(
        image_size=16, patch_size=8, width=32, depth=2, mlp_width=64, heads=2, pool="mean"
    ),
    images=ImageConfig(crop_area=(0.5, 1.0), flip=False),
    optim=OptimConfig(lr=1e-3),
    epochs=steps * batch / 1437,
    global_batch=batch,
    workers=2,
    min_workers=1,
    worker_cpus=2,
    precision="fp32",
    compile=False,
    log_every=1,
    eval_every=10_000,
    checkpoint_every=10,
    crops="center",
    audit=True,
    max_restarts=20,
)
# one worker of two CPUs on each node, and one CPU that reads; Ray Train tells nodes by addresses
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
cloud = FakeMetadata("aws").__enter__()
second = cluster.add_node(
    num_cpus=3, node_ip_address="127.0.0.2", env_vars=cloud.environment
)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
seen, last = [], {}


def follow(record):
    if record["kind"] != "train":
        return False
    if not seen or seen[-1] != record["workers"]:
        seen.append(record["workers"])
    last.setdefault(len(seen), []).append(record["step"])
    return "enough" if seen == groups else False


def wait_for(expected):
    while seen != expected and training.is_alive():
        time.sleep(0.1)


# nodes come and go from the main thread, where Ray may set its signal handlers
training = threading.Thread(target=run.fit, args=(config,), kwargs={"on_record": follow})
training.start()
wait_for([2])
while len(last[1]) < 25 and training.is_alive():
    time.sleep(0.1)
if how == "notice":
    cloud.announce()
else:
    gcs = ray._raylet.GcsClient(address=cluster.address)
    deadline_ms = int(1000 * (time.time() + 120))
    gcs.drain_node(second.node_id, DRAIN_NODE_REASON_PREEMPTION, "a test", deadline_ms)
wait_for([2, 1])
if groups != [2, 1]:
    cluster.add_node(num_cpus=3, node_ip_address="127.0.0.3")
training.join()
print(json.dumps({"groups": seen, "lost_after": last[1][-1]}))
ray.shutdown()
cluster.shutdown()
"""


def run(digits, folder, groups: list[int], how: str) -> tuple[str, dict]:
    """Train while a node goes in this way; the console, and what the records say."""
    arguments = [str(folder), str(digits), str(STEPS), str(BATCH), json.dumps(groups), how]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        # Ray may count on the lost node once more, and waits this long for it
        env={
            **os.environ,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",  # as it is by default
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["groups"] == groups
    return result.stdout, found


def check_sequence(digits, folder) -> None:
    """All batches are those of the order, each once."""
    paths = sorted((folder / "elastic" / "samples").iterdir())
    consumed = [key for path in paths for key in json.loads(path.read_text())]
    dataset = Dataset.open([str(digits)], "train", slice_samples=7)
    reader = SampleReader(dataset=dataset, view=View(images=ImageConfig(), size=16))
    assert len(consumed) > 20 * BATCH
    spans = dataset.order(seed=0).spans(0, len(consumed))
    assert consumed == [record.key for _, _, record in reader.samples(spans)]


@pytest.mark.parametrize(
    ("how", "groups", "reason"),
    [
        ("notice", [2, 1], "AWS gives notice of terminate"),
        ("drain", [2, 1, 2], "Ray drains it"),
    ],
)
def test_a_run_that_is_warned_goes_on_without_the_node_and_loses_no_step(
    digits, tmp_path, how, groups, reason
):
    console, found = run(digits, tmp_path, groups, how)
    assert re.search(rf"node .* goes away \({reason}.*\): a checkpoint is written", console)
    assert f"going on from step {found['lost_after']:,} with" in console
    assert "start again" not in console  # nothing has failed
    check_sequence(digits, tmp_path)
