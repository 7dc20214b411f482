"""The lease on a run: one driver at a time, on whichever machine.

    lease.json   owner (host, process), and a number that the owner raises every RENEW_S seconds

A driver that finds the lease of another one watches it for LIFETIME_S. If the number stays as it
is, that driver is dead and the lease is taken over. So no two clocks are compared. A driver of this
machine whose process is gone is known to be dead at once.
"""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from pipeline.checkpoint.run_folder import LEASE, RunFolder
from support.files import AlreadyLocked

log = logging.getLogger(__name__)

RENEW_S, LIFETIME_S = 20.0, 90.0
# a store has no exclusive creation: of two drivers that write at once, the later one has the lease
SETTLE_S = 2.0


class LeaseLost(RuntimeError):
    """Another driver has taken over the run."""


class Lease:
    """The lease of this process on a run."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.owner = owner()
        self._number = 0
        self._lock = threading.Lock()

    def take(self) -> None:
        """Take the lease; AlreadyLocked if another driver holds it."""
        before = self._read()
        if before and before["owner"] != self.owner and not is_dead(before["owner"]):
            self._watch(before)
        self._write()
        if self._run.uri:
            time.sleep(SETTLE_S)
            self.check()

    def check(self) -> None:
        """Raise LeaseLost if the lease is no longer that of this process."""
        found = self._read()
        if not found or found["owner"] != self.owner:
            raise LeaseLost(
                f"{described(found) if found else 'another process'} has taken over the run in "
                f"{self._run.location}; this one stops, and writes nothing more"
            )

    def renew(self) -> None:
        """Show that this process is alive; LeaseLost if another driver has taken over."""
        self.check()
        self._write()

    def release(self) -> None:
        """Give the lease back, if it is still that of this process."""
        with contextlib.suppress(LeaseLost):
            self.check()
            self._run.write(LEASE, b"{}")

    def _watch(self, before: dict) -> None:
        """Return if the owner shows no sign of life for LIFETIME_S; AlreadyLocked if it does."""
        log.info(
            "lease     %s has the run; waiting %.0f s to see whether it is alive",
            described(before),
            LIFETIME_S,
        )
        deadline = time.monotonic() + LIFETIME_S
        while time.monotonic() < deadline:
            time.sleep(min(RENEW_S / 4, LIFETIME_S / 4))
            if (found := self._read()) and found != before:
                raise AlreadyLocked(
                    f"{described(found)} trains the run in {self._run.location}; wait for it, or "
                    f"choose another --name"
                )

    def _read(self) -> dict | None:
        data = self._run.read(LEASE)
        return json.loads(data) or None if data else None

    def _write(self) -> None:
        with self._lock:
            self._number += 1
            lease = {"owner": self.owner, "number": self._number}
            self._run.write(LEASE, json.dumps(lease).encode())


@contextlib.contextmanager
def leased(run: RunFolder) -> Iterator[Lease]:
    """Hold the lease of a run during the block; AlreadyLocked if another driver holds it."""
    lease, closing = Lease(run), threading.Event()
    lease.take()

    def renew() -> None:
        while not closing.wait(RENEW_S):
            try:
                lease.renew()
            except LeaseLost:  # `check` says so where it matters
                return
            except OSError as error:
                log.warning("the lease of the run could not be renewed: %s", error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        closing.set()
        thread.join()
        lease.release()


def owner() -> dict[str, object]:
    """What identifies this process among those of all machines."""
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": process.pid,
        "started": process.create_time(),
    }


def boot_id() -> str:
    """What identifies this start of this machine."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(int(psutil.boot_time()))


def is_dead(other: dict) -> bool:
    """Whether the process is known to have ended: one of this machine that is gone."""
    mine = owner()
    if any(other[name] != mine[name] for name in ("host", "boot")):
        return False
    try:
        return psutil.Process(other["pid"]).create_time() != other["started"]
    except psutil.NoSuchProcess:
        return True


def described(lease: dict) -> str:
    """The owner of a lease in words."""
    return f"process {lease['owner']['pid']} on {lease['owner']['host']}"
