"""A test that hangs fails with its name; one that Python cannot interrupt ends the run."""

import os
import re
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import time_limits
time_limits.LAST_RESORT_S = 10
"""

HANGING = """
import ctypes, signal, threading
import pytest

@pytest.fixture
def slow_end():
    yield
    ctypes.PyDLL(None).usleep(60_000_000)  # holds the lock of the interpreter

def test_waits():
    threading.Event().wait()

def test_fails(slow_end):
    assert 1 + 1 == 3

@pytest.mark.parametrize("number", range(20))
def test_passes(number):
    pass
"""


def test_tests_that_hang_are_named_with_their_stacks_and_the_run_ends(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hanging.py").write_text(HANGING)
    words = ["-p", "time_limits", "-n", "2", "--dist", "loadgroup", "--max-worker-restart", "0"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "timeout=1", "-p", "no:cacheprovider", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shown = result.stdout
    before, summary = shown.split(" FAILURES ", 1)
    assert "test_hanging.py::test_waits failed (call):" in before
    assert "threading.Event().wait()" in before and "Timeout (>1.0s) from pytest-timeout" in before
    assert re.search(
        r"test_hanging.py::test_fails failed \(call\):\nE +assert \(1 \+ 1\) == 3", before
    )
    assert (
        "test_hanging.py::test_fails failed (???):" in before and "crashed while running" in before
    )
    assert re.search(r'File ".*test_hanging.py", line \d+ in slow_end', result.stderr)
    assert "passed" in summary and result.returncode == 1
