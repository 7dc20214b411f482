"""A checkpoint is there whole or not at all, and says what it is."""

import errno
import json

import pytest
import torch
from checkpoints import CONFIG, write

from pipeline.checkpoint import local
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.stored import read_state


def test_what_is_written_is_read_again(tmp_path):
    write(tmp_path, 3, metrics={"val/top1": 0.5})
    found = Checkpoints(folder=tmp_path).latest()
    assert (found.step, found.samples, found.classes[1]) == (3, 384, "n00000002")
    assert found.metrics == {"val/top1": 0.5}
    assert found.config == json.loads(json.dumps(CONFIG.flat()))
    stored = read_state(found.path)["optimizer"]["state"][0]["exp_avg"]
    assert stored.like(torch.zeros(3)).tolist() == [1, 1, 1]


def test_latest_and_selected_are_kept_and_the_others_deleted(tmp_path):
    for step, top1 in ((1, 0.1), (2, 0.9), (3, 0.9), (4, 0.2), (5, 0.3), (6, None)):
        metrics = {} if top1 is None else {"val/top1": 1 - top1, "select/top1": top1}
        write(tmp_path, step, metrics=metrics)
        Checkpoints(folder=tmp_path).prune(2)
    found = local.checkpoints(tmp_path)
    assert [item.step for item in found] == [2, 5, 6]
    assert local.chosen(found).step == 2
    assert local.latest(found).step == 6


def test_without_a_split_that_selects_the_last_is_chosen_however_good_others_were(tmp_path):
    for step, top1 in ((1, 0.9), (2, 0.8), (3, 0.1), (4, None)):
        write(tmp_path, step, metrics={} if top1 is None else {"val/top1": top1})
        Checkpoints(folder=tmp_path).prune(2)
    found = local.checkpoints(tmp_path)
    assert [item.step for item in found] == [3, 4]
    assert local.chosen(found).step == 4
    assert local.chosen([]) is None


def test_a_copy_of_the_weights_without_the_state_opens_as_weights_only(tmp_path):
    path = write(tmp_path, 1)
    (path / "state.pt").unlink()
    with pytest.raises(local.Incomplete, match="state.pt has 0 bytes"):
        local.Checkpoint.open(path)
    assert local.Checkpoint.open(path, only="model").step == 1
    (path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(local.Incomplete, match="model.safetensors has 4 bytes"):
        local.Checkpoint.open(path, only="model")


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="checkpoint of step 2 .*No space left.*make room"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_what_a_killed_writer_left_is_not_a_checkpoint(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".step-000000002.77").mkdir()
    assert [item.step for item in local.checkpoints(tmp_path)] == [1]
    local.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


@pytest.mark.parametrize(
    ("file", "content"),
    [("meta.json", None), ("config.json", None), ("state.pt", None), ("state.pt", b"half")],
)
def test_an_incomplete_checkpoint_is_passed_over_and_a_restart_clears_it(tmp_path, file, content):
    write(tmp_path, 1)
    path = write(tmp_path, 2) / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(local.Incomplete, match=r"not a checkpoint: it has no|is cut off"):
        local.Checkpoint.open(path.parent)
    assert [item.step for item in local.checkpoints(tmp_path)] == [1]
    assert Checkpoints(folder=tmp_path).latest().step == 1
    local.clear_unfinished(tmp_path)
    write(tmp_path, 2)
    assert [item.step for item in local.checkpoints(tmp_path)] == [1, 2]


def test_a_prune_killed_in_the_middle_leaves_nothing_under_the_name_of_a_checkpoint(
    tmp_path, monkeypatch
):
    for step in (1, 2, 3):
        write(tmp_path, step)
    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(folder=tmp_path).prune(1)
    assert [item.step for item in local.checkpoints(tmp_path)] == [2, 3]
    assert not (tmp_path / "step-000000001").exists()


def killed(path, **_):
    """Remove one file, and die."""
    next(path.iterdir()).unlink()
    raise KeyboardInterrupt


def test_damage_is_named(tmp_path):
    path = write(tmp_path, 1)
    content = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match=r"state\.pt is damaged"):
        Checkpoints(folder=tmp_path).fetch(Checkpoints(folder=tmp_path).latest())


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = write(tmp_path, 1) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(ValueError, match="format 1, this version reads 2"):
        local.checkpoints(tmp_path)


def test_settings_that_change_the_result_are_named():
    before = CONFIG.replace({"model.depth": 5, "workers": 1, "log_every": 7}).flat()
    assert local.differences(CONFIG, before) == ["model.depth (5 before, 4 now)"]


def test_state_with_code_in_it_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    checkpoint = local.Checkpoint.open(write(tmp_path, 1))
    torch.save({"optimizer": Code()}, checkpoint.path / "state.pt")
    with pytest.raises(Exception, match="[Ww]eights"):
        read_state(checkpoint.path)
    assert not (tmp_path / "ran").exists()
