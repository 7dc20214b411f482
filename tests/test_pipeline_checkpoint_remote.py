"""Checkpoints in a store: complete or not there, and fetched by whoever lacks them."""

import pytest
from test_pipeline_checkpoint_local import write

from pipeline.checkpoint import local, remote


@pytest.fixture
def store(tmp_path):
    """A store that is addressed by URI, and the folder behind it."""
    folder = tmp_path / "store"
    return folder.as_uri(), folder


def test_a_node_without_a_folder_gets_what_another_wrote(tmp_path, store):
    uri, _ = store
    for step, top1 in ((1, 0.9), (2, 0.3), (3, 0.2)):
        path = write(tmp_path / "one", step, metrics={"val/top1": top1})
        local.prune(tmp_path / "one", 1)
        remote.push(path, uri)
    assert remote.complete(uri) == ["step-000000001", "step-000000003"]
    remote.pull(uri, tmp_path / "other")
    assert local.latest(tmp_path / "other").step == 3
    assert local.best(tmp_path / "other").step == 1
    theirs = (tmp_path / "other/step-000000003/model.safetensors").read_bytes()
    assert theirs == (tmp_path / "one/step-000000003/model.safetensors").read_bytes()


def test_what_was_not_written_to_its_end_is_not_there(tmp_path, store):
    uri, folder = store
    remote.push(write(tmp_path / "one", 1), uri)
    half = folder / "step-000000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert remote.complete(uri) == ["step-000000001"]
    remote.pull(uri, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["step-000000001"]


def test_an_empty_store_leaves_the_folder_alone(tmp_path, store):
    remote.pull(store[0], tmp_path / "other")
    assert not (tmp_path / "other").exists()
