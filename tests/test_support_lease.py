"""One driver at a time has a run, on whichever machine."""

import json
import subprocess
import sys

import pytest

from pipeline.checkpoint.run_folder import RunFolder
from support import lease
from support.files import AlreadyLocked
from support.lease import Lease, LeaseLost, leased, owner


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    monkeypatch.setattr(lease, "LIFETIME_S", 0.6)
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)


@pytest.fixture(params=["folder", "store"])
def run(request, tmp_path):
    """A run in a folder, and one in a store."""
    (tmp_path / "run").mkdir()
    runs_dir = str(tmp_path) if request.param == "folder" else tmp_path.as_uri()
    return RunFolder.of(runs_dir, "run")


def holder(run, **changes) -> Lease:
    """The lease of a driver on another machine."""
    other = Lease(run)
    other.owner = {**owner(), "host": "elsewhere", **changes}
    return other


def test_a_driver_that_shows_signs_of_life_keeps_its_run(run, monkeypatch):
    other = holder(run)
    other.take()
    monkeypatch.setattr(lease.time, "sleep", lambda _: other.renew())
    with pytest.raises(AlreadyLocked, match=r"process \d+ on elsewhere is at work"):
        Lease(run).take()
    other.check()


def test_the_run_of_a_driver_without_signs_of_life_is_taken_over_and_it_notices(run):
    other = holder(run)
    other.take()
    with leased(run) as mine:
        mine.check()
        with pytest.raises(LeaseLost, match="has taken over"):
            other.renew()


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(run, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = lease.psutil.Process(process.pid).create_time()
    holder(run, host=owner()["host"], pid=process.pid, started=started).take()
    process.communicate(b"\n")
    monkeypatch.setattr(lease, "LIFETIME_S", 3600.0)
    with leased(run):
        pass


def test_a_lease_that_was_given_back_is_free(run, monkeypatch):
    other = holder(run)
    other.take()
    other.release()
    monkeypatch.setattr(lease, "LIFETIME_S", 3600.0)
    with leased(run) as mine:
        mine.check()


def test_of_two_drivers_that_take_a_lease_in_a_store_at_once_one_has_it(tmp_path, monkeypatch):
    run = RunFolder.of(tmp_path.as_uri(), "run")
    (tmp_path / "run").mkdir()
    other = holder(run)
    # the other one writes between this one's write and its check
    monkeypatch.setattr(lease.time, "sleep", lambda _: other._write())
    with pytest.raises(LeaseLost):
        Lease(run).take()
    other.check()


def test_the_lease_is_renewed_during_the_block(run):
    with leased(run):
        before = json.loads(run.read("lease.json"))["number"]
        lease.time.sleep(0.5)
        assert json.loads(run.read("lease.json"))["number"] > before
