"""A worker that hangs is ended and says where it is; the driver names whom the others wait for."""

import os
import signal
import subprocess
import sys
import time

import pytest
from waiting import wait_for

from pipeline.train.report_queue import Heartbeat
from pipeline.train.watchdog import HUNG, Watchdog, patience, stragglers

# a worker that passes each phase once; then it does what the argument says
WORKER = """
import sys, threading, time
from pipeline.train.watchdog import Watchdog

def lost_in_reading():
    time.sleep(600)

def told(text):
    print(text, flush=True)

def beat(heartbeat):
    print(f"beat {heartbeat.step} {heartbeat.phase}", flush=True)

def work():
    limits = {"beat_s": 0.05, "limit_s": 0.5, "first_limit_s": 600.0}
    with Watchdog(rank=3, world_size=4, beat=beat, tell=told, **limits) as watchdog:
        for phase in ("data", "forward", "all-reduce"):
            watchdog.at(1203, phase)
        if sys.argv[1] == "hangs":
            watchdog.at(1204, "data")
            lost_in_reading()
        if sys.argv[1] == "compiles":  # the first time takes as long as it takes
            watchdog.at(1204, "compile")
            time.sleep(2.0)
        for step in range(1205, 1205 + 20):
            watchdog.at(step, "data")
            time.sleep(0.2)

# as under Ray Train, not the main thread
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def start(behaviour, output=subprocess.PIPE):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, behaviour],
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_worker_that_hangs_tells_where_and_ends_with_its_own_status():
    worker = start("hangs")
    output, _ = worker.communicate(timeout=120)
    assert worker.returncode == HUNG, output
    assert "beat 1204 data" in output
    assert "rank 3 on node" in output and "in step 1,204, phase data" in output
    assert "in lost_in_reading" in output
    assert "thread.join()" not in output  # the stack of the worker, not of the main thread


@pytest.mark.parametrize("behaviour", ["works", "compiles"])
def test_a_worker_that_gets_on_or_does_something_for_the_first_time_is_left_alone(behaviour):
    worker = start(behaviour)
    output, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0, output
    assert "no progress" not in output


def test_a_process_that_was_frozen_is_silent_and_is_not_ended_when_it_goes_on(tmp_path):
    path = tmp_path / "output"
    with path.open("w") as file:
        worker = start("works", file)
    while "beat 1210" not in path.read_text():
        assert worker.poll() is None, path.read_text()
    worker.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)
    before = path.read_text()
    time.sleep(1.5)  # three times the limit
    assert path.read_text() == before
    worker.send_signal(signal.SIGCONT)
    assert worker.wait(timeout=120) == 0, path.read_text()
    assert path.read_text() != before


def test_the_watchdog_stops_with_its_block():
    beats = []
    with Watchdog(rank=0, world_size=1, beat=beats.append, tell=print, beat_s=0.01) as watchdog:
        watchdog.at(7, "data")
        wait_for(lambda: any(beat.step == 7 for beat in beats))
    count = len(beats)
    time.sleep(0.1)
    assert len(beats) == count


def test_whoever_is_waited_for_speaks_before_all_who_wait():
    every = range(512)
    working = [patience(300, "data", rank, 512) for rank in every]
    waiting = [patience(300, "all-reduce", rank, 512) for rank in every]
    assert min(working) == 300 and max(working) < min(waiting) and max(waiting) <= 450
    assert len(set(waiting)) == 512  # not all at once


# --- who is it? ---


def beat(rank, step=1204, phase="all-reduce", stalled_s=300.0, age_s=3.0, world_size=512):
    return Heartbeat(
        rank=rank,
        world_size=world_size,
        node=f"gpu-{rank // 8}",
        step=step,
        phase=phase,
        stalled_s=stalled_s,
        age_s=age_s,
    )


def group(**special):
    """All 512 ranks, in the collective unless they are special: r13={...}."""
    return [beat(rank, **special.get(f"r{rank}", {})) for rank in range(512)]


@pytest.mark.parametrize(
    ("beats", "sentence"),
    [
        ([], None),
        (group(), None),
        (
            group(r13={"phase": "data"}),
            "rank 13 on node gpu-1 is in step 1,204, phase data; the other 511 wait in all-reduce",
        ),
        (
            group(r13={"step": 1203}),  # lost an answer of the collective
            "rank 13 on node gpu-1 is in step 1,203, phase all-reduce; the other 511 wait in "
            "all-reduce",
        ),
        (
            group(r56={"phase": "forward", "age_s": 303.0}),  # SIGSTOP
            "rank 56 on node gpu-7 is in step 1,204, phase forward, and silent for 5m03s; the "
            "other 511 wait in all-reduce",
        ),
        (
            group(r8={"phase": "data"}, r9={"phase": "data"}, r17={"age_s": 200.0}),
            "rank 17 on node gpu-2 is in step 1,204, phase all-reduce, and silent for 3m20s; "
            "rank 8 on node gpu-1 is in step 1,204, phase data; rank 9 on node gpu-1 is in step "
            "1,204, phase data; the other 509 wait in all-reduce",
        ),
        # all ages grow when the driver asks late
        ([beat(rank, age_s=900.0 + rank / 100) for rank in range(512)], None),
        # while all move, heartbeats of different moments differ in step
        ([beat(rank, step=1204 + rank % 7, stalled_s=0.0) for rank in range(512)], None),
        # an evaluation in which all are is nobody's fault
        ([beat(rank, phase="evaluate") for rank in range(512)], None),
        # in the same step, but before the call in which the others wait
        (
            group(r5={"phase": "forward and backward"}),
            "rank 5 on node gpu-0 is in step 1,204, phase forward and backward; the other 511 wait "
            "in all-reduce",
        ),
        # rank 0 writes, the others wait for it
        (
            group(r0={"phase": "checkpoint"}),
            "rank 0 on node gpu-0 is in step 1,204, phase checkpoint; the other 511 wait in "
            "all-reduce",
        ),
        # ranks of an earlier, larger attempt are not counted
        (
            [beat(0, world_size=2), beat(1, world_size=2, phase="data"), beat(2, age_s=900.0)],
            "rank 1 on node gpu-0 is in step 1,204, phase data; the other one waits in all-reduce",
        ),
    ],
)
def test_the_ranks_that_the_others_wait_for_are_named(beats, sentence):
    assert stragglers(beats) == sentence


def test_a_long_list_of_names_is_cut():
    beats = group(**{f"r{rank}": {"phase": "data"} for rank in range(100, 120)})
    text = stragglers(beats)
    assert text.count("phase data") == 8 and "; 12 more; the other 492 wait" in text
