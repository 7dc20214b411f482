"""A cluster of two nodes in other processes runs the driver's code, and every node answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.build import ray_map
from support import code

pytestmark = pytest.mark.ray

# a driver in a folder with other packages of the same names, which come first in its processes
# unless they get the driver's code
SCRIPT = """
import json, os, sys, time
import ray
from ray.cluster_utils import Cluster
from shards.build import ray_map

small = {"object_store_memory": 80_000_000}
cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small}
)
cluster.add_node(num_cpus=1, **small)
os.environ["RAY_ADDRESS"] = cluster.address

def looks(argument, node):
    import support.code
    return ray.get_runtime_context().get_node_id(), node, support.code.fingerprint()

def sleeps(late, node):
    if ray.get_runtime_context().get_node_id() == late:
        time.sleep(60)

def fails(late, node):
    if ray.get_runtime_context().get_node_id() == late:
        import nowhere

def error(function, node, timeout_s):
    try:
        ray_map.on_every_node(function, node, timeout_s)
    except ValueError as error:
        return str(error)

ray_map.start(None)
import support.code
names = ray_map.alive()
result = {
    "names": names,
    "code": support.code.fingerprint(),
    "answers": ray_map.on_every_node(looks, None),
    "late": error(sleeps, list(names)[0], 1),
    "failed": error(fails, list(names)[1], 60),
}
ray.shutdown()
cluster.shutdown()
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What the driver has found."""
    folder = tmp_path_factory.mktemp("driver")
    for name in code.PACKAGES:
        (folder / "old" / name).mkdir(parents=True)
        (folder / "old" / name / "__init__.py").write_text('raise ImportError("old code")')
    (folder / "driver.py").write_text(SCRIPT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    run = subprocess.run(
        [sys.executable, str(folder / "driver.py")],
        capture_output=True,
        text=True,
        cwd=folder / "old",
        env={**kept, "PYTHONPATH": str(Path(code.__file__).parent.parent)},
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_every_node_answers_one_without_cpus_too(result):
    answers = {node: name for node, name, _ in result["answers"]}
    assert len(answers) == 2
    assert answers == result["names"]


def test_the_nodes_run_the_code_of_the_driver(result):
    assert [found for _, _, found in result["answers"]] == [result["code"]] * 2


def test_a_node_that_is_late_or_fails_is_named(result):
    first, second = result["names"].values()
    assert result["late"].startswith(f"node {first} has not answered in 1 s")
    assert (
        result["failed"] == f"node {second} fails: ModuleNotFoundError: No module named 'nowhere'"
    )


@pytest.mark.parametrize(
    ("runtime_env", "brings"),
    [
        (None, False),
        ({"env_vars": {"A": "1"}}, False),
        ({"working_dir": "gcs://_ray_pkg_1.zip"}, True),
        ({"py_modules": ["gcs://_ray_pkg_1.zip"]}, True),
    ],
)
def test_a_submitted_job_with_its_own_code_keeps_it(monkeypatch, runtime_env, brings):
    monkeypatch.setenv(ray_map.JOB, json.dumps({"runtime_env": runtime_env, "metadata": {}}))
    assert ray_map.job_brings_code() is brings


def test_a_cluster_gets_code_from_the_driver_and_no_variables_of_its_environment(monkeypatch):
    given = {}
    monkeypatch.setenv("RAY_ADDRESS", "10.77.0.1:6379")
    monkeypatch.delenv(ray_map.JOB, raising=False)
    monkeypatch.setattr(ray_map.ray, "is_initialized", lambda: False)

    def init(runtime_env: dict, **_: object) -> None:
        packages = {path.name for path in Path(runtime_env["working_dir"]).iterdir()}
        given.update(runtime_env, packages=packages)

    monkeypatch.setattr(ray_map.ray, "init", init)
    ray_map.start(None)
    assert given.keys() == {"working_dir", "packages"}
    assert given["packages"] == set(code.PACKAGES)


def test_an_item_that_kills_its_process_is_left_to_the_careful_function(ray_cluster, tmp_path):
    def deadly(item):
        if item == 3:
            with (tmp_path / "killed").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    def careful(item):
        return f"careful {item}"

    assert sorted(map(str, ray_map.ray_map(deadly, range(5), careful))) == [
        *("0", "1", "2", "4"),
        "careful 3",
    ]
    assert len((tmp_path / "killed").read_text()) == 1 + ray_map.RETRIES
    with pytest.raises(RuntimeError, match="killed 5 times"):
        list(ray_map.ray_map(deadly, range(5)))


def test_an_error_of_a_task_is_raised_as_it_was_there_and_not_tried_again(ray_cluster, tmp_path):
    def fails(item):
        if item == 2:
            with (tmp_path / "tried").open("a") as file:
                file.write("x")
            raise FileNotFoundError("no spool")
        return item

    with pytest.raises(FileNotFoundError) as error:
        list(ray_map.ray_map(fails, range(9)))
    assert str(error.value) == "no spool"
    assert (tmp_path / "tried").read_text() == "x"


def test_storage_that_fails_for_a_while_is_tried_again(ray_cluster, tmp_path):
    def fails_twice(item):
        tries = tmp_path / f"tries-{item}"
        with tries.open("a") as file:
            file.write("x")
        if tries.stat().st_size < 3:
            raise OSError("503 slow down")
        return item

    assert sorted(ray_map.ray_map(fails_twice, range(3))) == [0, 1, 2]


def test_results_do_not_wait_for_items_that_take_long_to_come(ray_cluster):
    came, seen = [], []

    def items():
        for item in range(6):
            came.append(item)
            time.sleep(0.5)
            yield item

    for result in ray_map.ray_map(abs, items()):
        seen.append((result, len(came)))
    assert [result for result, _ in seen] == list(range(6))
    assert seen[0][1] < 5
