"""A test that hangs ends, and is named at once: a run may be cut off before its summary.

pytest-timeout fails a test after its limit, wherever Python waits. What it cannot interrupt (a call
into C, an end of a fixture after the failure) ends with the whole process some time later.
"""

import faulthandler
import os

import pytest

# three times what the longest takes on two quiet cores, all fixtures of its module with it
LONG_S = 1800
LAST_RESORT_S = LONG_S + 120


def pytest_configure(config: pytest.Config) -> None:
    """Hold the limits in each process of tests, and name failures in the one that prints."""
    config.pluginmanager.register(LastResort())
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(config))


def takes_long(item: pytest.Item) -> None:
    """Give a test that takes minutes its own limit; the others have that of pyproject.toml."""
    if not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(LONG_S))


class LastResort:
    """Ends a process of tests whose test does not end, with the stacks of all of its threads."""

    def __init__(self) -> None:
        self._stderr = os.dup(2)  # the real one, not what captures the output of a test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._begin()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        self._begin()  # again: pytest stops the clock when a test fails

    def pytest_runtest_logfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    def _begin(self) -> None:
        faulthandler.dump_traceback_later(LAST_RESORT_S, exit=True, file=self._stderr)


class Failures:
    """Names each failure when it happens, and where a test hung."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            text = report.longreprtext
            if "from pytest-timeout" not in text:
                text = next((line for line in text.splitlines() if line.startswith("E ")), text)
            terminal.write_line(f"\n{report.nodeid} failed ({report.when}):\n{text}")
