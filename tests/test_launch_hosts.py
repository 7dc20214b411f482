"""From a laptop to a run on a cluster of three hosts through ssh, whatever is lost on the way."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sshd
from cluster import CREDENTIALS, FILE, TOKEN, Cluster, missing
from hosts import BUCKET, WORK, Host

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, BATCH, EVERY, SLICE = 600, 50, 10, 7
RUNS, DATA = f"s3://{BUCKET}/runs", f"s3://{BUCKET}/digits"
ARCHIVE = """
from pathlib import Path
from pipeline.data.digits import write_archive
write_archive(Path("digits.tar"))
"""
UPLOAD = f"from pyarrow import fs; fs.copy_files('digits', {DATA!r})"
BUILD = "--val-per-class 36 --shard-samples 100 --val-shards 2 --workers 0".split()
SETTINGS = {
    "runs-dir": RUNS,
    "data.dir": DATA,
    "data.slice-samples": SLICE,
    "data.task-samples": 100,
    "model.image-size": 16,
    "model.patch-size": 8,
    "model.width": 32,
    "model.depth": 2,
    "model.mlp-width": 64,
    "model.heads": 2,
    "optim.lr": 1e-3,
    "optim.warmup": 20,
    "optim.warmup-unit": "steps",
    "epochs": STEPS * BATCH / 1437,
    "global-batch": BATCH,
    "micro-batch": 25,
    "workers": 2,
    "min-workers": 1,
    "worker-cpus": 2,  # of three on each host, so that each host has one worker
    "log-every": 1,
    "eval-every": 10 * STEPS,
    "checkpoint-every": EVERY,
    "checkpoint-minutes": 600,
    "crops": "center",
    "max-restarts": 20,
    "record.models": "none",
}
# prints the keys of all global batches, as they must be
EXPECTED = f"""
import json
from pipeline.data.dataset import Dataset
from pipeline.data.reader import SampleReader, View
from vit.config import ImageConfig
dataset = Dataset.open(["digits"], "train", slice_samples={SLICE})
reader = SampleReader(dataset=dataset, view=View(images=ImageConfig(), size=16))
spans = dataset.order(seed=0).spans(0, {STEPS * BATCH})
print(json.dumps([record.key for _, _, record in reader.samples(spans)]))
"""
# prints what MLflow knows of a run, as a client on the head sees it
MLFLOW = """
import json, sys, mlflow
mlflow.set_tracking_uri("http://127.0.0.1:5000")
runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
(run,) = [run for run in runs if run.info.run_name == sys.argv[1]]
client = mlflow.MlflowClient()
history = client.get_metric_history(run.info.run_id, "train/loss")
print(json.dumps({
    "status": run.info.status,
    "params": run.data.params,
    "files": [file.path for file in client.list_artifacts(run.info.run_id)],
    "steps": sorted(point.step for point in history),
}))
"""
# prints what the dashboard says to the one who has the token
PAGES = """
import sys, urllib.request
headers = {"Authorization": f"Bearer {open(sys.argv[1]).read().strip()}"}
for page in ("api/jobs/", "nodes?view=summary", "api/v0/actors?detail=1", "api/cluster_status"):
    request = urllib.request.Request(f"http://127.0.0.1:8265/{page}", headers=headers)
    print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Machines that are up, and the digits in their store."""
    if reason := missing():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.laptop.done("python", "-c", ARCHIVE)
        build = ("python", "-m", "shards", "build", "digits.tar", "--out", "digits")
        cluster.laptop.done(*build, *BUILD)
        cluster.laptop.done("python", "-c", UPLOAD, **cluster.keys)
        yield cluster


def train(name: str, **changes: object) -> list[str]:
    """The command of a small run."""
    settings = SETTINGS | {key.replace("_", "-"): value for key, value in changes.items()}
    flat = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return ["train", "demo", "--name", name, *flat, "--audit"]


def steps(output: str) -> list[int]:
    """The steps on the console of a run."""
    return list(map(int, re.findall(r"^step +(\d+)/", output, re.MULTILINE)))


@pytest.mark.parametrize(
    ("head_ip", "key", "message"),
    [
        ("10.77.0.1", f"{WORK}/other/id_ed25519", "the machine does not accept the ssh key"),
        ("10.77.0.77", sshd.PRIVATE_KEY, "the machine cannot be reached"),
    ],
    ids=["key", "address"],
)
def test_a_head_that_cannot_be_opened_is_told_in_a_sentence(cluster, head_ip, key, message):
    folder = cluster.laptop.path(f"{WORK}/other")
    if not folder.exists():
        folder.mkdir()
        sshd.make_key(folder)
    cluster.describe("wrong.yaml", head_ip, key)
    # Ray waits longer for a machine that boots
    started = cluster.launch(
        "--", *train("none"), file="wrong.yaml", AUTOSCALER_NODE_START_WAIT_S="10"
    )
    assert started.end() == 1
    assert f"error: ray up failed: {message}" in started.output


@pytest.fixture(scope="module")
def first(cluster):
    """A launch that starts the cluster, and is left with Ctrl-C while its run trains."""
    started = cluster.launch("--", *train("first"))
    started.wait_for(lambda: cluster.checkpoints("first") and steps(started.output))
    (pid,) = cluster.laptop.pids("pipeline launch")
    os.kill(pid, signal.SIGINT)
    started.end()
    return started


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(cluster, first):
    assert first.process.returncode == 130, first.output
    assert f"python -m pipeline launch {FILE} --attach {first.job}\n" in first.output
    assert not cluster.laptop.pids("ray.scripts")  # the tunnels
    assert re.search(rf"{first.job} +RUNNING", cluster.job("status"))


def test_a_job_is_refused_without_the_token_and_accepted_with_it(cluster, first):
    address = ("--address", "http://127.0.0.1:8265")
    submit = ("ray", "job", "submit", *address, "--", "echo", "so", "be", "it")
    without = {"RAY_AUTH_MODE": "disabled"}
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
    for env in (without, wrong):
        status, output = cluster.head.run(*submit, **env)
        assert status and "AuthenticationError" in output
    assert "so be it" in cluster.head.done(*submit, RAY_AUTH_MODE="token")


def test_the_dashboard_is_not_seen_from_other_machines(cluster, first):
    address = f"http://{cluster.head.address}:8265"
    look = f"import urllib.request; urllib.request.urlopen({address!r}, timeout=10)"
    status, output = cluster.laptop.run("python", "-c", look)
    assert status and "Connection refused" in output


@pytest.fixture(scope="module")
def resumed(cluster, first):
    """The first run, followed again, until its end; a host is lost and comes back meanwhile."""
    followed = cluster.launch("--attach", first.job)
    followed.wait_for(lambda: cluster.trains_with("first", 2))
    cluster.cut(cluster.w2)
    followed.wait_for(lambda: cluster.trains_with("first", 1))
    cluster.boot(cluster.w2)
    followed.wait_for(lambda: cluster.trains_with("first", 2))
    followed.end()
    return followed


def test_a_run_goes_on_without_a_lost_host_and_uses_it_again_when_it_is_back(cluster, resumed):
    assert resumed.process.returncode == 0, resumed.output
    assert cluster.checkpoints("first")[-1] == STEPS
    assert [record["step"] for record in cluster.records("first")] == list(range(1, STEPS + 1))


def test_every_global_batch_of_the_run_is_the_one_of_the_order(cluster, resumed):
    names = [f"runs/first/samples/step-{step:09d}.json" for step in range(1, STEPS + 1)]
    trained = [key for name in names for key in json.loads(cluster.store.read(name))]
    assert trained == json.loads(cluster.laptop.done("python", "-c", EXPECTED))


def test_the_output_of_the_job_is_whole(cluster, first, resumed):
    output = cluster.job("logs", first.job)
    assert set(steps(output)) == set(range(1, STEPS + 1))
    end = resumed.output[resumed.output.index("[2/2] evaluate") :]
    assert end[: end.index("MLflow page")] in output
    assert f"{RUNS}/first/checkpoints/step-{STEPS:09d}" in end


def test_the_run_in_mlflow_is_whole(cluster, resumed):
    found = json.loads(cluster.head.done("python", "-c", MLFLOW, "first").splitlines()[-1])
    assert found["status"] == "FINISHED"
    assert found["steps"] == list(range(1, STEPS + 1))
    assert found["params"]["global_batch"] == str(BATCH)
    assert found["files"]


def test_the_dashboard_and_the_command_lines_show_no_secret(cluster, resumed):
    shown = cluster.head.done("python", "-c", PAGES, TOKEN)
    assert resumed.job in shown
    for host in cluster.all:
        shown += "\n".join(host.inside.processes().values())
    assert not any(secret in shown for secret in secrets(cluster))


@pytest.fixture(scope="module")
def noticed(cluster, resumed):
    """A run on a node that gets a spot notice and is lost; stopped, with the cluster taken down.

    Returns the launch, the step at which the notice was given, and that of the checkpoint.
    """
    started = cluster.launch("--down", "--", *train("spot", checkpoint_every=10 * STEPS))
    with cluster.metadata_server(cluster.w1) as server:
        started.wait_for(lambda: len(steps(started.output)) > EVERY)
        step = steps(started.output)[-1]
        server.announce(left_s=30)
        started.wait_for(lambda: cluster.checkpoints("spot"))
    saved = cluster.checkpoints("spot")[-1]
    cluster.cut(cluster.w1)
    started.wait_for(lambda: steps(started.output)[-1] > saved + EVERY)
    cluster.boot(cluster.w1)
    started.wait_for(lambda: cluster.w1.pids("raylet"))
    cluster.job("stop", started.job)
    started.end()
    return started, step, saved


def test_a_spot_notice_leads_to_a_checkpoint_of_the_step_at_hand_before_the_node_goes(noticed):
    started, step, saved = noticed
    assert step <= saved < step + STEPS / 4
    assert re.search(r"node w1 .* goes away .*: a checkpoint is written", started.output)
    # the workers have ended after their checkpoint, or the host was gone before they could
    assert re.search(rf"(going on|again) from step {saved}\b", started.output)


def test_down_leaves_no_process_on_any_host(cluster, noticed):
    assert noticed[0].process.returncode == 130, noticed[0].output
    deadline = time.monotonic() + 30
    while any(map(left, cluster.all)):
        assert time.monotonic() < deadline, list(map(left, cluster.all))


def left(host: Host) -> list[str]:
    """What runs on a host besides ssh, whose connections stay for some seconds."""
    lines = host.inside.processes().values()
    return [line for line in lines if not line.startswith(("sshd:", "ssh:", "sleep "))]


def test_neither_token_nor_key_of_the_store_is_in_a_file_of_a_host_or_in_the_store(
    cluster, noticed
):
    found = [path for host in cluster.all for path in files(host)]
    own = [host.path(name) for host in cluster.all for name in (CREDENTIALS, TOKEN)]
    assert len(found) > 200
    for path in [*found, *cluster.folder.glob("*.log")]:
        content = path.read_bytes()
        assert path in own or not any(s.encode() in content for s in secrets(cluster)), path
    for key in cluster.store.keys(""):
        content = cluster.store.read(key)
        assert not any(secret.encode() in content for secret in secrets(cluster)), key


def secrets(cluster: Cluster) -> list[str]:
    """What nobody may see; it is where it belongs."""
    token = cluster.laptop.path(TOKEN).read_text().strip()
    assert token and token in cluster.w1.path(TOKEN).read_text()
    return [token, cluster.keys["AWS_SECRET_ACCESS_KEY"]]


def files(host: Host) -> Iterator[Path]:
    """All files on the disk of a host."""
    for top in map(host.path, ("/tmp", "/root", "/srv")):
        for folder, folders, names in os.walk(top):
            # what Python needs is not the host's own
            folders[:] = [name for name in folders if not Path(folder, name).is_mount()]
            yield from (path for name in names if (path := Path(folder, name)).is_file())
