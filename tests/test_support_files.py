"""Files are whole or not there, lines are whole or not there, and one process holds a lock."""

import json
import os
import resource
import subprocess
import sys

import pytest

from support import files
from support.files import (
    AlreadyLocked,
    append_line,
    cut_unfinished_line,
    locked,
    read_lines,
    write_bytes,
    write_json,
    written,
)


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "x.bin"
    with written(path) as aside:
        aside.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer" and [p.name for p in tmp_path.iterdir()] == ["x.bin"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_earlier_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), written(path) as aside:
        aside.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder_whole(tmp_path):
    path = tmp_path / "step"
    for names in (("a", "b"), ("c",)):
        with written(path) as aside:
            aside.mkdir()
            for name in names:
                (aside / name).write_text(name)
        assert sorted(p.name for p in path.iterdir()) == sorted(names)
    with pytest.raises(OSError, match="full"), written(path) as aside:
        aside.mkdir()
        (aside / "d").write_text("d")
        raise OSError("full")
    assert [p.name for p in path.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_flushed_before_it_takes_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append((path, path.exists())))
    write_bytes(tmp_path / "x", b"1")
    assert [exists for _, exists in flushed] == [True, True]
    assert flushed[0][0].name.startswith(".x.") and flushed[1][0] == tmp_path


def test_what_others_write_beside_a_file_is_left_alone(tmp_path):
    (tmp_path / ".vanishing.tmp").symlink_to(tmp_path / "gone")
    files.write_bytes(tmp_path / "mine", b"1")
    assert (tmp_path / "mine").read_bytes() == b"1"


def test_json_has_no_secrets(tmp_path):
    write_json(tmp_path / "x.json", {"data": ["s3://KEY:SECRET@bucket/x"], "n": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "data": ["s3://***@bucket/x"],
        "n": 1,
    }


def test_lines_are_read_with_the_byte_after_each(tmp_path):
    path = tmp_path / "x.jsonl"
    assert list(read_lines(path)) == []
    for number in range(3):
        append_line(path, {"n": number})
    ends = [end for _, end in read_lines(path)]
    assert [line["n"] for line, _ in read_lines(path)] == [0, 1, 2]
    assert [line["n"] for line, _ in read_lines(path, ends[0])] == [1, 2]
    assert ends[-1] == path.stat().st_size


def test_a_line_that_was_cut_off_does_not_count_and_is_cut_away(tmp_path):
    path = tmp_path / "x.jsonl"
    append_line(path, {"n": 0})
    with path.open("ab") as file:
        file.write(b'{"n": 1')
    *_, (_, end) = read_lines(path)
    cut_unfinished_line(path, end)
    append_line(path, {"n": 2})
    assert [line["n"] for line, _ in read_lines(path)] == [0, 2]


def test_a_line_without_room_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "x.jsonl"
    append_line(path, {"n": 0})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    # a write beyond the limit is cut short, as on a disk that is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            append_line(path, {"n": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from support.files import locked\n"
        "with locked(Path(sys.argv[1]), 'taken'):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    path = tmp_path / "x.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(AlreadyLocked, match="in use"), locked(path, "in use"):
        pass
    holder.kill()
    holder.wait()
    with locked(path, "in use"):
        pass


def test_a_write_does_not_touch_what_others_write_in_the_same_folder(tmp_path, monkeypatch):
    (tmp_path / "other.tmp").write_text("")
    flushed = []
    monkeypatch.setattr(files, "flush", flushed.append)
    files.write_bytes(tmp_path / "mine", b"1")
    assert tmp_path in flushed
    assert tmp_path / "other.tmp" not in flushed
