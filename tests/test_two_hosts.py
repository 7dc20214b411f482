"""Two hosts without a common disk: refused, or a run that ends with the same bits whatever dies."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Sequence

import pytest
from hosts import BUCKET, Hosts
from namespaces import missing

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, BATCH, EVERY = 180, 50, 10
TIMEOUT_S = 600
DATA = f"s3://{BUCKET}/digits"
# where a run lies, and its checkpoints in the store
RUNS, CHECKPOINTS = ("--runs-dir", f"s3://{BUCKET}/runs"), "runs/{name}/checkpoints/"
ARCHIVE = """
from pathlib import Path
from pipeline.data.digits import write_archive
write_archive(Path("digits.tar"))
"""
BUILD = ("--val-per-class", "36", "--shard-samples", "100", "--val-shards", "2")
SETTINGS = {
    "data.dir": DATA,
    "data.slice-samples": 7,
    "data.task-samples": 100,
    "model.image-size": 16,
    "model.patch-size": 8,
    "model.width": 32,
    "model.depth": 2,
    "model.mlp-width": 64,
    "model.heads": 2,
    "images.crop-area": "0.5 1.0",
    "mix.mixup": 0.2,
    "optim.lr": 1e-3,
    "optim.warmup": 20,
    "optim.warmup-unit": "steps",
    "optim.ema": 0.99,
    "epochs": STEPS * BATCH / 1437,
    "global-batch": BATCH,
    "micro-batch": 14,
    "workers": 2,
    "worker-cpus": 2,  # of three on each host, so that each host has one worker
    "log-every": EVERY,
    "eval-every": STEPS // 2,
    "checkpoint-every": EVERY,
    "crops": "center",
    "max-restarts": 20,
    "record.models": "none",
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts of one Ray, and the digits in their store."""
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@contextlib.contextmanager
def two_hosts(folder):
    """Hosts of one Ray, and the digits in their store; skips the test where there can be none."""
    if reason := missing():
        pytest.skip(reason)
    with Hosts(folder, "h1", "h2") as hosts:
        hosts.h1.done("python", "-c", ARCHIVE)
        hosts.h1.done(*build("digits.tar", DATA), "--workers", "0")
        hosts.start_ray()
        yield hosts


def build(source: str, out: str) -> list[str]:
    return ["python", "-m", "shards", "build", source, "--out", out, *BUILD]


def train(name: str, place: Sequence[str] = RUNS) -> list[str]:
    """The command of a small run."""
    flat = [word for key, value in SETTINGS.items() for word in (f"--{key}", *str(value).split())]
    return ["python", "-m", "pipeline", "train", "demo", "--name", name, *place, *flat, "--audit"]


def words(output: str) -> str:
    return " ".join(output.split())


def test_a_run_in_a_folder_of_one_host_is_refused_before_training(hosts):
    status, output = hosts.h1.run(*train("private", ("--runs-dir", "/srv/work/runs")))
    assert status == 2, output
    assert "/srv/work/runs/private is not seen by node h2 (10.77.0.2)" in words(output)
    assert not any("checkpoints" in key for key in hosts.store.keys("private"))
    status, output = hosts.h1.run("find", "/srv/work/runs", "-name", "step-*")
    assert (status, output) == (0, "")


def test_a_source_on_one_host_is_refused_before_any_work(hosts):
    status, output = hosts.h1.run(*build("/srv/work/digits.tar", f"s3://{BUCKET}/refused"))
    assert status == 2, output
    assert "/srv/work/digits.tar is not seen by node h2 (10.77.0.2)" in words(output)
    assert [key for key in hosts.store.keys("refused") if not key.endswith("/")] == []


def test_an_output_on_one_host_is_refused_before_any_work(hosts):
    status, output = hosts.h1.run(*build(DATA, "/srv/work/out"))
    assert status == 2, output
    assert "/srv/work/out is not seen by node h2 (10.77.0.2)" in words(output)
    assert hosts.h1.run("find", "/srv/work/out", "-type", "f") == (0, "")


def test_a_build_on_both_hosts_makes_the_bytes_of_a_build_on_one(hosts):
    upload = "from pyarrow import fs; fs.copy_files('digits.tar', 's3://bkt/digits.tar')"
    hosts.h1.done("python", "-c", upload)
    # Ray was started without the code, so the hosts have it from the driver alone
    hosts.h1.done(*build(f"s3://{BUCKET}/digits.tar", f"s3://{BUCKET}/both"))
    keys = [key for key in hosts.store.keys("digits/") if key.endswith(".tar")]
    names = [key.removeprefix("digits/") for key in keys]
    assert len(names) > 15
    for name in names:
        assert hosts.store.read(f"both/{name}") == hosts.store.read(f"digits/{name}"), name


@pytest.fixture(scope="module")
def undisturbed(hosts):
    """The name of a run that nothing interrupts."""
    hosts.h1.done(*train("undisturbed"))
    return "undisturbed"


