"""Processes in Linux namespaces of their own: they see no others, and end with what made them."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "mount")
CLONE_NEWNET = 0x40000000
# the end of a first process: it says that all is set up, and stays
STAY = """
echo ready
exec 1>&-
while :; do sleep 3600 & wait $!; done
"""


def missing(*programs: str) -> str | None:
    """Why there can be no namespaces here, or which of `programs` is not installed; else None."""
    if os.geteuid():
        return "hosts need root, to make namespaces"
    if absent := [name for name in (*PROGRAMS, *programs) if not shutil.which(name)]:
        return f"hosts need {', '.join(absent)}"
    try:
        Namespaces(
            ["sh", "-c", f"set -e; ip link add switch type bridge\n{STAY}"], {}, "--net"
        ).close()
    except OSError as error:
        return f"hosts need namespaces and a bridge: {error}"
    return None


class Namespaces:
    """A process in namespaces of its own; all in them end with it, and it ends with its parent."""

    def __init__(self, command: list[str], env: dict[str, str], *kinds: str) -> None:
        unshare = ["unshare", *kinds, "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._parent = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, "--propagation", "private", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | env,
        )
        if self._parent.stdout.readline() != "ready\n":
            self._parent.wait()
            raise OSError(self._parent.stderr.read().strip())
        children = Path(f"/proc/{self._parent.pid}/task/{self._parent.pid}/children").read_text()
        self.pid = int(children)

    def enter(self, *kinds: str) -> list[str]:
        """The start of a command line that runs the rest of it inside."""
        return ["nsenter", "-t", str(self.pid), *kinds]

    def processes(self) -> dict[int, str]:
        """Command lines of the processes inside by their ids, without the first process."""
        inside, found = (Path(f"/proc/{self.pid}/ns/pid")).readlink(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if (folder / "ns/pid").readlink() == inside and int(folder.name) != self.pid:
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        return found

    def kill(self) -> None:
        """SIGKILL all processes inside but the first."""
        deadline = time.monotonic() + 30
        while live := [pid for pid, line in self.processes().items() if "sleep 3600" not in line]:
            for pid in live:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, live
            time.sleep(0.05)

    def close(self) -> None:
        """End all processes inside, and the namespaces with them."""
        self._parent.kill()
        self._parent.communicate()


def enter_network(pid: int) -> None:
    """Put the calling thread into the network of a process."""
    with Path(f"/proc/{pid}/ns/net").open() as network:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(network.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network of process {pid}")
