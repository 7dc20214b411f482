"""Ray's own command line: `ray up`, `ray down`, `ray dashboard`, in processes beside this one.

What fails is said in one sentence: the output of Ray and the clouds is searched for known causes.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from support.redact import redact

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "ray.scripts.scripts")
# lines with which ray, ssh and the clouds say what is wrong, and what to do about it
CAUSES = {
    r"Permission denied \(publickey": "the machine does not accept the ssh key: check "
    "auth.ssh_user and auth.ssh_private_key",
    r"Load key .*: |Identity file .* not accessible": "the ssh key cannot be read: check "
    "auth.ssh_private_key",
    r"InsufficientInstanceCapacity|ZONE_RESOURCE_POOL_EXHAUSTED|does not have enough resources": (
        "the cloud has no such machine free: wait, or take another zone, region or type of machine"
    ),
    r"VcpuLimitExceeded|MaxSpotInstanceCountExceeded|QUOTA_EXCEEDED|Quota '": (
        "the account's quota is used up: ask the provider for more, or take smaller machines"
    ),
    r"NoCredentials|Unable to locate credentials|InvalidClientTokenId|AuthFailure|ExpiredToken|"
    r"SignatureDoesNotMatch|DefaultCredentialsError": "the cloud does not accept the credentials "
    "of this machine: log in again",
    r"ServiceLinkedRoleCreationNotPermitted|Invalid IAM Instance Profile|No usable subnets": (
        "the account is not set up: see the table of messages in docs/cluster.md"
    ),
    r"UnauthorizedOperation|AccessDenied|PERMISSION_DENIED": "the account may not do this: it "
    "needs the rights that docs/cluster.md lists",
    r"No route to host|Connection timed out|Could not resolve hostname|Network is unreachable": (
        "the machine cannot be reached: check its address, that it runs, and the firewall"
    ),
    r"Connection refused": "nothing answers ssh there: check that sshd runs",
    r"No module named|requires .* to be installed|Missing .*boto3": "a library of the provider is "
    "missing: pip install 'vit-pretraining[aws]' or 'vit-pretraining[gcp]'",
}
# without these, output that is not a terminal has every line that is meant for debugging
PLAIN = ("--log-style", "pretty", "--log-color", "false")
# a machine that boots refuses ssh for a while; after so many refused keys the key is wrong
MAX_REFUSED_KEYS = 8
KEY = next(iter(CAUSES))


def environment() -> dict[str, str]:
    """The environment of Ray's commands: with the token, without colours and telemetry."""
    here = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return (
        {"RAY_AUTH_MODE": "token"}
        | here
        | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
            "CLICOLOR": "0",
            "NO_COLOR": "1",
        }
    )


def start(*arguments: str, output: IO | int = subprocess.PIPE) -> subprocess.Popen:
    """Start a command of Ray in a session of its own, which Ctrl-C does not reach."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(),
        start_new_session=True,
    )


def run(*arguments: str) -> list[str]:
    """Run a command of Ray, log its lines and return them; RuntimeError says why it failed."""
    name = f"ray {arguments[0]}"
    lines, refused = [], 0
    process = start(*arguments, *PLAIN)
    try:
        for line in process.stdout:
            line = re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip())
            lines.append(line)
            log.info("  %s", line)
            refused += bool(re.search(KEY, line))
            if refused > MAX_REFUSED_KEYS:
                break
        else:
            if not process.wait():
                return lines
    finally:
        end(process)
    raise RuntimeError(f"{name} failed: {explained(lines)}")


def end(process: subprocess.Popen) -> None:
    """End a command that was started and what it has started, if it still runs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


def explained(lines: Sequence[str]) -> str:
    """The cause in a sentence and the line that shows it; the last line if none is known."""
    # machines that boot refuse connections before one succeeds
    first = max((n for n, line in enumerate(lines) if "Success." in line), default=-1) + 1
    for line in reversed(lines[first:]):
        for pattern, advice in CAUSES.items():
            if re.search(pattern, line):
                return f"{advice} ({redact(line.strip())})"
    return next((redact(line.strip()) for line in reversed(lines) if line.strip()), "no output")
