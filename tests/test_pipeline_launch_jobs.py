"""Jobs on a cluster that asks for a token: followed, left, found again, stopped, and silent."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY00"  # of a store, in the environment of the nodes
SMALL = ("--model.depth", "1", "--model.width", "32", "--model.heads", "2", "--no-compile")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """A head with a token, which runs until the end of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.launches: list[subprocess.Popen] = []
        self.runs = folder / "runs"
        self.home.mkdir()
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        self.env = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        self.run("ray", "get-auth-token", "--generate")
        command = f"ray start --head --port {free_port()} --dashboard-port {port} --block"
        command += f" --dashboard-agent-listen-port {free_port()}"  # the usual one may be in use
        command += f" --num-cpus 4 --object-store-memory 300000000 --temp-dir /tmp/l{port}"
        self.session = Path(f"/tmp/l{port}")
        with (folder / "head.log").open("w") as log:
            self.process = subprocess.Popen(
                command.split(), stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while self.pipeline("job", "status", "--address", self.address).returncode:
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(1)

    @property
    def token(self) -> str:
        return (self.home / ".ray" / "auth_token").read_text().strip()

    def run(self, *command: str, timeout: float = 900, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env | env,
            timeout=timeout,
            check=False,
        )

    def pipeline(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "pipeline", *arguments, **env)

    def launched(self, log: Path, *arguments: str) -> subprocess.Popen:
        """A launch in the background, as from a terminal: Ctrl-C reaches it."""
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "launch", "--address", self.address, *arguments],
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=self.env,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        self.launches.append(process)
        return process

    def close(self) -> None:
        for process in self.launches:
            process.kill()
        head = psutil.Process(self.process.pid)
        family = [head, *head.children(recursive=True)]  # MLflow's server would outlive the head
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=60)
        shutil.rmtree(self.session, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


def wait_for(text: str, log: Path, process: subprocess.Popen, timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.parametrize("token", ["none", "another"])
def test_without_the_token_nothing_is_accepted(cluster, token, tmp_path):
    env = {"HOME": str(tmp_path)}
    if token == "another":
        env["RAY_AUTH_TOKEN"] = "0" * 64
    submit = ("ray", "job", "submit", "--address", cluster.address, "--", "true")
    refused = cluster.run(*submit, **env)
    assert refused.returncode and "Authentication" in refused.stdout + refused.stderr
    ours = cluster.pipeline("job", "status", "--address", cluster.address, **env)
    assert ours.returncode == 1
    assert "does not accept the token of this machine" in ours.stderr
    assert "Traceback" not in ours.stderr


def test_with_the_token_a_job_is_accepted(cluster):
    accepted = cluster.run("ray", "job", "submit", "--address", cluster.address, "--", "true")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr


def test_a_job_that_fails_in_its_first_second_says_why_and_gives_its_status(cluster):
    command = ("shards", "build", "/nowhere/x.tar", "--out", "/nowhere/out")
    result = cluster.pipeline("launch", "--address", cluster.address, "--", *command)
    assert result.returncode == 2
    assert "no source at /nowhere/x.tar" in result.stdout
    assert "has failed: its output says why" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_launch_is_left_found_again_and_stopped_after_a_checkpoint(cluster, tmp_path):
    command = ("--", "train", "demo", "--runs-dir", str(cluster.runs), "--name", "left")
    command += (
        *SMALL,
        "--epochs",
        "1000",
        "--checkpoint-every",
        "100000",
        "--eval-every",
        "100000",
    )
    log = tmp_path / "launch.log"
    launch = cluster.launched(log, *command)
    wait_for(" loss ", log, launch)
    launch.send_signal(signal.SIGINT)
    assert launch.wait(30) == 130
    text = log.read_text()
    (attach,) = (line for line in text.splitlines() if " --attach " in line)
    job = attach.split()[-1]
    assert f"python -m pipeline job stop --address {cluster.address} {job}" in text

    again = cluster.launched(tmp_path / "again.log", *command)  # the same command follows it
    wait_for("the same command runs already", tmp_path / "again.log", again)
    attached = cluster.launched(tmp_path / "attach.log", "--attach", job)
    wait_for(" loss ", tmp_path / "attach.log", attached)
    stopped = cluster.pipeline("job", "stop", "--address", cluster.address, job)
    assert stopped.returncode == 0 and f"{job}: STOPPED" in stopped.stdout
    assert again.wait(60) == attached.wait(60) == 130
    assert "was stopped; the same command goes on" in (tmp_path / "attach.log").read_text()
    (checkpoint,) = (cluster.runs / "left" / "checkpoints").glob("step-*")
    assert (checkpoint / "meta.json").exists()
    logs = cluster.pipeline("job", "logs", "--address", cluster.address, job).stdout
    assert "stopping after a checkpoint" in logs


@pytest.fixture(scope="module")
def shards(cluster):
    """A shard set that a job has built."""
    archive = cluster.folder / "digits.tar"
    write = "import sys, pathlib; from pipeline.data.digits import write_archive as w; "
    cluster.run(sys.executable, "-c", f"{write} w(pathlib.Path(sys.argv[1]))", str(archive))
    command = ("shards", "build", str(archive), "--out", str(cluster.folder / "digits"))
    built = cluster.pipeline("launch", "--address", cluster.address, "--", *command)
    assert built.returncode == 0, built.stdout + built.stderr
    return cluster.folder / "digits"


def test_shards_are_built_and_a_run_is_evaluated_as_jobs(cluster, shards):
    command = ("evaluate", str(cluster.runs / "left"), "--data", str(shards), "--crops", "ten")
    done = cluster.pipeline("launch", "--address", cluster.address, "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\bten +\d+ +10 ", done.stdout)
    assert list((cluster.runs / "left" / "evaluations").iterdir())


def test_a_search_runs_as_a_job(cluster, shards):
    base = {"runs-dir": cluster.runs, "data.dir": shards, "model.depth": 1, "model.width": 32}
    base |= {"model.heads": 2, "epochs": 2}
    options = [word for key, value in base.items() for word in (f"--base.{key}", str(value))]
    rungs = ("--rungs", "3/4", "--seeds", "2", "--set", "optim.warmup=0.1")
    command = ("tune", "search", "demo", *rungs, *options)
    done = cluster.pipeline("launch", "--address", cluster.address, "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (cluster.runs / "demo-warmup-lr" / "best.json").exists()


def test_the_record_is_with_the_mlflow_server_of_the_cluster(cluster):
    status = cluster.pipeline("job", "status", "--address", cluster.address).stdout
    assert "mlflow server" in status
    assert (cluster.runs / "mlflow" / "mlflow.db").exists()
    assert not (cluster.runs / "mlflow.db").exists()


def test_token_and_keys_are_in_no_log_page_or_record(cluster):
    places = [cluster.runs, cluster.session, cluster.folder / "head.log"]
    files = [p for place in places for p in ([place] if place.is_file() else place.rglob("*"))]
    assert len(files) > 50
    for path in files:
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # Ray deletes files meanwhile
                content = path.read_bytes()
                assert cluster.token.encode() not in content, path
                assert SECRET.encode() not in content, path
