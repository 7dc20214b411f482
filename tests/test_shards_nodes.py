"""A build over a cluster starts only if all nodes see its sources and its output."""

import shutil
from collections.abc import Callable

import pytest
from archives import small_archive

from shards import __main__ as command
from shards.build import nodes, ray_map

NODE = "h2 (10.77.0.2)"


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes; a function sets what happens before the second one looks at its disk."""
    happens: list[Callable[[], None]] = []
    monkeypatch.setattr(nodes, "alive", lambda: {"1": "h1 (10.77.0.1)", "2": NODE})

    def on_every_node(function, argument):
        answers = [function(argument, "h1 (10.77.0.1)")]
        for change in happens:
            change()
        return [*answers, function(argument, NODE)]

    monkeypatch.setattr(nodes, "on_every_node", on_every_node)
    monkeypatch.setattr(ray_map, "start", lambda workers: None)
    monkeypatch.setattr(ray_map, "ray_map", lambda function, items, *_: map(function, items))
    return happens.append


@pytest.fixture
def source(tmp_path):
    return small_archive(tmp_path / "fall11_whole.tar", 3, 4)


def test_a_build_whose_files_all_nodes_see_is_made(cluster, source, tmp_path):
    assert command.main(["build", str(source), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_a_source_on_one_host_is_refused_before_any_work(cluster, source, tmp_path, capsys):
    out = tmp_path / "out"
    cluster(source.unlink)
    assert command.main(["build", str(source), "--out", str(out)]) == 2
    message = f"{source} is not seen by node {NODE}: give a folder that every node sees"
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(out.iterdir()) == []


def test_a_source_that_is_shorter_on_another_host_is_refused(cluster, source, tmp_path):
    size = source.stat().st_size
    cluster(lambda: source.write_bytes(b"cut"))
    with pytest.raises(ValueError, match=rf"has 3 bytes on node h2 .* and {size:,} on the driver"):
        nodes.check([str(source)], str(tmp_path / "out"))


def test_an_output_on_the_driver_s_disk_is_refused(cluster, source, tmp_path, capsys):
    out = tmp_path / "out"
    cluster(lambda: shutil.rmtree(out))
    assert command.main(["build", str(source), "--out", str(out)]) == 2
    message = f"the output {out} is not seen by node {NODE}"
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_shard_set_to_verify_or_to_index_is_looked_for_too(cluster, digits, tmp_path):
    here = tmp_path / "set"
    shutil.copytree(digits, here)
    assert command.main(["verify", str(here), "--quick"]) == 0
    cluster(lambda: shutil.rmtree(here))
    for name in ("verify", "index"):
        shutil.copytree(digits, here, dirs_exist_ok=True)
        assert command.main([name, str(here)]) == 2


def test_a_source_that_is_nowhere_is_the_command_s_own_error(cluster, tmp_path, capsys):
    missing = tmp_path / "none.tar"
    assert command.main(["build", str(missing), "--out", str(tmp_path / "out")]) == 2
    assert f"no source at {missing}" in " ".join(capsys.readouterr().err.split())


def test_relative_paths_are_compared_as_whole_ones(cluster, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # processes of the cluster run in another folder
    cluster(lambda: monkeypatch.chdir("/"))
    nodes.check([source.name], "out")
