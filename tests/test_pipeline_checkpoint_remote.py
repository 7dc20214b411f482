"""The checkpoints of a run in a store: complete or not there, and fetched by whoever lacks them."""

import pytest
from checkpoints import write
from pyarrow import fs as pafs

from pipeline.checkpoint import remote
from pipeline.checkpoint.checkpoints import Checkpoints


@pytest.fixture
def store(tmp_path):
    """A store that is addressed by URI, and the folder behind it."""
    folder = tmp_path / "store"
    return folder.as_uri(), folder


def put(node, uri, step, **changes) -> Checkpoints:
    """Write a checkpoint on a node, and make it one of the run's."""
    write(node, step, uri, **changes)
    return Checkpoints(folder=node, uri=uri)


def steps(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.all()]


def test_a_node_without_a_folder_gets_what_another_wrote(tmp_path, store):
    uri, _ = store
    for step, top1 in ((1, 0.9), (2, 0.3), (3, 0.2)):
        put(tmp_path / "one", uri, step, metrics={"select/top1": top1}).prune(1)
    other = Checkpoints(folder=tmp_path / "other", uri=uri)
    assert steps(other) == [1, 3]
    assert (other.latest().step, other.chosen().step) == (3, 1)
    assert not (tmp_path / "other").exists()
    mine = other.fetch(other.latest()).path
    theirs = tmp_path / "one/step-000000003"
    for name in ("model.safetensors", "state.pt", "config.json", "meta.json"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()


def test_what_was_not_uploaded_to_its_end_is_not_there(tmp_path, store):
    uri, folder = store
    checkpoints = put(tmp_path / "one", uri, 1)
    half = folder / "step-000000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert steps(checkpoints) == [1]
    put(tmp_path / "one", uri, 2)  # the next attempt gets there too
    assert steps(checkpoints) == [1, 2]
    other = Checkpoints(folder=tmp_path / "other", uri=uri)
    other.fetch(other.latest())


def test_an_upload_that_fails_leaves_the_earlier_checkpoint_the_newest(
    tmp_path, store, monkeypatch
):
    uri, _ = store
    checkpoints = put(tmp_path / "one", uri, 1)
    copy = pafs.copy_files

    def failing(source, *arguments):
        if source.endswith("state.pt"):
            raise OSError("503 Slow Down")
        return copy(source, *arguments)

    monkeypatch.setattr(remote.pafs, "copy_files", failing)
    monkeypatch.setattr(remote, "PATIENT_S", (0.0,))
    with pytest.raises(OSError, match="step-000000002/state.pt: 503 Slow Down"):
        put(tmp_path / "one", uri, 2)
    assert steps(checkpoints) == [1]


def test_a_prune_that_is_cut_short_leaves_the_newest_one_usable(tmp_path, store):
    uri, folder = store
    for step in (1, 2):
        checkpoints = put(tmp_path / "one", uri, step)
    (folder / "step-000000001/meta.json").unlink()  # it goes first
    assert steps(checkpoints) == [2]
    checkpoints.fetch(checkpoints.latest())


def test_a_copy_of_another_history_is_replaced(tmp_path, store):
    uri, _ = store
    put(tmp_path / "one", uri, 4)
    write(tmp_path / "two", 4, samples=1)  # of an attempt that died before its upload
    other = Checkpoints(folder=tmp_path / "two", uri=uri)
    assert other.fetch(other.latest()).samples == 512
    assert (tmp_path / "two/step-000000004/meta.json").read_bytes() == (
        tmp_path / "one/step-000000004/meta.json"
    ).read_bytes()


def test_a_damaged_copy_is_fetched_again_and_a_damaged_original_is_refused(tmp_path, store):
    uri, folder = store
    checkpoints = put(tmp_path / "one", uri, 4)
    mine, original = (place / "step-000000004/state.pt" for place in (tmp_path / "one", folder))
    content = mine.read_bytes()
    mine.write_bytes(b"x" + content[1:])
    checkpoints.fetch(checkpoints.latest())
    assert mine.read_bytes() == content
    mine.unlink()
    original.write_bytes(b"x" + content[1:])
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        checkpoints.fetch(checkpoints.latest())


def test_copies_of_other_checkpoints_leave_the_node_and_the_store_keeps_them(tmp_path, store):
    uri, _ = store
    for step in (1, 2):
        checkpoints = put(tmp_path / "one", uri, step)
    checkpoints.drop_copies(but=checkpoints.latest())
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["step-000000002"]
    assert steps(checkpoints) == [1, 2]
