"""The lease on a run or a shard set: one driver at a time, on whichever machine.

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from support.files import AlreadyLocked
from support.threads import beside

log = logging.getLogger(__name__)

LEASE = "lease.json"
RENEW_S, LIFETIME_S = 20.0, 90.0
# a store has no exclusive creation: of two drivers that write at once, the later one has the lease
SETTLE_S = 2.0
# seconds between attempts to renew: one that takes as long as a lifetime could undo a take-over
HASTY_S = (1.0, 4.0)
# seconds between attempts to write: training goes on for minutes without its store, but not for so
# long that the watchdog ends the worker that waits
PATIENT_S = (0.5, 2.0, 8.0, 20.0, 60.0, 120.0)


class Place(Protocol):
    """Where the lease lies: a folder, or a prefix in a store."""

    uri: str | None
    """None for a folder."""
    location: str
    """As people know it, without secrets."""

    def read(self, name: str, pauses_s: Sequence[float] = ()) -> bytes | None:
        """Content of a file; None if there is none."""

    def write(self, name: str, data: bytes, pauses_s: Sequence[float] = ()) -> None:
        """Write a file, atomically."""


class LeaseLost(RuntimeError):
    """Another driver has taken over."""


class Lease:
    """The lease of this process on a place."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.owner = owner()
        self.lost = False
        """Whether a renewal has found another owner."""
        self._number = 0

    def take(self) -> None:
        """Take the lease; AlreadyLocked if another driver holds it."""
        before = self._read()
        self._number = before["number"] if before else 0
        if before and before["owner"] != self.owner and not is_dead(before["owner"]):
            self._watch(before)
        self._write()
        if self._place.uri:
            time.sleep(SETTLE_S)
            self.check()

    def check(self, pauses_s: Sequence[float] = PATIENT_S) -> None:
        """Raise LeaseLost if the lease is no longer that of this process."""
        check_owner(self._place, self.owner, pauses_s)

    def renew(self) -> None:
        """Show that this process is alive; LeaseLost if another driver has taken over."""
        self.check(HASTY_S)
        self._write()

    def release(self) -> None:
        """Give the lease back, if it is still that of this process."""
        try:
            self.check(HASTY_S)
            self._place.write(LEASE, b"{}", HASTY_S)
        except LeaseLost:
            pass
        except OSError as error:  # it runs out
            log.warning("the lease could not be given back: %s", error)

    def _watch(self, before: dict) -> None:
        """Return if the owner shows no sign of life for LIFETIME_S; AlreadyLocked if it does."""
        log.info(
            "lease     %s has it; waiting %.0f s to see whether it is alive",
            described(before),
            LIFETIME_S,
        )
        deadline = time.monotonic() + LIFETIME_S
        while time.monotonic() < deadline:
            time.sleep(min(RENEW_S / 4, LIFETIME_S / 4))
            if not (found := self._read()):
                return  # given back
            if found != before:
                raise AlreadyLocked(
                    f"{described(found)} is at work in {self._place.location}; wait for it, or "
                    f"choose another place"
                )

    def _read(self) -> dict | None:
        return read_lease(self._place)

    def _write(self) -> None:
        self._number += 1
        lease = {"owner": self.owner, "number": self._number}
        self._place.write(LEASE, json.dumps(lease).encode(), HASTY_S)


def read_lease(place: Place, pauses_s: Sequence[float] = ()) -> dict | None:
    """The lease on a place; None if nobody has it."""
    data = place.read(LEASE, pauses_s)
    return json.loads(data) or None if data else None


def check_owner(
    place: Place, expected: Mapping[str, object], pauses_s: Sequence[float] = PATIENT_S
) -> None:
    """Raise LeaseLost if a place has another owner than the expected one."""
    found = read_lease(place, pauses_s)
    if not found or found["owner"] != expected:
        raise LeaseLost(
            f"{described(found) if found else 'another process'} has taken over "
            f"{place.location}; this one stops"
        )


@contextlib.contextmanager
def leased(place: Place) -> Iterator[Lease]:
    """Hold the lease on a place during the block; AlreadyLocked if another driver holds it."""
    lease = Lease(place)
    lease.take()

    def renew(closing: threading.Event) -> None:
        while not closing.wait(RENEW_S):
            try:
                lease.renew()
            except LeaseLost:  # whoever writes looks at this first
                lease.lost = True
                return
            except OSError as error:
                log.warning("the lease could not be renewed: %s", error)

    try:
        with beside(renew, "lease"):
            yield lease
    finally:
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
