"""A checkpoint is there whole or not at all, and says what it is."""

import errno
import json

import pytest
import torch

from pipeline.checkpoint import local
from pipeline.settings.presets import find_preset

CONFIG = find_preset("demo")


def write(folder, step, **changes):
    return local.save(
        folder,
        **{
            "step": step,
            "samples": step * 128,
            "model": {"head.weight": torch.full((2, 3), float(step))},
            "state": {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
            "metrics": {},
            "config": CONFIG,
            "classes": ("n00000001", "n00000002"),
            "fingerprint": "f" * 64,
            **changes,
        },
    )


def test_what_is_written_is_read_again(tmp_path):
    write(tmp_path, 3, metrics={"val/top1": 0.5})
    found = local.latest(tmp_path)
    assert (found.step, found.samples, found.classes[1]) == (3, 384, "n00000002")
    assert found.metrics == {"val/top1": 0.5}
    assert found.config == json.loads(json.dumps(CONFIG.flat()))
    assert found.state()["optimizer"]["state"][0]["exp_avg"].tolist() == [1, 1, 1]


def test_latest_and_best_are_kept_and_the_others_deleted(tmp_path):
    for step, top1 in ((1, 0.1), (2, 0.9), (3, 0.9), (4, 0.2), (5, 0.3), (6, None)):
        write(tmp_path, step, metrics={} if top1 is None else {"val/top1": top1})
        local.prune(tmp_path, 2)
    assert [item.step for item in local.checkpoints(tmp_path)] == [2, 5, 6]
    assert local.best(tmp_path).step == 2
    assert local.latest(tmp_path).step == 6


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
    assert local.latest(tmp_path).step == 1
    local.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_folder_that_is_not_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "step-000000001").mkdir()
    with pytest.raises(ValueError, match=r"not a checkpoint: it has no meta\.json"):
        local.latest(tmp_path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = write(tmp_path, 1) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(ValueError, match="format 0, this version reads 1"):
        local.latest(tmp_path)


def test_settings_that_change_the_result_are_named():
    before = CONFIG.replace({"model.depth": 5, "workers": 1, "log_every": 7}).flat()
    assert local.differences(CONFIG, before) == ["model.depth (5 before, 4 now)"]


def test_state_with_code_in_it_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = write(tmp_path, 1)
    torch.save({"optimizer": Code()}, path / "state.pt")
    with pytest.raises(Exception, match="[Ww]eights"):
        local.latest(tmp_path).state()
    assert not (tmp_path / "ran").exists()
