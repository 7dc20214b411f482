"""Progress is a bar on a terminal and lines elsewhere; times and tables read well."""

import logging
import os
import pty
import subprocess
import sys
import termios

import pytest

from support.console import Progress, duration, table


def test_lines_give_share_note_and_an_eta_without_the_time_before_the_first_call(monkeypatch):
    clock = iter([100.0, 110.0, 111.0, 120.0])  # 100 s have passed before the first call
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress("build", "tasks", every_s=5.0)
    lines = []
    monkeypatch.setattr(
        logging.getLogger("support.console"), "info", lambda _, line: lines.append(line)
    )
    for done in (2, 4, 5, 8):
        progress(done, 8, f"{done} images")
    assert lines == [
        "build      2/8 tasks   25.0%  2 images  eta -",
        "build      4/8 tasks   50.0%  4 images  eta 20s",  # 2 tasks in 10 s
        "build      8/8 tasks  100.0%  8 images  eta 0s",
    ]


SCRIPT = """
from support.console import Progress, open_console
import logging, time
open_console(verbose=False)
progress = Progress("evaluate")
for done in range(1, 4):
    progress(done, 3, "fine")
    logging.getLogger("pipeline").info("line %d", done)
    time.sleep(0.2)
"""


def test_a_terminal_shows_a_bar_and_whole_lines_above_it():
    main, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=child,
        stderr=subprocess.PIPE,  # a file of errors gets no bar
        env=dict(os.environ),
    )
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0
    os.close(child)
    shown = b""
    try:
        while piece := os.read(main, 4096):
            shown += piece
    except OSError:  # the end of a terminal
        pass
    text = shown.decode()
    assert "evaluate:" in text and "2/3" in text and "fine" in text
    for number in range(1, 4):
        assert f"line {number}" in text.replace("\r", "\n").splitlines()


def test_a_log_has_plain_lines():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert "\r" not in result.stdout + result.stderr
    assert "evaluate   3/3 images  100.0%  fine  eta 0s" in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (42, "42s"), (59.7, "1m00s"), (185, "3m05s"), (25_920, "7h12m"), (1e6, "11d13h")],
)
def test_durations_have_their_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_tables_are_aligned():
    assert table([["crops", "top-1"], ["ten", "0.5"]]) == "crops  top-1\nten      0.5"
    assert table([["a", "on", "1"], ["bc", "v", "23"]], words=(0, 1)) == "a   on   1\nbc  v   23"
