"""The MLflow server of a cluster keeps its data in a place that outlives its machine."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest
from mlflow_server import free_port

pytestmark = [pytest.mark.server]

ROOT = Path(__file__).parent.parent


class Machine:
    """A machine with a disk of its own, on which `track serve` runs."""

    def __init__(self, place: str, disk: Path, port: int | None = None) -> None:
        disk.mkdir(exist_ok=True)
        self.port, self.log = port or free_port(), disk / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pipeline",
                    "track",
                    "serve",
                    place,
                    "--port",
                    str(self.port),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(disk)},
                # a job is stopped by SIGTERM
                preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
            )

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 180
        while "MLflow is ready" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture
def machine(tmp_path):
    """Makes machines by name, each with its disk; they end with the test."""
    machines = []

    def made(place: str, name: str, port: int | None = None) -> Machine:
        machines.append(Machine(place, tmp_path / name, port))
        return machines[-1]

    yield made
    for each in machines:
        each.stop()


def test_another_machine_serves_the_runs_and_artifacts_of_the_first(machine, tmp_path):
    place = (tmp_path / "store" / "mlflow").as_uri()
    first = machine(place, "first")
    first.wait_until_ready()
    client = mlflow.MlflowClient(first.uri)
    run = client.create_run("0").info.run_id
    client.log_metric(run, "val/top1", 0.5, step=7)
    client.log_text(run, "a report", "report.html")
    assert first.stop() == 0

    second = machine(place, "second")
    second.wait_until_ready()
    client = mlflow.MlflowClient(second.uri)
    assert [m.value for m in client.get_metric_history(run, "val/top1")] == [0.5]
    url = f"{second.uri}/get-artifact?path=report.html&run_uuid={run}"
    assert urllib.request.urlopen(url, timeout=30).read() == b"a report"

    third = machine(place, "third")  # while the second one serves
    assert third.process.wait(120) == 2
    assert "another MLflow server serves" in third.log.read_text()
    assert second.stop() == 0


def test_a_server_that_was_killed_leaves_nothing_that_hinders_the_next(machine, tmp_path):
    place = (tmp_path / "store" / "mlflow").as_uri()
    first = machine(place, "first")
    first.wait_until_ready()
    first.process.kill()  # MLflow itself goes on, on its port
    assert urllib.request.urlopen(f"{first.uri}/health", timeout=30).status == 200
    second = machine(place, "first", port=first.port)
    second.wait_until_ready()
    assert mlflow.MlflowClient(second.uri).search_experiments()