# bytes that the object stores of all nodes have received from other nodes, as Ray counts them
RECEIVED = """
import re, time, urllib.request
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
time.sleep(15)  # nodes publish their figures every few seconds
line = re.compile(r'ray_object_manager_bytes{.*Type="Received".*} (.*)')
for node in ray.nodes():
    if node["Alive"]:
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=30).read().decode()
        print(*map(float, line.findall(text)))
"""


def test_no_pixels_leave_their_node(hosts, undisturbed):
    status, output = hosts.h1.run("python", "-c", RECEIVED)
    assert status == 0, output
    received = [float(line) for line in output.split()]
    assert len(received) == 2, output
    pixels = STEPS * BATCH * 16 * 16 * 3  # decoded in training, half of them on each host
    assert sum(received) < 0.05 * pixels


def test_both_hosts_start_from_a_run_that_is_in_the_store_alone(hosts, undisturbed):
    start = ("--init-from", f"s3://{BUCKET}/runs/{undisturbed}", "--init-head", "keep")
    hosts.h1.done(*train("tuned"), *start, "--epochs", str(40 * BATCH / 1437))
    # each has its copy from the folder of the run, and begins where the other run ended
    assert "runs/tuned/init/model.safetensors" in hosts.store.keys("runs/tuned/init")
    first, last = (evaluations(hosts, name) for name in ("tuned", undisturbed))
    assert first[0]["val/top1"] == last[STEPS]["val/top1"] > 0.5


VICTIMS = ("worker", "other host", "head", "new head")


def test_killed_at_four_random_moments_the_run_ends_with_the_same_bits(hosts, undisturbed):
    kill_and_resume(hosts, "killed", VICTIMS, random.Random(7))
    model = f"{CHECKPOINTS}step-{STEPS:09d}/model.safetensors"
    expected = hosts.store.read(model.format(name=undisturbed))
    assert hosts.store.read(model.format(name="killed")) == expected
    assert losses(hosts, "killed") == losses(hosts, undisturbed)
    for step in range(1, STEPS + 1):
        keys = f"runs/{{name}}/samples/step-{step:09d}.json"
        expected = hosts.store.read(keys.format(name=undisturbed))
        assert hosts.store.read(keys.format(name="killed")) == expected, step


def evaluations(hosts: Hosts, name: str) -> dict[int, dict]:
    """The recorded evaluations by step."""
    records = map(json.loads, hosts.store.read(f"runs/{name}/metrics.jsonl").splitlines())
    return {r["step"]: r for r in records if r["kind"] == "eval"}


def losses(hosts: Hosts, name: str) -> dict[int, float]:
    """The recorded loss by step."""
    records = map(json.loads, hosts.store.read(f"runs/{name}/metrics.jsonl").splitlines())
    return {r["step"]: r["train/loss"] for r in records if r["kind"] == "train"}


def reached(hosts: Hosts, name: str) -> int:
    """The step of the newest complete checkpoint in the store."""
    keys = " ".join(hosts.store.keys(CHECKPOINTS.format(name=name)))
    return max(map(int, re.findall(r"step-(\d{9})/meta\.json", keys)), default=0)


def kill_and_resume(hosts: Hosts, name: str, victims: Sequence[str], draw: random.Random) -> None:
    """Train to the end; on the way each victim is killed, after a checkpoint drawn at random."""
    log = hosts.folder / f"{name}.log"
    process = hosts.h1.start(*train(name), log=log)
    moments = sorted(draw.sample(range(EVERY, STEPS - 3 * EVERY, EVERY), len(victims)))
    for victim, moment in zip(victims, moments, strict=True):
        deadline = time.monotonic() + TIMEOUT_S
        while reached(hosts, name) < moment:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        time.sleep(draw.random() / 2)
        assert process.poll() is None, log.read_text()
        with log.open("a") as file:
            file.write(f"--- {victim} is killed after step {moment}\n")
        if kill(hosts, victim, draw):
            process.wait(60)
            process = hosts.h1.start(*train(name), log=log)
    try:
        assert process.wait(TIMEOUT_S) == 0, log.read_text()
    except subprocess.TimeoutExpired:
        pytest.fail(log.read_text())


def kill(hosts: Hosts, victim: str, draw: random.Random) -> bool:
    """Kill something, and bring its host up again; whether the driver is dead."""
    if victim == "worker":
        deadline = time.monotonic() + TIMEOUT_S
        while not (workers := hosts.h1.pids("RayTrainWorker") + hosts.h2.pids("RayTrainWorker")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(draw.choice(workers), signal.SIGKILL)
        return False
    if victim == "other host":
        hosts.h2.kill()
        hosts.h2.start_ray()
        return False
    hosts.h1.replace() if victim == "new head" else hosts.h1.kill()
    # what has lost its head may go on for a while, and is then started anew with it
    time.sleep(2 * draw.random())
    hosts.h2.kill()
    hosts.start_ray()
    return True
