"""A node that sees another folder, other data or other code than the driver is named."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import s3_server
from pyarrow.fs import copy_files

from pipeline.train import nodes
from pipeline.train.nodes import View, shared
from shards.build.nodes import marked
from shards.dataset import store
from support import code

NODE = "h2 (10.77.0.2)"


@pytest.fixture
def view(tmp_path, digits):
    """What the driver of a small run sees."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1234")
    with marked(str(tmp_path / "run")) as marker:
        yield View.here(str(tmp_path / "run"), marker, [str(digits)], [str(weights)])


def only(faults: list[str]) -> str:
    assert len(faults) == 1, faults
    return faults[0]


def test_a_node_that_sees_all_has_no_fault(view):
    assert view.faults(NODE) == []


def test_a_node_with_a_folder_of_its_own_is_told_to_take_a_common_one(view):
    (Path(view.folder) / view.marker).unlink()
    assert only(view.faults(NODE)) == (
        f"runs_dir: {view.folder} is not seen by node {NODE}: give a folder that every node sees, "
        f"or an s3:// or gs:// prefix"
    )


def test_data_that_is_missing_on_a_node_or_differs_is_named(view, digits, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(digits / "manifest.json", other)
    view = dataclasses.replace(view, data={str(other): view.data[str(digits)]})
    assert view.faults(NODE) == []
    with (other / "manifest.json").open("a") as file:
        file.write(" ")
    assert f"shard set {other} is another on node {NODE}" in only(view.faults(NODE))
    (other / "manifest.json").unlink()
    assert f"shard set {other} is not seen by node {NODE}" in only(view.faults(NODE))
    shutil.rmtree(other)
    assert f"shard set {other} is not seen by node {NODE}" in only(view.faults(NODE))


def test_initial_weights_that_are_missing_on_a_node_or_differ_are_named(view, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"123")
    assert f"init_from {weights} is another on node {NODE}" in only(view.faults(NODE))
    weights.unlink()
    assert f"init_from {weights} is not seen by node {NODE}" in only(view.faults(NODE))


def test_other_versions_are_named(view, monkeypatch):
    monkeypatch.setattr(nodes, "versions", lambda: {**view.versions, "torch": "2.12.0"})
    theirs = view.versions["torch"]
    assert f"node {NODE} has torch 2.12.0, the driver has {theirs}" in only(view.faults(NODE))


def test_builds_of_one_version_for_cpu_and_gpu_are_the_same_version(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cu130")
    assert nodes.versions()["torch"] == "2.13.0"


def test_other_code_is_named(view, monkeypatch):
    with code.copied() as copy:
        packages = [copy / name for name in code.PACKAGES]
        monkeypatch.setattr(code, "folders", lambda: packages)
        assert view.faults(NODE) == [], "a copy is the same code"
        with (copy / "vit" / "model.py").open("a") as file:
            file.write("\n")
        assert f"node {NODE} runs other code" in only(view.faults(NODE))


def test_storage_that_a_node_cannot_read_is_named(view, monkeypatch):
    def refuses(location: str) -> None:
        raise PermissionError("ACCESS_DENIED")

    monkeypatch.setattr("shards.dataset.store.PAUSES_S", (0.0,))
    monkeypatch.setattr(nodes, "manifest_hash", refuses)
    words = rf"node {re.escape(NODE)} cannot read what the run needs \(.*ACCESS_DENIED\)"
    assert re.match(words, only(view.faults(NODE)))
    monkeypatch.setattr(nodes, "this_node", lambda: NODE)
    with pytest.raises(PermissionError):  # of a worker: another attempt may help
        view.check()


def test_a_worker_compares_unless_it_is_on_the_node_of_the_driver(view, monkeypatch):
    other = dataclasses.replace(view, code="0" * 64)
    other.check()
    monkeypatch.setattr(nodes, "this_node", lambda: NODE)
    view.check()
    with pytest.raises(ValueError, match="runs other code"):
        other.check()


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes, of which the other one answers what the test puts into the list."""
    others: list[str] = []
    monkeypatch.setattr(nodes, "alive", lambda: {"1": "h1 (10.77.0.1)", "2": NODE})

    def on_every_node(function, argument):
        return [function(argument, "h1 (10.77.0.1)"), others]

    monkeypatch.setattr(nodes, "on_every_node", on_every_node)
    return others


def test_the_marker_is_there_during_the_run_alone(cluster, tmp_path, digits):
    folder = tmp_path / "run"
    with shared(str(folder), data=[str(digits)]) as view:
        assert [path.name for path in folder.iterdir()] == [view.marker]
        assert view.faults(NODE) == []
    assert list(folder.iterdir()) == []
    cluster.append(f"node {NODE} has torch 2.12.0")
    with pytest.raises(ValueError, match="has torch"), shared(str(folder), data=[]):
        pytest.fail("a node differs")
    assert list(folder.iterdir()) == []


def test_a_store_is_seen_by_a_node_that_reaches_it(cluster, monkeypatch, digits):
    with s3_server.serving("bkt") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        copy_files(str(digits), "s3://bkt/digits")
        with shared("s3://bkt/runs/one", data=["s3://bkt/digits"]) as view:
            assert view.data["s3://bkt/digits"] is not None
            assert view.faults(NODE) == []
            with s3_server.serving("bkt") as others:
                monkeypatch.setenv("AWS_ENDPOINT_URL", others["AWS_ENDPOINT_URL"])
                folder, data = view.faults(NODE)
                assert "runs_dir: s3://bkt/runs/one is not seen by node h2" in folder
                assert "shard set s3://bkt/digits is not seen by node h2" in data
            monkeypatch.setenv("AWS_ENDPOINT_URL", variables["AWS_ENDPOINT_URL"])
        system, root = store.locate("s3://bkt/runs/one")
        assert store.listing(system, root) == []


def test_a_marker_of_a_killed_driver_is_removed_and_not_taken_for_this_one(tmp_path):
    with marked(str(tmp_path)) as first:
        pass
    (tmp_path / first).touch()
    with marked(str(tmp_path)) as second:
        assert second != first
        assert [path.name for path in tmp_path.iterdir()] == [second]


def test_of_many_nodes_the_first_are_named_and_the_others_counted(cluster, tmp_path):
    cluster += [f"node h{n} differs" for n in range(63)]
    with pytest.raises(ValueError, match="h0 differs; .*h4 differs; and 58 more$"):
        shared(str(tmp_path), data=[]).__enter__()


def test_a_single_node_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(nodes, "alive", lambda: {"1": "h1 (10.77.0.1)"})
    monkeypatch.setattr(nodes, "on_every_node", lambda *_: pytest.fail("asked"))
    with shared(str(tmp_path), data=[]) as view:
        assert view.faults(NODE) == []
